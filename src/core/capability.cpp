#include "core/capability.hpp"

#include "core/backend.hpp"

namespace shortconv {
namespace {

template <typename T, std::size_t kCount>
std::string_view find_name(const std::array<Named<T>, kCount>& rows, T value) {
  for (const auto& row : rows) {
    if (row.value == value) return row.name;
  }
  return "?";
}

}  // namespace

const Capabilities& capabilities() {
  static constexpr Capabilities kAll{
      .widths = kWidths.all,
      .model_widths = kModelWidths.all,
      .max_width = kMaxWidth,
      .dtypes = kDTypes,
      .activations = kActivations,
      .epilogues = kEpilogues,
      .schedules = kSchedules,
      .padded_rows = kPaddedRows,
      .backends = kBackends,
  };
  return kAll;
}

std::string_view name(DType value) {
  switch (value) {  // those that are not element types of x have names too: messages print them
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
    case DType::kBool:
      return "bool";
    case DType::kF64:
      return "f64";
    default:
      return find_name(kDTypes, value);
  }
}
std::string_view name(Activation value) { return find_name(kActivations, value); }
std::string_view name(Epilogue value) { return find_name(kEpilogues, value); }
std::string_view name(Schedule value) { return find_name(kSchedules, value); }
std::string_view name(PaddedRows value) { return find_name(kPaddedRows, value); }
std::string_view name(BackendId value) { return find_name(kBackends, value); }

std::vector<BackendInfo> backend_info() {
  std::vector<BackendInfo> rows;
  for (const auto& [id, label] : kBackends) {
    if (id == BackendId::kAuto) continue;
    const Backend* backend = find_backend(id);
    if (backend == nullptr) {
      rows.push_back({label, false, "not built in"});
    } else {
      rows.push_back(backend->info());
    }
  }
  return rows;
}

}  // namespace shortconv
