// CommitProblem -> CommitConfig: the launch of a commit. Pure functions of the problem, tested
// without a GPU.
#pragma once

#include "cuda/host/kernels.hpp"
#include "cuda/launch_params.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

inline constexpr int kCommitThreads = 128;
inline constexpr int kCommitRows = 8;  // columns of a strip
inline constexpr std::int64_t kVectorBytes = 16;

/// A thread copies a unit, 16 bytes of adjacent channels or one element, in the columns of one
/// strip of an intermediate state. block.x = (layer * sequences + sequence) * unit_blocks + block
/// of units; block.y = strip.
struct CommitLaunchParams {
  FastDivisor sequences;
  FastDivisor unit_blocks;
  std::int64_t units = 0;  // of one column
  // From one unit to the next.
  std::int64_t intermediate_stride_bytes = 0;
  std::int64_t state_stride_bytes = 0;
};

/// Parameters of the kernel.
struct CommitKernelParams {
  CommitProblem problem;
  CommitPointers pointers;
  CommitLaunchParams launch;
};

struct CommitLaunchConfig {
  KernelFunction function = nullptr;
  std::int64_t blocks = 0;  // 0: not possible, or nothing to do
  std::int32_t strips = 0;
  CommitLaunchParams params;
};

/// The launches of a plan. The addresses of a call decide between them: `vectors` requires
/// intermediate_states and state aligned to 16 bytes.
struct CommitConfig {
  CommitLaunchConfig vectors;
  CommitLaunchConfig elements;
};

/// Sets everything but the functions, for a problem after with_adjacent_channels. Fails if a grid
/// exceeds the limits of a GPU.
[[nodiscard]] Status select_commit(const CommitProblem& problem, CommitConfig& config);

/// The launch for these addresses.
[[nodiscard]] const CommitLaunchConfig& launch_for(const CommitConfig& config,
                                                   const CommitPointers& pointers);

/// The kernel for units of 2, 4, 8 or 16 bytes.
KernelFunction commit_kernel(std::int64_t unit_bytes);

}  // namespace shortconv::cuda
