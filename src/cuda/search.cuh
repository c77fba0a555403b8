// Which sequence a row belongs to, found by a warp together.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/sequence.cuh"

namespace shortconv::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

struct FoundSequence {
  int number = -1;      // the last one that begins at or before the row, or -1
  bool begins = false;  // with the row
  bool alone = false;   // no other begins or ends near the row
};

/// find_sequence of op/sequence.hpp over packed rows. Near are the rows less than `before` ahead of
/// the row and less than `after` behind it. All lanes ask for the same row and get the same answer.
/// Bounds are looked at 32 at a time; of more, rounds before find the stretch between two of 32
/// probes.
__device__ inline FoundSequence find_sequence(const Call& call, int row, int before, int after) {
  constexpr int kMostAtOnce = 30;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // As many sequences as begin at or before the row. That number is in [low, high].
  int low = 0, high = call.sequences;
  while (high - low > kMostAtOnce) {
    const int stride = (high - low + 31) >> 5;
    const int probe = low + (lane + 1) * stride - 1;
    const bool begun = probe < high && stated_begin(call, min(probe, high)) <= row;
    const int groups = __popc(__ballot_sync(kFullWarp, begun));
    low += groups * stride;
    high = min(high, low + stride - 1);
  }
  // And the last bound before them, which may be near, and the one that ends the last sequence.
  const int base = max(low - 1, 0);
  const int probe = base + lane;
  const int bound = stated_begin(call, min(probe, high));
  const bool begun = bound <= row;
  const int count = __popc(__ballot_sync(kFullWarp, begun && probe < high));
  const bool near =
      (bound != row && bound > row - before && bound < row + after) || (begun && probe >= high);
  const int number = base + count - 1;
  return {number, __any_sync(kFullWarp, bound == row) != 0,
          number >= 0 && !__any_sync(kFullWarp, near)};
}

}  // namespace shortconv::cuda
