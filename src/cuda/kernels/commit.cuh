// Commit: copies the intermediate states after accepted tokens to the state pool, all layers in one
// launch.
//
// Threads: a thread copies one unit of one (layer, sequence): 16 bytes of adjacent channels, or one
// element if layout or alignment require it, in a strip of up to 8 columns, which is the whole
// state of widths up to 9. Threads share nothing: each looks up the token and slots of its
// sequence. Slots in use are distinct, so no two threads write to the same address.
//
// Bytes moved: each accepted intermediate state is read once and written once or twice; others are
// not accessed. Ceiling: a copy of these bytes; for a few sequences the latency of token, then
// state, then store. A thread issues all its loads before its first store.
#pragma once

#include <cstdint>

#include "cuda/host/commit.hpp"
#include "op/commit.hpp"

namespace shortconv::cuda {

template <typename Unit>
__device__ inline void store_strip(char* to, std::int64_t row_bytes,
                                   const Unit (&strip)[kCommitRows], int rows) {
#pragma unroll
  for (int i = 0; i < kCommitRows; ++i) {
    if (i < rows) *reinterpret_cast<Unit*>(to) = strip[i];
    to += row_bytes;
  }
}

template <typename Unit>
__global__ void __launch_bounds__(kCommitThreads)
    commit_states(const __grid_constant__ CommitKernelParams params) {
  const CommitProblem& p = params.problem;
  const CommitPointers& at = params.pointers;
  const CommitLaunchParams& grid = params.launch;
  const std::uint32_t pair = grid.unit_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - pair * grid.unit_blocks.divisor();
  const std::uint32_t layer = grid.sequences.divide(pair);
  const std::uint32_t sequence = pair - layer * grid.sequences.divisor();
  const std::int64_t unit = std::int64_t{block} * kCommitThreads + threadIdx.x;
  if (unit >= grid.units) return;
  const Commit commit = commit_of(p, at, sequence);
  if (commit.token < 0) return;

  const std::int64_t bytes = element_bytes(p.state.dtype);
  const std::int64_t intermediate_row = p.intermediate_states.column_stride * bytes;
  const std::int64_t state_row = p.state.column_stride * bytes;
  const char* from = static_cast<const char*>(at.intermediate_states) +
                     intermediate_offset(p, layer, sequence, commit.token) * bytes +
                     unit * grid.intermediate_stride_bytes;
  const int first = static_cast<int>(blockIdx.y) * kCommitRows;
  const int rows = p.width - 1 - first;
  from += first * intermediate_row;
  Unit strip[kCommitRows];
#pragma unroll
  for (int i = 0; i < kCommitRows; ++i) {
    if (i < rows) strip[i] = *reinterpret_cast<const Unit*>(from);
    from += intermediate_row;
  }
  char* state = static_cast<char*>(at.state) + unit * grid.state_stride_bytes + first * state_row;
  if (commit.slot >= 0) {
    store_strip(state + history_offset(p, layer, commit.slot) * bytes, state_row, strip, rows);
  }
  if (commit.second_slot >= 0) {
    store_strip(state + history_offset(p, layer, commit.second_slot) * bytes, state_row, strip,
                rows);
  }
}

}  // namespace shortconv::cuda
