#include "core/check.hpp"

#include <cstdlib>

#include "core/capability.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

constexpr std::array kBoolDTypes = {DType::kBool, DType::kU8};
constexpr std::array kF32DTypes = {DType::kF32};
constexpr std::array kI32DTypes = {DType::kI32};
constexpr std::array kI64DTypes = {DType::kI64};

/// Names of DLPack's type codes: those up to 6 exist with several numbers of bits, which are
/// appended. https://dmlc.github.io/dlpack/latest/c_api.html
constexpr std::array<std::string_view, 18> kTypeCodes = {
    "i",       "u",           "f",          "handle",         "bf",        "complex",
    "bool",    "f8_e3m4",     "f8_e4m3",    "f8_e4m3b11fnuz", "f8_e4m3fn", "f8_e4m3fnuz",
    "f8_e5m2", "f8_e5m2fnuz", "f8_e8m0fnu", "f6_e2m3fn",      "f6_e3m2fn", "f4_e2m1fn"};
constexpr std::size_t kLastCodeWithBits = 6;

std::string text_of(DType dtype) {
  const std::string_view known = name(dtype);
  if (!known.empty()) return std::string(known);
  const auto number = static_cast<std::size_t>(dtype);
  const std::size_t code = number >> 8;
  const auto bits = static_cast<std::int64_t>(number & 0xff);
  if (code >= kTypeCodes.size()) {
    return concat("of DLPack's type code ", static_cast<std::int64_t>(code), " with ", bits,
                  " bits");
  }
  if (code > kLastCodeWithBits) return std::string(kTypeCodes[code]);
  return concat(kTypeCodes[code], bits);
}

std::string names_of(std::span<SharedSize* const> sizes) {
  std::string text = " [";
  for (const SharedSize* size : sizes) {
    if (text.size() > 2) text += ", ";
    text += size->name;
  }
  return text + "]";
}

constexpr std::array<SharedSize, kSizes> kInitialSizes = [] {
  std::array<SharedSize, kSizes> sizes;
  const auto set = [&](Size size, SharedSize shared) {
    sizes[static_cast<std::size_t>(size)] = shared;
  };
  set(Size::kLayers, {"layers"});
  set(Size::kSequences, {"sequences"});
  set(Size::kSequencesPlusOne, {"sequences + 1"});
  set(Size::kTokens, {"tokens"});
  set(Size::kRows, {"rows"});
  set(Size::kChannels, {"channels"});
  set(Size::kWidth, {"width"});
  set(Size::kHistory, {"width - 1"});
  set(Size::kSlots, {"slots"});
  set(Size::kColumns, {"columns"});
  set(Size::kIntermediateSlots, {"intermediate slots"});
  set(Size::kIntermediateTokens, {"intermediate tokens"});
  set(Size::kSnapshots, {"snapshots"});
  set(Size::kSnapshotFields, {"sequence, token, slot", 3, "the library"});
  set(Size::kBlocks, {"blocks"});
  set(Size::kViolations, {"violations", kViolations, "the library"});
  set(Size::kViolationFields, {"count and first", 2, "the library"});
  set(Size::kColumnsOfX, {"columns"});
  set(Size::kColumnsOfA, {"columns"});
  set(Size::kColumnsOfB, {"columns"});
  set(Size::kHeads, {"heads"});
  set(Size::kHeadDim, {"head_dim"});
  return sizes;
}();

/// An axis with more than one element.
struct Steps {
  std::int64_t stride = 0;  // positive
  std::int64_t most = 0;    // largest difference of two indices
  std::int64_t reach = 0;   // of this axis and all with smaller strides: most * stride, added up
};

/// Searches differences of indices, not all 0, whose elements have one address. `axes` are ordered
/// by falling stride; `distance` is that of the axes before them. Each axis leaves few candidates,
/// because the smaller strides have to make up for the distance.
bool find_collision(std::span<const Steps> axes, std::int64_t distance, bool is_same_element,
                    int& steps_left) {
  if (axes.empty()) return distance == 0 && !is_same_element;
  const Steps& axis = axes.front();
  const std::int64_t rest = axis.reach - axis.most * axis.stride;
  std::int64_t first = -((rest + distance) / axis.stride);
  const std::int64_t last = std::min((rest - distance) / axis.stride, axis.most);
  // The mirror image of a collision is one too, so the first difference may be positive.
  first = std::max(first, is_same_element ? 0 : -axis.most);
  for (std::int64_t steps = first; steps <= last && steps_left > 0; ++steps) {
    --steps_left;
    const std::int64_t next = distance + steps * axis.stride;
    if (std::abs(next) > rest) continue;
    if (find_collision(axes.subspan(1), next, is_same_element && steps == 0, steps_left)) {
      return true;
    }
  }
  return false;
}

}  // namespace

bool overlaps_itself(const TensorRef& tensor, Access access) {
  constexpr int kMaxSteps = 10000;
  std::array<Steps, kMaxDims> axes;
  std::size_t count = 0;
  std::int64_t previous_stride = 0;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    const std::int64_t stride = tensor.strides[axis];
    if (tensor.shape[axis] == 1) continue;
    if (access == Access::kWriteOverlap && count > 0 && stride == previous_stride) {
      axes[count - 1].most += tensor.shape[axis] - 1;
      continue;
    }
    axes[count++] = {.stride = std::abs(stride), .most = tensor.shape[axis] - 1};
    previous_stride = stride;
  }
  const std::span used(axes.data(), count);
  for (std::size_t i = 1; i < count; ++i) {  // GCC 12 warns of std::sort on so few
    for (std::size_t j = i; j > 0 && axes[j - 1].stride < axes[j].stride; --j) {
      std::swap(axes[j - 1], axes[j]);
    }
  }
  if (!used.empty() && used.back().stride == 0) return true;
  std::int64_t reach = 0;
  bool is_nested = true;
  for (std::size_t i = count; i-- > 0;) {
    is_nested = is_nested && used[i].stride > reach;
    reach += used[i].most * used[i].stride;
    used[i].reach = reach;
  }
  int steps_left = kMaxSteps;
  return !is_nested && find_collision(used, 0, true, steps_left);
}

bool extent_of(const TensorRef& tensor, Extent& extent) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 62;
  std::int64_t low = 0, high = 0;
  bool overflow = false;
  extent = {};
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    if (tensor.shape[axis] == 0) return true;
  }
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    std::int64_t reach = 0;
    overflow |= __builtin_mul_overflow(tensor.shape[axis] - 1, tensor.strides[axis], &reach);
    std::int64_t& end = reach < 0 ? low : high;
    overflow |= __builtin_add_overflow(end, reach, &end);
  }
  const std::int64_t bytes = element_bytes(tensor.dtype);
  overflow |= __builtin_mul_overflow(low, bytes, &low);
  overflow |= __builtin_add_overflow(high, 1, &high);
  overflow |= __builtin_mul_overflow(high, bytes, &high);
  if (overflow || low < -kLimit || high > kLimit) return false;
  extent = {low, high};
  return true;
}

Checker& Checker::tensor(std::string_view argument, const TensorRef& tensor,
                         std::span<SharedSize* const> sizes) {
  const auto axes = static_cast<std::int64_t>(sizes.size());
  if (!ok()) return *this;
  if (tensor.ndim != axes) {  // the text is built on failure only: this runs on every call
    require(false, argument, "expected ", axes, " axes", names_of(sizes), ", got ",
            std::int64_t{tensor.ndim});
    return *this;
  }
  int axis = 0;
  for (SharedSize* size : sizes) {
    const std::int64_t extent = tensor.shape[axis];
    if (size->value < 0 && extent >= 0 && extent <= kMaxSize) {
      size->value = extent;
      size->owner = argument.data();  // the names of arguments are literals
    } else if (extent != size->value || extent < 0) {
      refuse_size(argument, tensor, axis, *size);
    }
    ++axis;
  }
  if (!ok()) return *this;
  require(extent_of(tensor, extent_), argument, "shape and strides reach beyond 2^62 bytes");
  require(tensor.data != nullptr || extent_.end == 0, argument,
          "data is null, but the shape has elements");
  return *this;
}

void Checker::refuse_dtype(std::string_view argument, const TensorRef& tensor,
                           std::span<const DType> allowed) {
  std::string list;
  for (DType one : allowed) {
    if (!list.empty()) list += ", ";
    list += name(one);
  }
  require(false, argument, "dtype ", text_of(tensor.dtype), " is not supported (", list, ")");
}

void Checker::refuse_device(std::string_view argument, const TensorRef& tensor, Device expected,
                            std::string_view owner) {
  require(false, argument, "is on device ", static_cast<std::int64_t>(tensor.device.type), ":",
          std::int64_t{tensor.device.index}, ", but ", owner, " is on ",
          static_cast<std::int64_t>(expected.type), ":", std::int64_t{expected.index});
}

Checker& Checker::check_written(std::string_view argument, const TensorRef& tensor, Access access) {
  if (!ok() || !has_elements()) return *this;
  std::int64_t reach = 0;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] == 1) continue;
    if (tensor.strides[axis] <= reach) {
      refuse_shared_elements(argument, tensor, access);
      break;
    }
    reach += (tensor.shape[axis] - 1) * tensor.strides[axis];
  }
  return *this;
}

void Checker::refuse_shared_elements(std::string_view argument, const TensorRef& tensor,
                                     Access access) {
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    require(tensor.strides[axis] != 0 || tensor.shape[axis] == 1, argument, "axis ",
            std::int64_t{axis}, " has stride 0 but is written");
  }
  if (!ok() || !overlaps_itself(tensor, access)) return;
  std::string strides;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    strides += concat(axis == 0 ? "" : ", ", tensor.strides[axis]);
  }
  require(false, argument, "overlaps itself: with strides [", strides,
          "] several elements share memory, but all are written");
}

void Checker::refuse_size(std::string_view argument, const TensorRef& tensor, int axis,
                          const SharedSize& size) {
  const std::int64_t extent = tensor.shape[axis];
  require(extent >= 0, argument, "axis ", std::int64_t{axis}, " ('", size.name, "') is ", extent,
          "; sizes are not negative");
  require(extent <= kMaxSize, argument, "axis ", std::int64_t{axis}, " ('", size.name, "') is ",
          extent, "; sizes are at most 2^52");
  require(extent == size.value, argument, "axis ", std::int64_t{axis}, " ('", size.name, "') is ",
          extent, ", but ", size.owner, " made '", size.name, "' = ", size.value);
}

ArgumentChecker::ArgumentChecker(std::string_view first, Device device)
    : first_(first), device_(device), sizes_(kInitialSizes) {}

void ArgumentChecker::check_width(std::int64_t dilation) {
  constexpr std::int64_t kLongest = kMaxWidth - 1;
  const std::int64_t width = value(Size::kWidth);
  require(width >= kMinWidth && width <= kMaxWidth, "weight", "width ", width,
          " is not supported (", std::int64_t{kMinWidth}, " to ", std::int64_t{kMaxWidth}, ")");
  require(dilation >= 1, "dilation", "is ", dilation, "; expected 1 or more");
  require((width - 1) * dilation <= kLongest, "dilation", "is ", dilation, ", but with width ",
          width, " the history is ", (width - 1) * dilation, " inputs; expected at most ",
          kLongest);
}

std::span<const DType> ArgumentChecker::allowed_dtypes(DTypes dtypes) {
  const auto like_or_f32 = [this](DType dtype) {
    like_or_f32_ = {dtype, DType::kF32};
    return std::span<const DType>(like_or_f32_).first(dtype == DType::kF32 ? 1 : 2);
  };
  switch (dtypes) {
    case DTypes::kFloating:
      return kFloatingDTypes;
    case DTypes::kLikeX:
      return {&x_dtype, 1};
    case DTypes::kLikeWeight:
      return {&weight_dtype, 1};
    case DTypes::kLikeState:
      return {&state_dtype, 1};
    case DTypes::kLikeWeightOrF32:
      return like_or_f32(weight_dtype);
    case DTypes::kLikeStateOrF32:
      return like_or_f32(state_dtype);
    case DTypes::kF32:
      return kF32DTypes;
    case DTypes::kIndex:
      return kIndexDTypes;
    case DTypes::kI32:
      return kI32DTypes;
    case DTypes::kI64:
      return kI64DTypes;
    case DTypes::kBool:
      return kBoolDTypes;
  }
  return {};
}

bool ArgumentChecker::check(const Argument& row, const TensorRef& tensor,
                            std::span<SharedSize* const> sizes) {
  this->tensor(row.name, tensor, sizes)
      .dtype(row.name, tensor, allowed_dtypes(row.dtypes))
      .device(row.name, tensor, device_, first_);
  const bool written = is_written(row.access);
  if (written) check_written(row.name, tensor, row.access);
  if (!ok()) return false;
  record(row.name, tensor, written);
  SharedSize& plus_one = size(Size::kSequencesPlusOne);
  if (sizes[0] != &plus_one) return true;
  require(plus_one.value >= 1, row.name, "is empty; expected sequences + 1 entries");
  size(Size::kSequences) = {"sequences", plus_one.value - 1, row.name.data()};
  return ok();
}

Status refuse_f64(BackendId backend) {
  return {Code::kUnsupported, concat("backend: '", name_of(backend),
                                     "' does not support f64; expected the reference backend")};
}

}  // namespace shortconv
