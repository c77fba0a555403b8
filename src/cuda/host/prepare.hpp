// Grids and kernels of index preparation.
#pragma once

#include <cstdint>

#include "cuda/host/kernels.hpp"

namespace shortconv::cuda {

inline constexpr int kPrepareThreads = 128;

/// Blocks for one thread per item.
[[nodiscard]] constexpr std::int64_t prepare_blocks(std::int64_t items) {
  return items / kPrepareThreads + (items % kPrepareThreads != 0 ? 1 : 0);
}

KernelFunction block_snapshots_kernel();  // takes BlockSnapshots
KernelFunction tree_parents_kernel();     // takes TreeParents

}  // namespace shortconv::cuda
