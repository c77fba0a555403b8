// Programmatic dependent launch (PDL): a kernel may be launched while the previous kernel of the
// stream still runs. It waits for the writes of that kernel before it accesses memory. A launch
// with PDL is also shorter on the host: 2.5 us instead of 3.1.
//
// Every block that has not ended must allow the launch of the next kernel. This costs its
// multiprocessor some 28 ns per block, one block after the other; the wait is free. So only the
// last blocks allow it: those with the highest numbers, which start last. Correctness does not
// depend on this order. Measured: pdl_last_blocks in host/policy.hpp.
#pragma once

#include "cuda/device/memory.cuh"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

/// PDL requires Hopper.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasPdl = false;
#else
inline constexpr bool kHasPdl = true;
#endif

// pdl_launch_from alone would do. Without the test of `pdl` the compiler loads the block's number
// into a uniform register (S2UR), and without PDL a decode of 128 x 8192 takes 6.19 us instead of
// 6.05 (H200).
//
// Params: KernelParams or LaunchParams.
template <typename Params>
__device__ inline void pdl_launch_dependents(const Params& params) {
  if (params.pdl == PdlMode::kWaitAndLaunch && blockIdx.x >= params.pdl_launch_from) {
    pdl_launch_dependents();
  }
}

template <typename Params>
__device__ inline void pdl_wait(const Params& params) {
  if (params.pdl != PdlMode::kOff) pdl_wait();
}

template <typename Params>
__device__ inline void pdl_wait_and_launch(const Params& params) {
  pdl_launch_dependents(params);
  pdl_wait(params);
}

}  // namespace shortconv::cuda
