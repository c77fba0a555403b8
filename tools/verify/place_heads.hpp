// The columns of the heads of a random call with groups.
#pragma once

#include <cstdint>

#include "common/random.hpp"
#include "shortconv/groups.hpp"

namespace shortconv::tools::verify {

/// A random map of `heads` heads in each of `blocks` blocks, `gap` columns apart, from `column` on;
/// moves `column` behind the heads of the first block.
[[nodiscard]] inline HeadMap place_heads(Random& random, std::int64_t blocks, std::int64_t heads,
                                         std::int64_t head_dim, std::int64_t gap,
                                         std::int64_t& column) {
  HeadMap map{.offset = column};
  const std::int64_t stride = head_dim + gap;
  if (gap > 0 || random.chance(0.3)) map.head_stride = stride;
  if (blocks > 1 || random.chance(0.3)) map.block_heads = heads;
  column += heads * stride;
  return map;
}

}  // namespace shortconv::tools::verify
