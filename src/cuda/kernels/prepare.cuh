// Index preparation: writes lists of snapshots and the parents of draft trees.
//
// Threads: a thread writes a row of the list and searches for its sequence, or follows the links of
// the tree of one sequence in token order. Threads share nothing.
//
// Bytes moved: some kilobytes per step. Ceiling: the latency of the launch and of dependent loads,
// log2(sequences) for a row and two for each token of a tree.
#pragma once

#include "cuda/host/prepare.hpp"
#include "op/prepare.hpp"

namespace shortconv::cuda {

__global__ void __launch_bounds__(kPrepareThreads)
    list_block_snapshots(const __grid_constant__ BlockSnapshots p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (row < p.rows) store_snapshot(p, row);
}

__global__ void __launch_bounds__(kPrepareThreads)
    follow_tree_links(const __grid_constant__ TreeParents p) {
  const std::int64_t sequence = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (sequence < p.sequences) store_parents(p, sequence);
}

}  // namespace shortconv::cuda
