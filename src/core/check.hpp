// A small matcher for tensor arguments. Sizes with a name ("channels") are fixed by the first
// argument that has them and must agree afterwards; the first violation is kept as a Status,
// everything after it is ignored.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "shortconv/capability.hpp"
#include "shortconv/status.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

inline void append(std::string& text, std::string_view part) { text += part; }
inline void append(std::string& text, std::int64_t part) { text += std::to_string(part); }

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

/// A size that several arguments share.
struct Symbol {
  std::string_view name;
  std::int64_t value = -1;
  std::string_view owner = {};  // the argument that fixed it
};

/// The addresses a tensor can touch, in bytes relative to its data pointer; [0, 0) if it has no
/// elements.
struct Extent {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// False if the extent does not fit into 62 bits.
[[nodiscard]] inline bool extent_of(const TensorRef& tensor, Extent& extent) {
  constexpr __int128 kLimit = static_cast<__int128>(1) << 62;
  __int128 low = 0, high = 0;
  extent = {};
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    if (tensor.shape[axis] == 0) return true;
  }
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    const __int128 reach = static_cast<__int128>(tensor.shape[axis] - 1) * tensor.strides[axis];
    (reach < 0 ? low : high) += reach;
  }
  low *= element_bytes(tensor.dtype);
  high = (high + 1) * element_bytes(tensor.dtype);
  if (low < -kLimit || high > kLimit) return false;
  extent = {static_cast<std::int64_t>(low), static_cast<std::int64_t>(high)};
  return true;
}

/// Whether two tensors reach into each other's memory; both have passed Checker::tensor.
[[nodiscard]] inline bool ranges_overlap(const TensorRef& a, const TensorRef& b) {
  const auto range_of = [](const TensorRef& tensor) {
    Extent extent;
    (void)extent_of(tensor, extent);
    const auto base = reinterpret_cast<std::uintptr_t>(tensor.data);
    return std::array{base + static_cast<std::uintptr_t>(extent.begin),
                      base + static_cast<std::uintptr_t>(extent.end)};
  };
  const auto [a_begin, a_end] = range_of(a);
  const auto [b_begin, b_end] = range_of(b);
  return a_begin < a_end && b_begin < b_end && a_begin < b_end && b_begin < a_end;
}

constexpr std::initializer_list<DType> kFloats = {DType::kF32, DType::kF16, DType::kBF16,
                                                  DType::kF64};
constexpr std::initializer_list<DType> kIndices = {DType::kI32, DType::kI64};

/// The address of an argument, null for an absent one.
[[nodiscard]] inline void* data_of(const std::optional<TensorRef>& tensor) {
  return tensor ? tensor->data : nullptr;
}

class Checker {
 public:
  [[nodiscard]] bool ok() const { return status_.ok(); }
  [[nodiscard]] const Status& status() const { return status_; }

  /// Records the violation `argument: text` unless `condition` holds or one was found before.
  template <typename... Parts>
  bool require(bool condition, std::string_view argument, const Parts&... text) {
    if (!condition && ok()) {
      status_ = Status(Code::kInvalidArgument, concat(argument, ": ", text...));
    }
    return ok();
  }

  /// Number of axes, sizes, memory: what holds for every tensor argument.
  Checker& tensor(std::string_view argument, const TensorRef& tensor,
                  std::initializer_list<Symbol*> sizes) {
    const auto axes = static_cast<std::int64_t>(sizes.size());
    if (!ok()) return *this;
    if (tensor.ndim != axes) {  // the text is built on failure only: this runs on every call
      require(false, argument, "expected ", axes, " axes", names_of(sizes), ", got ",
              std::int64_t{tensor.ndim});
      return *this;
    }
    int axis = 0;
    for (Symbol* size : sizes) match(argument, tensor, axis++, *size);
    if (!ok()) return *this;
    Extent extent;
    require(extent_of(tensor, extent), argument, "shape and strides reach beyond 2^62 bytes");
    require(tensor.data != nullptr || extent.end == 0, argument,
            "data is null, but the shape has elements");
    return *this;
  }

  Checker& dtype(std::string_view argument, const TensorRef& tensor,
                 std::initializer_list<DType> allowed) {
    if (std::find(allowed.begin(), allowed.end(), tensor.dtype) != allowed.end()) return *this;
    std::string list;
    for (DType one : allowed) {
      if (!list.empty()) list += ", ";
      list += name(one);
    }
    require(false, argument, "dtype ", name(tensor.dtype), " is not supported (", list, ")");
    return *this;
  }

  Checker& device(std::string_view argument, const TensorRef& tensor, Device expected,
                  std::string_view owner = "x") {
    require(tensor.device == expected, argument, "is on device ",
            static_cast<std::int64_t>(tensor.device.type), ":", std::int64_t{tensor.device.index},
            ", but ", owner, " is on ", static_cast<std::int64_t>(expected.type), ":",
            std::int64_t{expected.index});
    return *this;
  }

 private:
  static std::string names_of(std::initializer_list<Symbol*> sizes) {
    std::string text = " [";
    for (const Symbol* size : sizes) {
      if (text.size() > 2) text += ", ";
      text += size->name;
    }
    return text + "]";
  }

  void match(std::string_view argument, const TensorRef& tensor, int axis, Symbol& size) {
    const std::int64_t extent = tensor.shape[axis];
    if (!require(extent >= 0, argument, "axis ", std::int64_t{axis}, " ('", size.name, "') is ",
                 extent, "; sizes are not negative")) {
      return;
    }
    if (size.value < 0) {
      size.value = extent;
      size.owner = argument;
      return;
    }
    require(extent == size.value, argument, "axis ", std::int64_t{axis}, " ('", size.name, "') is ",
            extent, ", but ", size.owner, " made '", size.name, "' = ", size.value);
  }

  Status status_;
};

// Written tensors must not map two indices to one element; a zero stride is how that happens by
// mistake.
inline void check_written(Checker& check, std::string_view argument, const TensorRef& tensor) {
  if (!check.ok()) return;  // the number of axes may be anything
  const bool empty =
      std::any_of(tensor.shape, tensor.shape + tensor.ndim, [](std::int64_t n) { return n == 0; });
  if (empty) return;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    check.require(tensor.strides[axis] != 0 || tensor.shape[axis] <= 1, argument, "axis ",
                  std::int64_t{axis}, " has stride 0 but is written");
  }
}

// Callers may hand over any number as an enumerator, through the C ABI above all.
template <typename T, std::size_t kCount>
void check_listed(Checker& check, std::string_view argument,
                  const std::array<Named<T>, kCount>& list, T value) {
  const bool found =
      std::any_of(list.begin(), list.end(), [&](const auto& row) { return row.value == value; });
  if (found) return;
  std::string names;
  for (const auto& row : list) names += concat(names.empty() ? "" : ", ", row.name);
  check.require(false, argument, "value ", static_cast<std::int64_t>(value), " is not known (",
                names, ")");
}

}  // namespace shortconv
