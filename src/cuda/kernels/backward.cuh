// Backward calls: the gradients of x, of gates and of initial states, and partial sums of those of
// weight and bias, which backward_sums.cuh adds up.
//
// Threads: a warp processes a strip of up to 128 rows, one row after the other. If channels are
// adjacent (device/backward_strip.cuh), a lane has 2 or 4 of them, 128 or 256 bytes of a row.
// Otherwise (device/channel_strip.cuh) it has one, and copies are 64 bytes of each channel. The
// warps of a block have adjacent strips of the same channels. Strips follow from the shape alone
// (host/backward.hpp), so the sums do too.
//
// Bytes moved: x and grad_out once in, grad_x once out, gates and their gradients once; of every
// 128 rows width - 1 of grad_out and twice as many of x again; the partial sums, less than 1% of
// the rest. Ceiling: a copy of the same bytes. A batch of rows is computed while the next ones are
// on their way to shared memory: copies that need no registers keep enough bytes in flight with 16
// warps a multiprocessor at width 4, whose windows, sums and weights take 128 registers, and with 8
// at width 8.
//
// Calls with groups launch a kernel for each group (host/backward_groups.cpp). If its results are
// normalized, all channels of a head are in one warp, which adds up two sums for each row.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/backward_strip.cuh"
#include "cuda/device/channel_strip.cuh"
#include "cuda/device/memory.cuh"

namespace shortconv::cuda {

/// Adds up the strips of a block in fp64, in order, and stores the sums as fp32 from `channel` on
/// to the rows of `to`. `sums` has [kUnitStrips][kRows][kColumns]; a warp takes a row.
template <int kRows, int kGroup>
__device__ inline void store_unit_sums(const float* sums, float* to, int channel, int channels) {
  constexpr int kColumns = 32 * kGroup;
  const int column = static_cast<int>(threadIdx.x % 32) * kGroup;
  for (int row = static_cast<int>(threadIdx.x / 32); row < kRows; row += kUnitStrips) {
    double sum[kGroup] = {};
#pragma unroll
    for (int strip = 0; strip < kUnitStrips; ++strip) {
      float values[kGroup];
      load_shared(sums + (strip * kRows + row) * kColumns + column, values);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sum[c] += static_cast<double>(values[c]);
    }
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      if (channel + column + c >= channels) continue;
      to[row * std::int64_t{channels} + channel + column + c] = static_cast<float>(sum[c]);
    }
  }
}

template <typename Strip>
__global__ void __maxnreg__(Strip::Shape::kRegisters)
    backward_strips(const __grid_constant__ BackwardKernelParams params) {
  using Shape = typename Strip::Shape;
  constexpr int kColumns = 32 * Shape::kGroup, kRows = Shape::kWidth + (Shape::kHasBias ? 1 : 0);
  static_assert(kRows * kColumns * sizeof(float) <= Strip::Rows::kBytes,
                "the sums replace the rows in shared memory");
  if (blockIdx.x >= params.pdl_launch_from) pdl_launch_dependents();
  if constexpr (Shape::kHasGroups) pdl_overlap();
  const FastDivisor& inner_blocks = Strip::kUnitsAreAdjacent ? params.units : params.channel_blocks;
  const std::uint32_t outer = inner_blocks.divide(blockIdx.x);
  const std::uint32_t inner = blockIdx.x - outer * inner_blocks.divisor();
  const std::uint32_t unit = Strip::kUnitsAreAdjacent ? inner : outer;
  const int channel = static_cast<int>(Strip::kUnitsAreAdjacent ? outer : inner) * kColumns;
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x / 32), 0);
  const std::int64_t first = params.partition.first_row(unit, warp);
  char* memory = dynamic_shared_memory();
  typename Shape::Window weight_sums = {};
  typename Shape::Values bias_sums = {};
  if (first < params.tokens) {
    const int rows = params.partition.strip_rows(unit);
    const int end = min(static_cast<int>(first) + rows, params.tokens);
    Strip strip(params, memory + warp * Strip::Rows::kBytes, static_cast<int>(first), end, channel);
    strip.run(weight_sums, bias_sums);
  }
  if constexpr (Shape::kHasGroups) pdl_wait();
  if (params.partial_sums == nullptr) return;
  wait_for_copies<0>();
  __syncthreads();
  auto* sums = reinterpret_cast<float*>(memory);
  const int column = static_cast<int>(threadIdx.x % 32) * Shape::kGroup;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    store_shared(sums + (warp * kRows + k) * kColumns + column,
                 k < Shape::kWidth ? weight_sums[k % Shape::kWidth] : bias_sums);
  }
  __syncthreads();
  store_unit_sums<kRows, Shape::kGroup>(
      sums, params.partial_sums + std::int64_t{unit} * (Shape::kWidth + 1) * params.channels,
      channel, params.channels);
}

}  // namespace shortconv::cuda
