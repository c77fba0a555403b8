// Packed rows of one channel: finds the sequences of the rows, convolves their tokens, and writes
// padding, states and snapshots. For the edge rows of channels_first.cuh, and all of general.cuh
// and groups.cuh.
#pragma once

#include <cstdint>

#include "cuda/device/runtime_strip.cuh"
#include "cuda/device/token.cuh"

namespace shortconv::cuda {

/// The tokens of a sequence that the thread with packed rows [begin, end) processes. That with the
/// first row of the sequence has all tokens whose windows contain history, the state, and
/// the snapshots that need the history.
struct SequencePart {
  std::int64_t first, last;  // tokens
  bool has_start;

  __device__ SequencePart(const Sequence& s, int history, std::int64_t begin, std::int64_t end)
      : has_start(s.begin >= begin && s.begin < end) {
    const std::int64_t start_tokens = min(s.end - s.begin, std::int64_t{history});
    first = has_start ? 0 : max(begin - s.begin, start_tokens);
    last = min(end, s.end) - s.begin;
    if (has_start) last = max(last, start_tokens);
  }
};

/// The final state of a sequence, and the snapshots that need its history.
template <typename Types>
__device__ inline void write_start_states(const Problem& p, const TensorPointers& at,
                                          const Sequence& s, std::int64_t sequence,
                                          std::int64_t channel) {
  take_snapshots<Types>(p, at, s, sequence, history_of<Types>(p), false, channel);
  RuntimeStrips<Types>(p, at, s, channel).write_state();
  take_snapshots<Types>(p, at, s, sequence, s.end - s.begin + 1, true, channel);
}

/// Processes the part of a sequence in packed rows [begin, end).
template <typename Types>
__device__ inline void convolve_part(const Problem& p, const TensorPointers& at, const Sequence& s,
                                     std::int64_t sequence, std::int64_t begin, std::int64_t end,
                                     std::int64_t channel) {
  if constexpr (Types::kPlain) {
    const std::int64_t length = s.end - s.begin;
    const std::int64_t start_tokens = min(length, std::int64_t{history_of<Types>(p)});
    const bool has_start = s.begin >= begin && s.begin < end;
    std::int64_t first = max(begin - s.begin, start_tokens);
    const std::int64_t last = min(end, s.end) - s.begin;
    if (has_start) {
      for (std::int64_t token = 0; token < start_tokens; ++token) {
        convolve_token<Types>(p, at, s, token, channel);
      }
      write_state_of_channel<Types>(p, at, s, channel);
    }
    for (; first < last; ++first) convolve_token<Types>(p, at, s, first, channel);
  } else {
    const SequencePart part(s, history_of<Types>(p), begin, end);
    if (part.first < part.last) {
      RuntimeStrips<Types>(p, at, s, channel).convolve(part.first, part.last);
    }
    if (part.has_start) write_start_states<Types>(p, at, s, sequence, channel);
  }
}

/// Divides packed rows [begin, end), from those of `sequence` on, into parts of sequences and
/// padding: convolve(s, sequence, first, last) and pad(first, last). As functions they
/// let the compiler spill less: when they became functions, 64 sequences of 128 tokens of width 8
/// took 159 us instead of 176.
template <typename Types, typename Convolve, typename Pad>
__device__ inline void visit_parts(const Problem& p, const TensorPointers& at,
                                   std::int64_t sequence, std::int64_t begin, std::int64_t end,
                                   const Convolve& convolve, const Pad& pad) {
  std::int64_t row = begin;
  for (; row < end && sequence < p.sequences; ++sequence) {
    const Sequence s = sequence_at(p, at, sequence);
    if (row < s.begin) {
      const std::int64_t first = min(s.begin, end);
      pad(row, first);
      row = first;
    }
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
        pad(row, part_end);
      } else {
        convolve(part, sequence, row, part_end);
      }
      row = part_end;
    }
  }
  pad(row, end);
}

/// Processes packed rows [begin, end) of one channel, from those of `sequence` on.
template <typename Types>
__device__ inline void convolve_rows_from(const Problem& p, const TensorPointers& at,
                                          std::int64_t sequence, std::int64_t begin,
                                          std::int64_t end, std::int64_t channel) {
  visit_parts<Types>(
      p, at, sequence, begin, end,
      [&](const Sequence& s, std::int64_t number, std::int64_t first, std::int64_t last) {
        convolve_part<Types>(p, at, s, number, first, last, channel);
      },
      [&](std::int64_t first, std::int64_t last) { pad_rows<Types>(p, at, first, last, channel); });
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
