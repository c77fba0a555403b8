// Rows, slots and columns of a sequence: the rules of the specification for values in index
// tensors. Invalid values (decreasing bounds, rows or slots outside the tensors) never cause an
// access outside a tensor.
#pragma once

#include <cstdint>

#include "core/device.hpp"
#include "core/element.hpp"
#include "core/history.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

// Takes values, not references as std::clamp does: a GPU compiler would store both to memory to
// select an address.
SHORTCONV_HOST_DEVICE constexpr std::int64_t clamped(std::int64_t value, std::int64_t low,
                                                     std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

/// The last of `count` items whose first row, begin_of(item), is at or before `row`; -1 if there is
/// none.
template <typename BeginOf>
SHORTCONV_HOST_DEVICE inline std::int64_t find_last(std::int64_t count, std::int64_t row,
                                                    BeginOf&& begin_of) {
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (begin_of(middle) <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - 1;
}

/// Entry of an index tensor that has one per sequence.
SHORTCONV_HOST_DEVICE inline std::int64_t load_index(const TensorLayout<Axis::kSequence>& layout,
                                                     const void* data, std::int64_t sequence) {
  return load_index(layout.dtype, data, sequence * layout.sequence_stride);
}
SHORTCONV_HOST_DEVICE inline std::int64_t load_index_or(const TensorLayout<Axis::kSequence>& layout,
                                                        const void* data, std::int64_t sequence,
                                                        std::int64_t if_absent) {
  return layout.present ? load_index(layout, data, sequence) : if_absent;
}

// Slots, for forward calls and commits.

/// A slot that means padding: any negative one and the null slot.
template <typename AnyProblem>
SHORTCONV_HOST_DEVICE constexpr bool is_padding(const AnyProblem& p, std::int64_t slot) {
  return slot < 0 || (p.has_null_slot && slot == p.null_slot);
}
/// One of `slots` slots and not padding.
template <typename AnyProblem>
SHORTCONV_HOST_DEVICE constexpr bool usable_slot(const AnyProblem& p, std::int64_t slot,
                                                 std::int64_t slots) {
  return slot < slots && !is_padding(p, slot);
}
/// Without a pool every slot that is not padding is usable.
SHORTCONV_HOST_DEVICE inline bool usable_slot(const Problem& p, std::int64_t slot) {
  return p.state.present ? usable_slot(p, slot, p.slots) : !is_padding(p, slot);
}

struct Sequence {
  std::int64_t begin = 0;  // packed rows [begin, end)
  std::int64_t end = 0;
  std::int64_t read_slot = -1;   // -1: starts from zeros
  std::int64_t write_slot = -1;  // -1: the final state is not written
  std::int64_t read_column = 0;  // oldest column of the history
  std::int64_t next_column = 0;  // circular buffers: column of the first token
  bool skipped = false;          // padding: rows follow padded_rows, states are not accessed
};

/// First packed row of a sequence; for `sequence` == sequences the end of the last one.
template <typename AnyProblem, typename Pointers>
SHORTCONV_HOST_DEVICE inline std::int64_t sequence_begin(const AnyProblem& p, const Pointers& at,
                                                         std::int64_t sequence) {
  if (!p.query_start_loc.present) return sequence * p.sequence_tokens;
  return clamped(load_index(p.query_start_loc, at.query_start_loc, sequence), 0, p.tokens);
}

/// The last sequence that begins at or before `row`, or -1. Empty sequences that begin at the same
/// row come before it.
SHORTCONV_HOST_DEVICE inline std::int64_t find_sequence(const Problem& p, const TensorPointers& at,
                                                        std::int64_t row) {
  if (!p.query_start_loc.present) return row / p.sequence_tokens;
  return find_last(p.sequences, row, [&](std::int64_t s) { return sequence_begin(p, at, s); });
}

SHORTCONV_HOST_DEVICE inline std::int64_t read_slot_of(const Problem& p, const TensorPointers& at,
                                                       std::int64_t sequence) {
  return load_index_or(p.read_slots, at.read_slots, sequence, sequence);
}
/// `read_slot` is the result of read_slot_of, the default.
SHORTCONV_HOST_DEVICE inline std::int64_t write_slot_of(const Problem& p, const TensorPointers& at,
                                                        std::int64_t sequence,
                                                        std::int64_t read_slot) {
  return load_index_or(p.write_slots, at.write_slots, sequence, read_slot);
}

/// Largest read offset with the whole history inside the pool.
SHORTCONV_HOST_DEVICE inline std::int64_t last_read_offset(const Problem& p) {
  return p.state_columns - history_of(p) - p.base_column;
}

SHORTCONV_HOST_DEVICE inline bool continues_from_state(const Problem& p, const TensorPointers& at,
                                                       std::int64_t sequence) {
  switch (p.initial_state) {
    case InitialState::kNone:
      break;
    case InitialState::kAll:
      return true;
    case InitialState::kByFlag:
      return static_cast<const std::uint8_t*>(
                 at.has_initial_state)[sequence * p.has_initial_state.sequence_stride] != 0;
  }
  return false;
}

SHORTCONV_HOST_DEVICE inline Sequence sequence_at(const Problem& p, const TensorPointers& at,
                                                  std::int64_t sequence) {
  // All loads come first: they are independent, and each has a long latency on a GPU.
  const std::int64_t begin = sequence_begin(p, at, sequence);
  const std::int64_t end = sequence_begin(p, at, sequence + 1);
  const std::int64_t read_slot = read_slot_of(p, at, sequence);
  const std::int64_t write_slot = write_slot_of(p, at, sequence, read_slot);
  const std::int64_t offset = load_index_or(p.read_offsets, at.read_offsets, sequence, 0);
  const std::int64_t seqlen = load_index_or(p.cache_seqlens, at.cache_seqlens, sequence, 0);
  const bool continues = continues_from_state(p, at, sequence);

  Sequence s;
  s.begin = begin;
  s.end = end < begin ? begin : end;
  s.skipped = !usable_slot(p, read_slot);
  if (s.skipped || !p.state.present) return s;
  if (p.writes_state && usable_slot(p, write_slot)) s.write_slot = write_slot;
  if (p.cache_seqlens.present) s.next_column = seqlen < 0 ? 0 : seqlen % p.state_columns;
  if (!continues) return s;
  s.read_slot = read_slot;
  if (p.cache_seqlens.present) {
    const std::int64_t oldest = s.next_column - history_of(p);
    s.read_column = oldest < 0 ? oldest + p.state_columns : oldest;
  } else {
    s.read_column = p.base_column + clamped(offset, 0, last_read_offset(p));
  }
  return s;
}

/// Offset of a packed row in a tensor with one row per token, in elements.
template <typename AnyProblem, typename Layout>
SHORTCONV_HOST_DEVICE inline std::int64_t row_offset(const AnyProblem& p, std::int64_t row,
                                                     const Layout& layout) {
  if (p.query_start_loc.present) return row * layout.token_stride;
  return row / p.sequence_tokens * layout.sequence_stride +
         row % p.sequence_tokens * layout.token_stride;
}

/// Offset of a token of a sequence, counted from the first token of the sequence, which is packed
/// row `begin`.
template <typename Layout>
SHORTCONV_HOST_DEVICE inline std::int64_t token_offset(const Problem& p, std::int64_t sequence,
                                                       std::int64_t begin, std::int64_t token,
                                                       const Layout& layout) {
  return p.query_start_loc.present
             ? (begin + token) * layout.token_stride
             : sequence * layout.sequence_stride + token * layout.token_stride;
}

template <typename AnyProblem, typename Pointers>
SHORTCONV_HOST_DEVICE inline std::int64_t seq_idx_of_row(const AnyProblem& p, const Pointers& at,
                                                         std::int64_t row) {
  return load_index(p.seq_idx.dtype, at.seq_idx, row_offset(p, row, p.seq_idx));
}

/// With seq_idx: the rows around `row` with the same number, as a sequence. The search covers
/// `most` rows on each side; a longer part is cut there.
SHORTCONV_HOST_DEVICE inline Sequence seq_idx_part(const Problem& p, const TensorPointers& at,
                                                   const Sequence& s, std::int64_t row,
                                                   std::int64_t most) {
  const std::int64_t number = seq_idx_of_row(p, at, row);
  const std::int64_t first = row - s.begin > most ? row - most : s.begin;
  const std::int64_t last = s.end - row > most ? row + most : s.end;
  Sequence part = s;
  part.begin = row;
  part.end = row + 1;
  while (part.begin > first && seq_idx_of_row(p, at, part.begin - 1) == number) --part.begin;
  while (part.end < last && seq_idx_of_row(p, at, part.end) == number) ++part.end;
  if (part.begin > s.begin) part.read_slot = -1;
  part.skipped = s.skipped || number < 0;
  return part;
}

// Inputs of a sequence are numbered: the tokens of this call from 0, older inputs below 0.

/// False for rows of padding: outside all sequences, or of one that is skipped.
SHORTCONV_HOST_DEVICE inline bool is_computed_row(const Problem& p, const TensorPointers& at,
                                                  std::int64_t row) {
  const std::int64_t sequence = find_sequence(p, at, row);
  if (sequence < 0 || sequence >= p.sequences) return false;
  const Sequence s = sequence_at(p, at, sequence);
  if (s.skipped || row >= s.end) return false;
  return !p.seq_idx.present || seq_idx_of_row(p, at, row) >= 0;
}

/// Column in the read slot of an input of the history, or of an older one.
SHORTCONV_HOST_DEVICE inline std::int64_t history_column(const Problem& p, const Sequence& s,
                                                         std::int64_t input) {
  const std::int64_t column = s.read_column + history_of(p) + input;
  return column < p.state_columns ? column : column - p.state_columns;  // circular buffer
}

/// Column of an input in a written state whose newest input is `end` - 1.
SHORTCONV_HOST_DEVICE inline std::int64_t written_column(const Problem& p, const Sequence& s,
                                                         std::int64_t input, std::int64_t end) {
  if (!p.cache_seqlens.present) return p.base_column + history_of(p) - (end - input);
  return (s.next_column + input + (input < 0 ? p.state_columns : 0)) % p.state_columns;
}

/// Oldest input written with the final state; the newest is the last token. A circular buffer that
/// holds the older inputs already takes only the tokens, at most one per column. A verify call
/// writes the whole history to another slot, because the engine may accept no draft token.
SHORTCONV_HOST_DEVICE inline std::int64_t first_written_input(const Problem& p, const Sequence& s) {
  const std::int64_t length = s.end - s.begin;
  const std::int64_t history = history_of(p);
  if (!p.cache_seqlens.present) return length - history - p.shifted_columns;
  std::int64_t first = p.op == Op::kVerify ? -history : length - history;
  if (first > 0 || s.read_slot == s.write_slot) first = 0;
  return first > length - p.state_columns ? first : length - p.state_columns;
}

// Draft tokens, counted from the first token of their sequence.

/// Entry of parents, unchecked.
SHORTCONV_HOST_DEVICE inline std::int64_t raw_parent(const Problem& p, const TensorPointers& at,
                                                     std::int64_t sequence, std::int64_t begin,
                                                     std::int64_t token) {
  return load_index(p.parents.dtype, at.parents,
                    token_offset(p, sequence, begin, token, p.parents));
}

/// The input before a draft token in its chain of ancestors; -1 is the newest input of the history.
/// An invalid parent counts as none.
SHORTCONV_HOST_DEVICE inline std::int64_t parent_of(const Problem& p, const TensorPointers& at,
                                                    std::int64_t sequence, std::int64_t begin,
                                                    std::int64_t token) {
  if (!p.parents.present || token <= 0) return token - 1;
  const std::int64_t parent = raw_parent(p, at, sequence, begin, token);
  return parent >= 0 && parent < token ? parent : -1;
}

/// The intermediate states of a sequence that are written: those after its first `tokens` tokens.
struct IntermediateRows {
  std::int64_t first =
      0;  // offset of the first one, in elements; the others follow by token_stride
  std::int64_t tokens = 0;
};

SHORTCONV_HOST_DEVICE inline IntermediateRows intermediate_rows(const Problem& p,
                                                                const TensorPointers& at,
                                                                const Sequence& s,
                                                                std::int64_t sequence) {
  const std::int64_t length = s.end - s.begin;
  const auto& states = p.intermediate_states;
  if (!states.present) return {};
  if (!p.intermediate_slots.present) return {token_offset(p, sequence, s.begin, 0, states), length};
  const std::int64_t slot = load_index(p.intermediate_slots, at.intermediate_slots, sequence);
  if (!usable_slot(p, slot, p.intermediate_slot_count)) return {};
  return {slot * states.sequence_stride,
          length < p.intermediate_tokens ? length : p.intermediate_tokens};
}

/// Row of snapshots, unchecked.
struct Snapshot {
  std::int64_t sequence = 0;
  std::int64_t token = 0;
  std::int64_t slot = 0;
};

SHORTCONV_HOST_DEVICE inline Snapshot snapshot_at(const Problem& p, const TensorPointers& at,
                                                  std::int64_t row) {
  const auto field = [&](std::int64_t column) {
    return load_index(p.snapshots.dtype, at.snapshots,
                      row * p.snapshots.entry_stride + column * p.snapshots.column_stride);
  };
  return {field(0), field(1), field(2)};
}

/// True if the snapshot names a token of a sequence that is not skipped.
SHORTCONV_HOST_DEVICE inline bool names_token(const Snapshot& snapshot, const Sequence& s) {
  const std::int64_t length = s.end - s.begin;
  return !s.skipped && length > 0 && snapshot.token >= 0 && snapshot.token <= length;
}

/// True if a snapshot of this sequence is written. The final state takes precedence in its slot.
SHORTCONV_HOST_DEVICE inline bool is_taken(const Problem& p, const Sequence& s,
                                           const Snapshot& snapshot) {
  return names_token(snapshot, s) && usable_slot(p, snapshot.slot) && snapshot.slot != s.write_slot;
}

/// True if a snapshot overwrites the state that its sequence starts from. It is written after all
/// reads of that history, those for the final state included.
SHORTCONV_HOST_DEVICE inline bool replaces_history(const Sequence& s, const Snapshot& snapshot) {
  return s.read_slot >= 0 && snapshot.slot == s.read_slot;
}

}  // namespace shortconv
