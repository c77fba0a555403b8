// Random tensors in allocations of their own.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/random.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv::tools::verify {

/// A tensor in an allocation of its own.
struct TensorSpec {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // in elements
  std::int64_t origin = 0;            // element of the allocation that has all indices 0
  std::int64_t elements = 1;          // of the allocation

  [[nodiscard]] std::int64_t offset(std::initializer_list<std::int64_t> index) const;

  /// x and out: rows of all sequences numbered through, whether packed or dense.
  [[nodiscard]] std::int64_t row_offset(std::int64_t row, std::int64_t channel) const;
};

[[nodiscard]] TensorSpec dense(DType dtype, std::vector<std::int64_t> shape);

/// Calls `visit` with the offset of every element, the last axis running fastest.
template <typename Visit>
void for_each_element(const TensorSpec& spec, Visit&& visit) {
  std::vector<std::int64_t> index(spec.shape.size());
  std::int64_t count = 1;
  for (std::int64_t extent : spec.shape) count *= extent;
  std::int64_t offset = spec.origin;
  for (; count > 0; --count) {
    visit(offset);
    for (std::size_t axis = index.size(); axis-- > 0;) {
      offset += spec.strides[axis];
      if (++index[axis] < spec.shape[axis]) break;
      offset -= index[axis] * spec.strides[axis];
      index[axis] = 0;
    }
  }
}

struct IndexTensor {
  TensorSpec spec;
  std::vector<std::int64_t> values;  // the last axis running fastest
};

/// Axes from the slowest to the fastest.
using Order = std::vector<int>;

struct Spread {
  std::int64_t inner_stride = 1;
  double padding = 0.3;  // probability of a gap after an axis
  double reversal = 0;   // probability that an axis runs backwards
};

/// Any placement that maps no two elements to one address, at any alignment that the element type
/// allows.
[[nodiscard]] TensorSpec lay_out(Random& random, DType dtype,
                                 const std::vector<std::int64_t>& shape, const Order& order,
                                 const Spread& spread);

[[nodiscard]] TensorSpec lay_out_list(Random& random, DType dtype, std::int64_t entries);

/// A list of i32 or i64.
[[nodiscard]] IndexTensor make_index(Random& random, std::vector<std::int64_t> values);

/// Mostly one that has kernels of its own.
[[nodiscard]] int make_width(Random& random);

/// Indices of [0, count) in random order.
[[nodiscard]] std::vector<std::int64_t> shuffled(Random& random, std::int64_t count);

/// What a careless caller may leave in an index tensor about [0, limit).
[[nodiscard]] std::int64_t bad_index(Random& random, DType dtype, std::int64_t limit);

[[nodiscard]] std::string describe(const TensorSpec& spec);

/// A line, or nothing for an absent tensor.
[[nodiscard]] std::string describe(std::string_view label, const std::optional<IndexTensor>& index);

}  // namespace shortconv::tools::verify
