// Columns of heads in a row, for calls with groups.
#pragma once

#include <cstdint>

#include "cuda/launch_params.hpp"

namespace shortconv::cuda {

__device__ inline std::int32_t column_of(const HeadColumns& columns, std::uint32_t head) {
  const std::uint32_t block = columns.block_heads.divide_above_1(head);
  const std::uint32_t in_block = head - block * columns.block_heads.divisor();
  return columns.column + static_cast<std::int32_t>(block) * columns.block_stride +
         static_cast<std::int32_t>(in_block) * columns.head_stride;
}

}  // namespace shortconv::cuda
