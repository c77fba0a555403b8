// Commit: accepted windows into the state pool, all layers in one launch.
//
// Who owns what: a thread owns one unit of one (layer, sequence): 16 bytes of adjacent channels, or
// one element where layout or alignment allow no more, in a strip of up to 8 rows, which is the
// whole window of widths up to 9. Nothing is shared: each thread looks up its sequence's token and
// slots. Live slots differ, so no two threads write to one place.
//
// Bytes moved: each accepted window is read once and written once or twice; windows of tokens that
// were not accepted are not touched. The ceiling is a copy of these bytes; for a few sequences it
// is the latency of token, then window, then store. All loads of a thread are under way before its
// first store.
#pragma once

#include <cstdint>

#include "cuda/commit.hpp"
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
    commit_windows(const __grid_constant__ CommitProblem p,
                   const __grid_constant__ CommitAddresses at,
                   const __grid_constant__ CommitGrid grid) {
  const std::uint32_t window = grid.unit_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - window * grid.unit_blocks.divisor();
  const std::uint32_t layer = grid.sequences.divide(window);
  const std::uint32_t sequence = window - layer * grid.sequences.divisor();
  const std::int64_t unit = std::int64_t{block} * kCommitThreads + threadIdx.x;
  if (unit >= grid.units) return;
  const Commit commit = commit_of(p, at, sequence);
  if (commit.token < 0) return;

  const std::int64_t bytes = element_bytes(p.dtype);
  const std::int64_t windows_row = p.windows_row * bytes;
  const std::int64_t state_row = p.state_column * bytes;
  const char* from = static_cast<const char*>(at.windows) +
                     window_offset(p, layer, sequence, commit.token) * bytes +
                     unit * grid.windows_step;
  const int first = static_cast<int>(blockIdx.y) * kCommitRows;
  const int rows = p.width - 1 - first;
  from += first * windows_row;
  Unit strip[kCommitRows];
#pragma unroll
  for (int i = 0; i < kCommitRows; ++i) {
    if (i < rows) strip[i] = *reinterpret_cast<const Unit*>(from);
    from += windows_row;
  }
  char* state = static_cast<char*>(at.state) + unit * grid.state_step + first * state_row;
  if (commit.slot >= 0) {
    store_strip(state + history_offset(p, layer, commit.slot) * bytes, state_row, strip, rows);
  }
  if (commit.second_slot >= 0) {
    store_strip(state + history_offset(p, layer, commit.second_slot) * bytes, state_row, strip,
                rows);
  }
}

}  // namespace shortconv::cuda
