#include "core/capability.hpp"

#include "core/backend.hpp"

namespace shortconv {
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
  switch (value) {
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
    case DType::kBool:
      return "bool";
    case DType::kF16:
      return "f16";
    case DType::kF32:
      return "f32";
    case DType::kF64:
      return "f64";
    case DType::kBF16:
      return "bf16";
  }
  return {};
}
std::string_view name(Op value) { return name_of(value); }
std::string_view name(Activation value) { return name_of(value); }
std::string_view name(Epilogue value) { return name_of(value); }
std::string_view name(Schedule value) { return name_of(value); }
std::string_view name(PaddedRows value) { return name_of(value); }
std::string_view name(InitialState value) { return name_of(value); }
std::string_view name(BackendId value) { return name_of(value); }

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
