// Packed rows of one channel: finds the sequences of the rows, convolves their tokens, and writes
// padding, states and snapshots. For the edge rows of channels_first.cuh, and all of general.cuh
// and groups.cuh.
#pragma once

#include <cstdint>

#include "cuda/device/runtime_strip.cuh"
#include "cuda/device/token.cuh"

namespace shortconv::cuda {

/// Processes the part of a sequence in packed rows [begin, end). The thread with the first row of
/// the sequence processes all tokens whose windows contain history, the state, and the snapshots
/// that need the history.
template <typename Types>
__device__ inline void convolve_part(const Problem& p, const TensorPointers& at, const Sequence& s,
                                     std::int64_t sequence, std::int64_t begin, std::int64_t end,
                                     std::int64_t channel) {
  const std::int64_t length = s.end - s.begin;
  const std::int64_t start_tokens = min(length, std::int64_t{history_of<Types>(p)});
  const bool has_start = s.begin >= begin && s.begin < end;
  std::int64_t first = max(begin - s.begin, start_tokens);
  const std::int64_t last = min(end, s.end) - s.begin;
  if constexpr (Types::kPlain) {
    if (has_start) {
      for (std::int64_t token = 0; token < start_tokens; ++token) {
        convolve_token<Types>(p, at, s, token, channel);
      }
      write_state_of_channel<Types>(p, at, s, channel);
    }
    for (; first < last; ++first) convolve_token<Types>(p, at, s, first, channel);
  } else {
    const RuntimeStrips<Types> strips(p, at, s, channel);
    const std::int64_t to = has_start ? max(last, start_tokens) : last;
    if (has_start) first = 0;
    if (first < to) strips.convolve(first, to);
    if (!has_start) return;
    take_snapshots<Types>(p, at, s, sequence, history_of<Types>(p), false, channel);
    strips.write_state();
    take_snapshots<Types>(p, at, s, sequence, length + 1, true, channel);
  }
}

/// Processes packed rows [begin, end) of one channel, from those of `sequence` on.
template <typename Types>
__device__ inline void convolve_rows_from(const Problem& p, const TensorPointers& at,
                                          std::int64_t sequence, std::int64_t begin,
                                          std::int64_t end, std::int64_t channel) {
  std::int64_t row = begin;
  for (; row < end && sequence < p.sequences; ++sequence) {
    const Sequence s = sequence_at(p, at, sequence);
    for (; row < min(s.begin, end); ++row) pad_element<Types>(p, at, row, channel);
    const std::int64_t last = min(s.end, end);
    while (row < last) {  // once, unless seq_idx divides the sequence further
      Sequence part = s;
      if constexpr (!Types::kPlain) {
        if (p.seq_idx.present) {
          const std::int64_t most = max(last - row, std::int64_t{history_of<Types>(p)});
          part = seq_idx_part(p, at, s, row, most);
        }
      }
      const std::int64_t part_end = min(part.end, last);
      if (part.skipped) {
        pad_rows<Types>(p, at, row, part_end, channel);
      } else {
        convolve_part<Types>(p, at, part, sequence, row, part_end, channel);
      }
      row = part_end;
    }
  }
  pad_rows<Types>(p, at, row, end, channel);
}

template <typename Types>
__device__ inline void convolve_rows(const Problem& p, const TensorPointers& at, std::int64_t begin,
                                     std::int64_t end, std::int64_t channel) {
  convolve_rows_from<Types>(p, at, max(find_sequence(p, at, begin), std::int64_t{0}), begin, end,
                            channel);
}

/// Pads the rows before the first and after the last sequence, which no block of a sequence visits.
template <typename Types>
__device__ inline void pad_outside(const Problem& p, const TensorPointers& at,
                                   std::int64_t channel) {
  if (p.padded_rows == PaddedRows::kUntouched) return;
  const std::int64_t begin = p.sequences > 0 ? sequence_begin(p, at, 0) : p.tokens;
  pad_rows<Types>(p, at, 0, begin, channel);
  if (p.sequences == 0) return;
  pad_rows<Types>(p, at, max(begin, sequence_begin(p, at, p.sequences)), p.tokens, channel);
}

}  // namespace shortconv::cuda
