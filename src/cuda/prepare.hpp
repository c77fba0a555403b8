// How the grids of index preparation are cut, tested without a GPU, and the entry points that the
// CUDA file offers.
#pragma once

#include <cstdint>

#include "cuda/kernels.hpp"

namespace shortconv::cuda {

inline constexpr int kPrepareThreads = 128;

/// A thread for each item.
[[nodiscard]] constexpr std::int64_t prepare_blocks(std::int64_t items) {
  return items / kPrepareThreads + (items % kPrepareThreads != 0 ? 1 : 0);
}

Entry block_snapshots_kernel();  // takes (BlockSnapshots) by value
Entry tree_parents_kernel();     // takes (TreeParents) by value

}  // namespace shortconv::cuda
