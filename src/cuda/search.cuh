// Which sequence a row belongs to, found by a warp together.
#pragma once

#include <cstdint>

#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
#include "op/sequence.hpp"

namespace shortconv::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

/// The row at which a sequence begins as it stands in memory, of an i64 the lower half: bounds that
/// fit the tensor fit 31 bits (select.cpp). Good for comparisons only, a bad value may be anything.
__device__ inline int stated_begin(const Addresses& at, const Grid& grid, int sequence) {
  return load_kept_int(static_cast<const char*>(at.query_start_loc) +
                       std::int64_t{sequence} * grid.begin_bytes);
}

/// find_sequence of op/sequence.hpp over packed rows with 32 probes at a time: one round of loads
/// for up to 32 sequences, two for up to 1056. All lanes ask for the same row and get the same
/// answer.
__device__ inline int find_sequence_by_warp(const Problem& p, const Addresses& at, const Grid& grid,
                                            int row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  // As many sequences as begin at or before the row, minus one. That number is in [low, high].
  int low = 0, high = static_cast<int>(p.sequences);
  if (high == 1) return 0;  // whether the row belongs to it is for the caller to see
  while (low < high) {
    const int stride = (high - low + 31) >> 5;
    const int probe = low + (lane + 1) * stride - 1;
    const bool before = probe < high && stated_begin(at, grid, probe) <= row;
    const int groups = __popc(__ballot_sync(kFullWarp, before));
    low += groups * stride;
    high = min(high, low + stride - 1);
  }
  return low - 1;
}

}  // namespace shortconv::cuda
