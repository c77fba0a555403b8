// Which kernel a commit gets and how its grid is cut: pure functions of the problem, tested without
// a GPU, and the entry points that the CUDA file offers to them.
#pragma once

#include "cuda/grid.hpp"
#include "cuda/kernels.hpp"
#include "shortconv/commit.hpp"

namespace shortconv::cuda {

inline constexpr int kCommitThreads = 128;
inline constexpr int kCommitRows = 8;  // of a strip
inline constexpr std::int64_t kVectorBytes = 16;

/// A thread moves a unit, that is 16 bytes of adjacent channels or one element, in a strip of one
/// window's rows. block.x = (layer * sequences + sequence) * unit_blocks + block of units; block.y
/// = strip.
struct CommitGrid {
  FastDivisor sequences;
  FastDivisor unit_blocks;
  std::int64_t units = 0;         // of one row
  std::int64_t windows_step = 0;  // bytes from one unit to the next, and in state
  std::int64_t state_step = 0;
};

struct CommitLaunch {
  Entry entry = nullptr;
  std::int64_t blocks = 0;  // 0: this launch is not possible
  std::int32_t strips = 0;
  CommitGrid grid;
};

/// What make_commit_plan keeps. Addresses decide between the two at the call: `vectors` needs
/// windows and state at multiples of 16 bytes.
struct CommitChoice {
  CommitLaunch vectors;
  CommitLaunch elements;
};

/// Everything but the entry points, of a problem that went through with_adjacent_channels. Fails
/// for grids that a GPU cannot have.
[[nodiscard]] Status select_commit(const CommitProblem& problem, CommitChoice& choice);

/// The launch for these addresses.
[[nodiscard]] const CommitLaunch& launch_for(const CommitChoice& choice,
                                             const CommitAddresses& addresses);

/// All take (CommitProblem, CommitAddresses, CommitGrid) by value. Units of 2, 4, 8 or 16 bytes.
Entry commit_kernel(std::int64_t unit_bytes);

}  // namespace shortconv::cuda
