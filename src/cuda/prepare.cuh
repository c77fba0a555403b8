// Index preparation: lists of snapshots, parents of draft trees, bounds of numbered sequences.
//
// Who owns what: a thread owns a row of the list, and finds its sequence by search; of the trees it
// owns a sequence, whose links it follows in the order of the tokens. Nothing is shared. Sequences
// told apart by numbers are counted by one block, from the last, 8192 numbers in a turn: more
// blocks would have to wait for each other's counts.
//
// Bytes moved: some kilobytes, once a step. What counts are the launch and the chain of loads, log2
// of the sequences for a row, two for each token of a tree, one for each turn of the count.
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

__global__ void __launch_bounds__(kScanThreads)
    count_sequences(const __grid_constant__ SequenceBounds p) {
  constexpr int kWarp = 32, kWarps = kScanThreads / kWarp;
  __shared__ int begun[kWarps];  // by each warp in this turn
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t rows = p.batch * p.tokens;
  if (threadIdx.x == 0) p.query_start_loc.store(0, p.sequences, rows);
  std::int64_t found = 0;  // sequences, in earlier turns
  for (std::int64_t turn = rows; turn > 0 && found < p.sequences;
       turn -= kScanThreads * kScanItems) {
    const std::int64_t last = turn - 1 - warp * kWarp * kScanItems - lane;
    unsigned begins[kScanItems];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      const std::int64_t row = last - i * kWarp;
      begins[i] = __ballot_sync(0xffffffff, row >= 0 && begins_sequence(p, row));
      count += __popc(begins[i]);
    }
    if (lane == 0) begun[warp] = count;
    __syncthreads();
    std::int64_t number = found;
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) number += begun[other];
      found += begun[other];
    }
    for (int i = 0; i < kScanItems; ++i) {
      if (begins[i] >> lane & 1u) {
        store_sequence(p, number + __popc(begins[i] & ((1u << lane) - 1)), last - i * kWarp);
      }
      number += __popc(begins[i]);
    }
    __syncthreads();  // the counts are read, and may be written again
  }
  for (std::int64_t number = found + threadIdx.x; number < p.sequences; number += kScanThreads) {
    store_no_sequence(p, number);
  }
}

}  // namespace shortconv::cuda
