// Which sequence a row belongs to, found by a warp together.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/sequence.cuh"

namespace shortconv::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

/// find_sequence of op/sequence.hpp over packed rows. All lanes ask for the same row and get the
/// same answer. Up to 64 sequences are looked at in turn, 32 at a time; of more a first round finds
/// the stretch between two of 32 probes.
__device__ inline int find_sequence_by_warp(const Call& call, int row) {
  constexpr int kMostInTurn = 64;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // As many sequences as begin at or before the row, minus one. That number is in [low, high].
  int low = 0, high = call.sequences;
  if (high == 1) return 0;  // whether the row belongs to it is for the caller to see
  while (high - low > kMostInTurn) {
    const int stride = (high - low + 31) >> 5;
    const int probe = low + (lane + 1) * stride - 1;
    const bool before = probe < high && stated_begin(call, min(probe, high)) <= row;
    const int groups = __popc(__ballot_sync(kFullWarp, before));
    low += groups * stride;
    high = min(high, low + stride - 1);
  }
  int count = low;
#pragma unroll 1
  for (int base = low; base < high; base += 32) {
    const int probe = base + lane;  // there is one more bound than sequences
    const bool before = stated_begin(call, min(probe, high)) <= row && probe < high;
    count += __popc(__ballot_sync(kFullWarp, before));
  }
  return count - 1;
}

}  // namespace shortconv::cuda
