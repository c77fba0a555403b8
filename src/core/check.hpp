// Validation of arguments. The first error is kept as a Status and everything after it is
// ignored, so rules read as a list.
#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/status.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

inline void append(std::string& text, std::string_view part) { text += part; }
inline void append(std::string& text, std::int64_t part) { text += std::to_string(part); }
inline void append(std::string& text, float part) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%g", static_cast<double>(part));
  text += digits;
}

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

/// A size that several arguments share.
struct SharedSize {
  const char* name = "";
  std::int64_t value = -1;
  const char* owner = "";  // the argument that fixed it
};

/// Byte range that a tensor can touch, relative to its data pointer; [0, 0) without elements.
struct Extent {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// False if the extent does not fit into 62 bits.
[[nodiscard]] bool extent_of(const TensorRef& tensor, Extent& extent);

/// Largest size of an axis: sums and products of a size and a few small numbers fit into 64 bits.
inline constexpr std::int64_t kMaxSize = std::int64_t{1} << 52;

/// Limit of products of sizes, which strides of 0 and tensors without elements do not bound.
inline constexpr __int128 kMaxProduct = static_cast<__int128>(1) << 62;

/// Whether two elements of a tensor share memory. Strides whose ranges interleave are searched for
/// a collision in a bounded number of steps; false then means that none was found.
[[nodiscard]] bool overlaps_itself(const TensorRef& tensor, Access access);

/// An argument that was checked, for the overlap checks.
struct CheckedTensor {
  std::string_view name;
  const TensorRef* tensor;
  std::uintptr_t begin, end;
  bool written;

  [[nodiscard]] bool overlaps(const CheckedTensor& other) const {
    return begin < other.end && other.begin < end && begin < end && other.begin < other.end;
  }
};

/// Tensors of the operation that has most, a call with groups and gates.
inline constexpr std::size_t kMaxTensors = [] {
  std::size_t forward = kMaxGroups, backward = kMaxGroups;
  const auto count = [](std::size_t& number) {
    return [&number](const Argument&, const auto&) { ++number; };
  };
  const ForwardTensors<TensorPointer> tensors;
  visit_forward_tensors(count(forward), tensors);
  const GateTensors<TensorPointer> gates;
  visit_gate_tensors(count(forward), gates);
  const BackwardTensors<TensorPointer> gradients;
  visit_backward_tensors(count(backward), gradients);
  const GateGradientTensors<TensorPointer> gate_gradients;
  visit_gate_gradient_tensors(count(backward), gate_gradients);
  return std::max(forward, backward);
}();

class Checker {
 public:
  [[nodiscard]] bool ok() const { return status_.ok(); }
  [[nodiscard]] const Status& status() const { return status_; }

  /// Records the error `argument: text` unless `condition` holds or one was recorded before.
  template <typename... Parts>
  bool require(bool condition, std::string_view argument, const Parts&... text) {
    if (!condition && ok()) {
      status_ = Status(Code::kInvalidArgument, concat(argument, ": ", text...));
    }
    return ok();
  }

  /// Number of axes, sizes, address and byte extent.
  Checker& tensor(std::string_view argument, const TensorRef& tensor,
                  std::span<SharedSize* const> sizes);
  Checker& tensor(std::string_view argument, const TensorRef& tensor,
                  std::initializer_list<SharedSize*> sizes) {
    return this->tensor(argument, tensor, std::span(sizes.begin(), sizes.size()));
  }
  Checker& dtype(std::string_view argument, const TensorRef& tensor,
                 std::span<const DType> allowed) {
    if (std::ranges::find(allowed, tensor.dtype) == allowed.end()) {
      refuse_dtype(argument, tensor, allowed);
    }
    return *this;
  }
  Checker& device(std::string_view argument, const TensorRef& tensor, Device expected,
                  std::string_view owner) {
    if (tensor.device != expected) refuse_device(argument, tensor, expected, owner);
    return *this;
  }
  /// Refuses elements of the written tensor that was checked last if they share memory.
  Checker& check_written(std::string_view argument, const TensorRef& tensor,
                         Access access = Access::kWrite);

  /// Refuses a value that is not in `list`; the C ABI can pass any number.
  template <typename T, std::size_t kCount>
  void check_enumerator(std::string_view argument, const std::array<Named<T>, kCount>& list,
                        T value) {
    if (std::ranges::any_of(list, [&](const auto& row) { return row.value == value; })) return;
    std::string names;
    for (const auto& row : list) names += concat(names.empty() ? "" : ", ", row.name);
    require(false, argument, "value ", static_cast<std::int64_t>(value), " is not known (", names,
            ")");
  }

  /// Whether the tensor checked last has elements.
  [[nodiscard]] bool has_elements() const { return extent_.begin != extent_.end; }

  /// Keeps the tensor checked last for check_overlaps.
  void record(std::string_view argument, const TensorRef& tensor, bool is_written) {
    const auto base = reinterpret_cast<std::uintptr_t>(tensor.data);
    checked_[checked_count_++] = {.name = argument,
                                  .tensor = &tensor,
                                  .begin = base + static_cast<std::uintptr_t>(extent_.begin),
                                  .end = base + static_cast<std::uintptr_t>(extent_.end),
                                  .written = is_written};
  }
  /// Refuses a written tensor that overlaps another one, unless allowed(written, other).
  template <typename Allowed>
  void check_overlaps(const Allowed& allowed) {
    for (std::size_t i = 0; ok() && i < checked_count_; ++i) {
      const CheckedTensor& written = checked_[i];
      if (!written.written) continue;
      for (std::size_t j = 0; j < checked_count_; ++j) {
        const CheckedTensor& other = checked_[j];
        if (!written.overlaps(other) || j == i || (other.written && j > i)) continue;
        if (!allowed(written, other)) require(false, written.name, "overlaps ", other.name);
      }
    }
  }

 private:
  // Texts are built on failure only, out of line: the checks run on every call.
  void refuse_size(std::string_view argument, const TensorRef& tensor, int axis,
                   const SharedSize& size);
  void refuse_dtype(std::string_view argument, const TensorRef& tensor,
                    std::span<const DType> allowed);
  void refuse_device(std::string_view argument, const TensorRef& tensor, Device expected,
                     std::string_view owner);
  void refuse_shared_elements(std::string_view argument, const TensorRef& tensor, Access access);

  Status status_;
  Extent extent_;  // of the tensor checked last
  std::array<CheckedTensor, kMaxTensors> checked_;
  std::size_t checked_count_ = 0;
};

inline constexpr std::array kFloatingDTypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kF64};
inline constexpr std::array kIndexDTypes = {DType::kI32, DType::kI64};

/// The address of an argument, null for an absent one.
[[nodiscard]] inline void* data_of(const TensorRef& tensor) { return tensor.data; }
[[nodiscard]] inline void* data_of(const std::optional<TensorRef>& tensor) {
  return tensor ? tensor->data : nullptr;
}

/// Checks the rows of the table of arguments and fills their layouts.
class ArgumentChecker : public Checker {
 public:
  /// `first` is the argument whose device the others must share.
  ArgumentChecker(std::string_view first, Device device);

  [[nodiscard]] SharedSize& size(Size size) { return sizes_[static_cast<std::size_t>(size)]; }
  [[nodiscard]] std::int64_t value(Size size) { return this->size(size).value; }

  template <Axis... kAxes>
  void check(const Argument& row, const TensorRef& tensor, TensorLayout<kAxes...>& layout,
             AxisSet absent = {}) {
    if (!ok()) return;
    std::array<SharedSize*, sizeof...(kAxes)> sizes;
    std::size_t axes = 0, number = 0;
    const auto add = [&](Axis axis) {
      const Size size = row.sizes[number++];
      if (!absent.contains(axis)) sizes[axes++] = &this->size(size);
    };
    (add(kAxes), ...);
    if (!check(row, tensor, std::span(sizes).first(axes))) return;
    assign(layout, tensor, has_elements(), absent);
  }
  template <Axis... kAxes>
  void check(const Argument& row, const std::optional<TensorRef>& tensor,
             TensorLayout<kAxes...>& layout, AxisSet absent = {}) {
    if (tensor) check(row, *tensor, layout, absent);
  }

  /// Width and dilation of the convolution, once the weight has been checked.
  void check_width(std::int64_t dilation);

  /// Dtypes that other arguments have to share, set once they are known.
  DType x_dtype{}, weight_dtype{}, state_dtype{};

 private:
  bool check(const Argument& row, const TensorRef& tensor, std::span<SharedSize* const> sizes);
  [[nodiscard]] std::span<const DType> allowed_dtypes(DTypes dtypes);

  std::string_view first_;
  Device device_;
  std::array<SharedSize, kSizes> sizes_;
  std::array<DType, 2> like_or_f32_{};  // of the tensor checked last
};

/// make_problem of an operation, whose rules are in AnyChecker::check_all.
template <typename AnyChecker, typename Args, typename AnyProblem>
[[nodiscard]] Status make_checked_problem(const Args& args, AnyProblem& problem) {
  AnyProblem made;
  AnyChecker checker(args, made);
  checker.check_all();
  if (!checker.ok()) return checker.status();
  problem = made;
  return {};
}

/// A backend whose kernels are for f32, f16 and bf16 refuses other types with it.
[[nodiscard]] Status refuse_f64(BackendId backend);

}  // namespace shortconv
