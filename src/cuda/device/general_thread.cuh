// The work of a thread of the general kernels.
#pragma once

#include <cstdint>

#include "cuda/launch_params.hpp"

namespace shortconv::cuda {

struct GeneralThread {
  std::uint32_t unit;
  std::int64_t channel;

  __device__ GeneralThread(const LaunchParams& grid, int block_channels)
      : unit(grid.channel_blocks.divide(blockIdx.x)) {
    const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
    channel = std::int64_t{block} * block_channels + threadIdx.x % block_channels;
  }
};

}  // namespace shortconv::cuda
