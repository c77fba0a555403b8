#include "verify/layout.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "shortconv/capability.hpp"

namespace shortconv::tools::verify {

std::int64_t TensorSpec::offset(std::initializer_list<std::int64_t> index) const {
  std::int64_t at = origin;
  std::size_t axis = 0;
  for (std::int64_t i : index) at += i * strides[axis++];
  return at;
}

std::int64_t TensorSpec::row_offset(std::int64_t row, std::int64_t channel) const {
  if (shape.size() == 2) return offset({row, channel});
  return offset({row / shape[1], row % shape[1], channel});
}

TensorSpec dense(DType dtype, std::vector<std::int64_t> shape) {
  TensorSpec spec;
  spec.dtype = dtype;
  spec.shape = std::move(shape);
  spec.strides.resize(spec.shape.size());
  std::int64_t stride = 1;
  for (std::size_t axis = spec.shape.size(); axis-- > 0;) {
    spec.strides[axis] = stride;
    stride *= std::max<std::int64_t>(spec.shape[axis], 1);
  }
  spec.elements = stride;
  return spec;
}

TensorSpec lay_out(Random& random, DType dtype, const std::vector<std::int64_t>& shape,
                   const Order& order, const Spread& spread) {
  TensorSpec spec;
  spec.dtype = dtype;
  spec.shape = shape;
  spec.strides.resize(shape.size());
  std::int64_t stride = spread.inner_stride;
  std::int64_t below = 0, above = 0;  // elements before and after the one with all indices 0
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    const std::int64_t extent = std::max<std::int64_t>(shape[*axis], 1);
    const bool reversed = random.chance(spread.reversal);
    spec.strides[*axis] = reversed ? -stride : stride;
    (reversed ? below : above) += (extent - 1) * stride;
    stride *= extent;
    if (random.chance(spread.padding)) stride += random.pick({1, 3, 8, 16, 29});
  }
  const std::int64_t misalignment = random.chance(0.5) ? 0 : random.between(1, 7);
  spec.origin = below + misalignment;
  spec.elements = spec.origin + above + 1;
  return spec;
}

TensorSpec lay_out_list(Random& random, DType dtype, std::int64_t entries) {
  return lay_out(random, dtype, {entries}, {0},
                 {.inner_stride = random.chance(0.1) ? random.between(2, 3) : 1, .reversal = 0.05});
}

IndexTensor make_index(Random& random, std::vector<std::int64_t> values) {
  const DType dtype = random.chance(0.5) ? DType::kI32 : DType::kI64;
  const auto entries = static_cast<std::int64_t>(values.size());
  return {lay_out_list(random, dtype, entries), std::move(values)};
}

std::string describe(const TensorSpec& spec) {
  return fmt::format("{} [{}] strides ({}), element {} of {}", name(spec.dtype),
                     fmt::join(spec.shape, ", "), fmt::join(spec.strides, ", "), spec.origin,
                     spec.elements);
}

std::string describe(std::string_view label, const std::optional<IndexTensor>& index) {
  if (!index) return {};
  return fmt::format("  {} {} = {}\n", label, describe(index->spec), fmt::join(index->values, " "));
}

int make_width(Random& random) {
  const Capabilities& can = capabilities();
  if (random.chance(0.9)) return random.pick(can.widths);
  return static_cast<int>(random.between(can.widths.back() + 1, can.max_width));
}

std::vector<std::int64_t> shuffled(Random& random, std::int64_t count) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order);
  return order;
}

std::int64_t bad_index(Random& random, DType dtype, std::int64_t limit) {
  constexpr std::int64_t kSmallest = std::numeric_limits<std::int32_t>::min();
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  const bool wide = dtype == DType::kI64;
  return random.pick<std::int64_t>({random.between(-3, limit + 3), random.between(-3, limit + 3),
                                    kSmallest, kLargest, wide ? kSmallest << 32 : -limit,
                                    wide ? kLargest << 32 : 2 * limit});
}

}  // namespace shortconv::tools::verify
