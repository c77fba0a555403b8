// Index preparation: lists of snapshots, parents of draft trees.
//
// Who owns what: a thread owns a row of the list, and finds its sequence by search; of the trees it
// owns a sequence, whose links it follows in the order of the tokens. Nothing is shared.
//
// Bytes moved: some kilobytes, once a step. What counts are the launch and the chain of loads, log2
// of the sequences for a row, two for each token of a tree.
#pragma once

#include "cuda/prepare.hpp"
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
