// Backward calls of any kind: different dtypes, any strides, widths up to 64, dilation, unaligned
// addresses, more than 2^31 rows. Every result has the bits of backward.cuh.
//
// Threads: a thread processes one channel of a strip, 8 rows at a time
// (device/runtime_backward_strip.cuh). A block has the strips of a unit, so the sums are divided as
// everywhere, of 32 adjacent channels, or fewer if shared memory has no room for them.
//
// Bytes moved: as backward.cuh. Ceiling: three times a copy of these bytes for widths up to 8,
// because each load and store moves one element unless tokens are adjacent; then the arithmetic,
// three multiply-adds for each tap.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/device/memory.cuh"
#include "cuda/device/runtime_backward_strip.cuh"

namespace shortconv::cuda {

/// The taps of `channels` channels from `first` on, as fp32. All threads of a block call it.
__device__ inline void load_taps(const BackwardGeneralParams& params, std::int64_t first,
                                 int channels, float4* quads) {
  const BackwardProblem& p = params.problem;
  for (int i = static_cast<int>(threadIdx.x); i < p.width * channels;
       i += static_cast<int>(blockDim.x)) {
    const int column = i % channels, tap = i / channels;
    if (first + column >= p.channels) continue;
    const QuadColumn taps = {quads + column, channels};
    taps.at(RuntimeBackwardStrip::tap_indices(p).first + tap) =
        load_f32(p.weight.dtype, params.pointers.weight,
                 (first + column) * p.weight.channel_stride + tap * p.weight.tap_stride);
  }
}

/// Adds up the strips of a block in fp64, in order, and stores the sums as fp32. All threads of a
/// block call it.
__device__ inline void store_general_sums(const BackwardGeneralParams& params, std::uint32_t unit,
                                          std::int64_t first, int channels, float4* quads) {
  const BackwardProblem& p = params.problem;
  const auto threads = static_cast<int>(blockDim.x);
  auto* to = static_cast<float*>(params.pointers.workspace) +
             std::int64_t{unit} * (p.width + 1) * p.channels;
  for (int i = static_cast<int>(threadIdx.x); i < (p.width + 1) * channels; i += threads) {
    const int row = i / channels, column = i % channels;
    if (first + column >= p.channels) continue;
    const int index = row == p.width ? RuntimeBackwardStrip::kBiasSum
                                     : RuntimeBackwardStrip::tap_indices(p).first + row;
    double sum = 0;
    for (int strip = 0; strip < kUnitStrips; ++strip) {
      const QuadColumn sums = {quads + strip * channels + column, threads};
      sum += static_cast<double>(sums.at(index));
    }
    to[row * p.channels + first + column] = static_cast<float>(sum);
  }
}

__global__ void __launch_bounds__(kBackwardThreads, 2)
    backward_general(const __grid_constant__ BackwardGeneralParams params) {
  const BackwardProblem& p = params.problem;
  const std::uint32_t unit = params.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * params.channel_blocks.divisor();
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int channels = threads / kUnitStrips;
  const std::int64_t first_channel = std::int64_t{block} * channels;
  auto* quads = reinterpret_cast<float4*>(dynamic_shared_memory());
  float4* taps = quads + general_backward_quads(p.width, history_of(p)) * threads;
  load_taps(params, first_channel, channels, taps);
  __syncthreads();
  const int strip = thread / channels, column = thread % channels;
  const std::int64_t first = params.partition.first_row(unit, strip);
  const std::int64_t end = min(first + params.partition.strip_rows(unit), p.tokens);
  const QuadColumn sums = {quads + thread, threads};
  for (int i = 0; i < 4 * general_backward_tap_quads(p.width); ++i) sums.at(i) = 0;
  if (first < p.tokens && first_channel + column < p.channels) {
    RuntimeBackwardStrip rows(params, first, end, first_channel + column, {taps + column, channels},
                              sums);
    rows.run();
  }
  if (!p.grad_weight.present && !p.grad_bias.present) return;
  __syncthreads();
  store_general_sums(params, unit, first_channel, channels, quads);
}

}  // namespace shortconv::cuda
