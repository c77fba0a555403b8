// How the grids of index preparation are cut, tested without a GPU, and the entry points that the
// CUDA file offers.
#pragma once

#include <cstdint>

#include "cuda/kernels.hpp"

namespace shortconv::cuda {

inline constexpr int kPrepareThreads = 128;

/// The one block that counts sequences, and how many numbers a thread looks at in a turn.
inline constexpr int kScanThreads = 1024;
inline constexpr int kScanItems = 8;

/// A thread for each item.
[[nodiscard]] constexpr std::int64_t prepare_blocks(std::int64_t items) {
  return items / kPrepareThreads + (items % kPrepareThreads != 0 ? 1 : 0);
}

Entry block_snapshots_kernel();  // takes (BlockSnapshots) by value
Entry tree_parents_kernel();     // takes (TreeParents) by value
Entry sequence_bounds_kernel();  // takes (SequenceBounds) by value, one block of kScanThreads

}  // namespace shortconv::cuda
