// Finds the sequence of a row, with all lanes of a warp.
#pragma once

#include <cstdint>

#include "cuda/device/sequence.cuh"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

struct FoundSequence {
  int number = -1;        // the last one that begins at or before the row, or -1
  bool begins = false;    // at the row
  bool is_alone = false;  // no other sequence begins or ends near the row
};

/// find_sequence of op/sequence.hpp over packed rows. A bound is near the row if it is less than
/// `before` rows before it or less than `after` rows after it. The row and the result are equal in
/// all lanes. The warp compares 32 bounds at a time. With more sequences, rounds of 32 evenly
/// spaced probes narrow the range first.
__device__ inline FoundSequence find_sequence(const KernelParams& params, int row, int before,
                                              int after) {
  constexpr int kMaxAtOnce = 30;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // The number of sequences that begin at or before the row is in [low, high].
  int low = 0, high = params.sequences;
  while (high - low > kMaxAtOnce) {
    const int stride = (high - low + 31) >> 5;
    const int probe = low + (lane + 1) * stride - 1;
    const bool begun = probe < high && raw_begin(params, min(probe, high)) <= row;
    const int groups = __popc(__ballot_sync(kFullWarp, begun));
    low += groups * stride;
    high = min(high, low + stride - 1);
  }
  // Includes the last bound before the range, which may be near, and the end of the last sequence.
  const int base = max(low - 1, 0);
  const int probe = base + lane;
  const int bound = raw_begin(params, min(probe, high));
  const bool begun = bound <= row;
  const int count = __popc(__ballot_sync(kFullWarp, begun && probe < high));
  const bool near =
      (bound != row && bound > row - before && bound < row + after) || (begun && probe >= high);
  const int number = base + count - 1;
  return {number, __any_sync(kFullWarp, bound == row) != 0,
          number >= 0 && !__any_sync(kFullWarp, near)};
}

}  // namespace shortconv::cuda
