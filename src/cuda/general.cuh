// Whatever the fast kernels do not take: differing element types, any strides, widths up to 64,
// addresses that are not aligned, prefill in place.
//
// Who owns what: a thread owns one channel of up to 16 packed rows, of a chunk of 8 tokens, or, in
// place and of draft tokens, of a whole sequence; the state as in tile.cuh. Of snapshots whoever
// owns the state takes those that need it, and all of them in place; the others lie in x and are
// units of their own behind those of the tokens. Every window is read again from the caches. No
// ceiling is aimed at.
#pragma once

#include <cstdint>

#include "cuda/chunk.cuh"
#include "cuda/grid.hpp"
#include "cuda/token.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

inline constexpr int kGeneralHistory = kMaxWidth - 1;

/// All tokens of one sequence, x being out. The inputs that later tokens need are kept, as bits of
/// x's type if the state has the same one and as fp32 otherwise.
__device__ inline void convolve_in_place(const Problem& p, const Addresses& at, const Sequence& s,
                                         std::int64_t sequence, std::int64_t channel) {
  const int history = history_of<AnyTypes>(p);
  const std::int64_t length = s.end - s.begin;
  take_snapshots<AnyTypes>(p, at, s, sequence, length + 1, false, channel);
  const bool same = p.has_state && p.state_dtype == p.x_dtype;
  const DType kept_dtype = same ? p.x_dtype : DType::kF32;
  const std::int64_t step = 4 / element_bytes(kept_dtype);  // one word an element
  std::uint32_t kept[kGeneralHistory];                      // input number i at i mod history
  for (int k = 0; k < history; ++k) {
    kept[k] = 0;
    if (s.read_slot < 0) continue;
    move_element(p.state_dtype, at.state,
                 state_index(p, s.read_slot, history_column(p, s, k - history), channel),
                 kept_dtype, kept, k * step);
  }
  take_snapshots<AnyTypes>(p, at, s, sequence, length + 1, true, channel);
  // Rings and older columns may take more inputs than are kept, so they take them as they come.
  const bool as_they_come = p.has_ring_positions || p.older_columns > 0;
  const std::int64_t first = as_they_come && s.write_slot >= 0 ? first_kept(p, s) : length;
  const auto put = [&](std::int64_t input, const std::uint32_t* from, std::int64_t index) {
    move_element(kept_dtype, from, index, p.state_dtype, at.state,
                 state_index(p, s.write_slot, kept_column(p, s, input, length), channel));
  };
  for (std::int64_t input = first; input < 0; ++input) {
    if (input < -history) {
      move_input<AnyTypes>(p, at, s, input, channel, at.state,
                           state_index(p, s.write_slot, kept_column(p, s, input, length), channel));
    } else {
      put(input, kept, (history + input) * step);
    }
  }
  int oldest = 0;
  for (std::int64_t row = s.begin; row < s.end; ++row) {
    std::uint32_t newest = 0;
    move_input_of_row<AnyTypes>(p, at, row, channel, kept_dtype, &newest, 0);
    if (row - s.begin >= first) put(row - s.begin, &newest, 0);
    float sum = bias_at(p, at, channel);
    for (int k = 0; k + 1 < p.width; ++k) {
      const int from = oldest + k * p.dilation;
      const int place = from < history ? from : from - history;
      sum = __fmaf_rn(weight_at(p, at, channel, k), load_f32(kept_dtype, kept, place * step), sum);
    }
    sum = __fmaf_rn(weight_at(p, at, channel, p.width - 1), load_f32(kept_dtype, &newest, 0), sum);
    store_result<AnyTypes>(p, at, s, row - s.begin, channel, sum);
    kept[oldest] = newest;
    oldest = oldest + 1 < history ? oldest + 1 : 0;
  }
  if (s.write_slot < 0 || as_they_come) return;
  for (int k = 0; k < history; ++k) {
    const int place = oldest + k < history ? oldest + k : oldest + k - history;
    put(length - history + k, kept, place * step);
  }
}

/// Takes one of the list, unless it lies before a token below `first`, and if it replaces the
/// history of its sequence or does not, as wanted.
__device__ inline void take_listed_snapshot(const Problem& p, const Addresses& at,
                                            std::int64_t number, std::int64_t first, bool replacing,
                                            std::int64_t channel) {
  const Snapshot snapshot = snapshot_at(p, at, number);
  if (snapshot.token < first || snapshot.sequence < 0 || snapshot.sequence >= p.sequences) return;
  const Sequence s = sequence_at(p, at, snapshot.sequence);
  if (is_taken(p, s, snapshot) && replaces_history(s, snapshot) == replacing) {
    take_snapshot<AnyTypes>(p, at, s, snapshot, channel);
  }
}

__global__ void __launch_bounds__(kGeneralThreads)
    convolve_general(const __grid_constant__ Problem p, const __grid_constant__ Addresses at,
                     const __grid_constant__ Grid grid) {
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const std::int64_t channel = std::int64_t{block} * kGeneralThreads + threadIdx.x;
  if (channel >= p.channels) return;
  if (unit >= grid.tiles && p.snapshots > 0 && !p.in_place) {
    take_listed_snapshot(p, at, unit - grid.tiles, history_of<AnyTypes>(p), false, channel);
  } else if (unit >= grid.tiles) {
    pad_outside<AnyTypes>(p, at, channel);
  } else if (p.op == Op::kVerify) {
    const Sequence s = sequence_at(p, at, unit);
    for (std::int64_t row = s.begin; row < s.end; ++row) {
      if (s.skipped) {
        pad_element<AnyTypes>(p, at, row, channel);
      } else {
        convolve_draft<AnyTypes>(p, at, s, unit, row - s.begin, channel);
      }
    }
    if (s.begin >= s.end || s.skipped) return;
    // Either may go to where the history of the other lies.
    const bool elsewhere = s.write_slot != s.read_slot;
    if (elsewhere) write_state_of_channel<AnyTypes>(p, at, s, channel);
    capture_windows<AnyTypes>(p, at, s, unit, channel);
    if (!elsewhere) write_state_of_channel<AnyTypes>(p, at, s, channel);
  } else if (p.in_place) {
    const Sequence s = sequence_at(p, at, unit);
    if (s.begin >= s.end) return;
    if (!s.skipped) return convolve_in_place(p, at, s, unit, channel);
    for (std::int64_t row = s.begin; row < s.end; ++row) pad_element<AnyTypes>(p, at, row, channel);
  } else if (p.schedule == Schedule::kFlat) {
    const std::int64_t first = std::int64_t{unit} * grid.unit_tokens;
    convolve_rows<AnyTypes>(p, at, first, min(first + grid.unit_tokens, p.tokens), channel);
  } else {
    Chunk chunk;
    if (!chunk_of_unit(p, at, grid, unit, chunk)) return;
    const Sequence s = sequence_at(p, at, chunk.sequence);
    const std::int64_t length = s.end - s.begin;
    if (chunk.first >= length) return;
    const std::int64_t last = chunk.to_the_end ? length : min(chunk.first + kChunkTokens, length);
    if (!s.skipped) {
      return convolve_part<AnyTypes>(p, at, s, chunk.sequence, s.begin + chunk.first,
                                     s.begin + last, channel);
    }
    for (std::int64_t token = chunk.first; token < last; ++token) {
      pad_element<AnyTypes>(p, at, s.begin + token, channel);
    }
  }
}

/// The snapshots that replace the history of their sequence, in a launch after that of the tiles,
/// of which any may need it. A thread owns one channel of a snapshot.
__global__ void __launch_bounds__(kGeneralThreads)
    replace_histories(const __grid_constant__ Problem p, const __grid_constant__ Addresses at,
                      const __grid_constant__ Grid grid) {
  const std::uint32_t number = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - number * grid.channel_blocks.divisor();
  const std::int64_t channel = std::int64_t{block} * kGeneralThreads + threadIdx.x;
  if (channel >= p.channels) return;
  take_listed_snapshot(p, at, number, 0, true, channel);
}

}  // namespace shortconv::cuda
