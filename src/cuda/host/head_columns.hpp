// The columns and channels of a group, as kernels take them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/host/numbers.hpp"
#include "cuda/launch_params.hpp"
#include "shortconv/groups.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv::cuda {

[[nodiscard]] constexpr FastDivisor divisor(std::int64_t number) {
  return FastDivisor(static_cast<std::uint32_t>(number));
}

/// The columns of a map, times `column_stride`. They have been found to fit into 31 bits.
[[nodiscard]] inline HeadColumns columns_of(const HeadMap& map, std::int64_t heads,
                                            std::int64_t column_stride) {
  // Blocks of one head are one block of heads that far apart.
  const bool single = map.block_heads == 1 && heads > 1;
  const std::int64_t block_heads = single ? heads : std::min(map.block_heads, heads);
  return {.block_heads = divisor(std::max<std::int64_t>(block_heads, 2)),
          .column = narrow(map.offset * column_stride),
          .head_stride = narrow((single ? map.block_stride : map.head_stride) * column_stride),
          .block_stride = narrow(map.block_stride * column_stride)};
}

/// Moves `data` past `channels` channels, to the first one of a group.
template <typename Layout>
void skip_channels(const Layout& layout, void*& data, std::int64_t channels) {
  if (!layout.present) return;
  data = static_cast<char*>(data) + channels * layout.channel_stride * element_bytes(layout.dtype);
}

}  // namespace shortconv::cuda
