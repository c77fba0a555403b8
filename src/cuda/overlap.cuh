// Programmatic dependent launch as the plan wants it: a kernel may be launched while the one before
// it in the stream is ending, and waits for that one's writes before it reads or writes. A launch
// that may overlap is half a microsecond shorter on the host too (2.5 instead of 3.1 us).
//
// That the next kernel may start has to be said by every block that has not ended, and costs its
// multiprocessor some 28 ns a block, one after the other; the wait costs nothing. So only the last
// blocks say it. They are those with the highest numbers, which start last: nothing depends on it
// but time. Measured, see kLastBlocks in tuning.hpp.
#pragma once

#include "cuda/call.hpp"
#include "cuda/memory.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// Before Hopper nothing does.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kOverlaps = false;
#else
inline constexpr bool kOverlaps = true;
#endif

__device__ inline void let_next_start(const Call& call) {
  if (call.overlap == Overlap::kBoth && blockIdx.x + kLastBlocks >= gridDim.x) let_next_start();
}

__device__ inline void wait_for_previous(const Call& call) {
  if (call.overlap != Overlap::kNone) wait_for_previous();
}

__device__ inline void overlap_neighbours(const Call& call) {
  let_next_start(call);
  wait_for_previous(call);
}

}  // namespace shortconv::cuda
