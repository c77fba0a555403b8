// Which rows, slots and columns a sequence of the batch has: the rules of the specification for
// values that only the device knows. Bad values (bounds that decrease or leave the tensor, slots
// out of range) never lead outside a tensor.
#pragma once

#include <cstdint>

#include "core/device.hpp"
#include "core/element.hpp"
#include "core/history.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

// By value: with references, as std::clamp has them, a GPU compiler puts both sides into memory to
// choose between their addresses.
SHORTCONV_HOST_DEVICE constexpr std::int64_t clamped(std::int64_t value, std::int64_t low,
                                                     std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

struct Sequence {
  std::int64_t begin = 0;  // packed rows [begin, end)
  std::int64_t end = 0;
  std::int64_t read_slot = -1;   // -1: starts from zeros
  std::int64_t write_slot = -1;  // -1: the final state is not kept
  std::int64_t read_column = 0;  // oldest column of the history
  std::int64_t ring_column = 0;  // of a ring: where the first token goes
  bool skipped = false;          // padding: rows follow the policy, no state is touched
};

/// First packed row of a sequence; `sequence` = sequences gives the end of the last one.
SHORTCONV_HOST_DEVICE inline std::int64_t sequence_begin(const Problem& p, const Addresses& at,
                                                         std::int64_t sequence) {
  if (!p.has_query_start_loc) return sequence * p.sequence_tokens;
  const std::int64_t row =
      load_index(p.query_start_loc_dtype, at.query_start_loc, sequence * p.query_start_loc_stride);
  return clamped(row, 0, p.tokens);
}

/// The last sequence that begins at or before `row`, or -1. Zero-length sequences before the one
/// that owns the row are passed over.
SHORTCONV_HOST_DEVICE inline std::int64_t find_sequence(const Problem& p, const Addresses& at,
                                                        std::int64_t row) {
  if (!p.has_query_start_loc) return row / p.sequence_tokens;
  std::int64_t low = 0, high = p.sequences;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (sequence_begin(p, at, middle) <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - 1;
}

SHORTCONV_HOST_DEVICE inline bool usable_slot(const Problem& p, std::int64_t slot) {
  return slot >= 0 && !(p.has_null_slot && slot == p.null_slot) && (!p.has_state || slot < p.slots);
}

SHORTCONV_HOST_DEVICE inline std::int64_t read_slot_of(const Problem& p, const Addresses& at,
                                                       std::int64_t sequence) {
  if (!p.has_read_slots) return sequence;
  return load_index(p.read_slots_dtype, at.read_slots, sequence * p.read_slots_stride);
}

/// A draft token's parent as it stands in memory.
SHORTCONV_HOST_DEVICE inline std::int64_t stated_parent(const Problem& p, const Addresses& at,
                                                        std::int64_t sequence, std::int64_t begin,
                                                        std::int64_t token) {
  const std::int64_t index = p.has_query_start_loc
                                 ? (begin + token) * p.parents_token
                                 : sequence * p.parents_sequence + token * p.parents_token;
  return load_index(p.parents_dtype, at.parents, index);
}

/// The token before a draft token in its own line of ancestors, both counted from the sequence's
/// first; below 0 lies the history, -1 the newest. A bad parent counts as none.
SHORTCONV_HOST_DEVICE inline std::int64_t parent_of(const Problem& p, const Addresses& at,
                                                    std::int64_t sequence, std::int64_t begin,
                                                    std::int64_t token) {
  if (!p.has_parents || token <= 0) return token - 1;
  const std::int64_t parent = stated_parent(p, at, sequence, begin, token);
  return parent >= 0 && parent < token ? parent : -1;
}

/// Where the window after a draft token begins, in elements of windows.
SHORTCONV_HOST_DEVICE inline std::int64_t window_of(const Problem& p, std::int64_t sequence,
                                                    std::int64_t begin, std::int64_t token) {
  return p.has_query_start_loc ? (begin + token) * p.window_token
                               : sequence * p.window_sequence + token * p.window_token;
}

/// `read` is the read slot as read_slot_of gives it: the default.
SHORTCONV_HOST_DEVICE inline std::int64_t write_slot_of(const Problem& p, const Addresses& at,
                                                        std::int64_t sequence, std::int64_t read) {
  if (!p.has_write_slots) return read;
  return load_index(p.write_slots_dtype, at.write_slots, sequence * p.write_slots_stride);
}

SHORTCONV_HOST_DEVICE inline std::int64_t read_offset_of(const Problem& p, const Addresses& at,
                                                         std::int64_t sequence) {
  if (!p.has_read_offsets) return 0;
  return load_index(p.read_offsets_dtype, at.read_offsets, sequence * p.read_offsets_stride);
}

/// The largest offset whose history still lies in the pool.
SHORTCONV_HOST_DEVICE inline std::int64_t last_read_offset(const Problem& p) {
  return p.state_columns - history_of(p) - p.state_base;
}

/// Inputs of the sequence before this call.
SHORTCONV_HOST_DEVICE inline std::int64_t ring_position_of(const Problem& p, const Addresses& at,
                                                           std::int64_t sequence) {
  if (!p.has_ring_positions) return 0;
  const std::int64_t position =
      load_index(p.ring_positions_dtype, at.ring_positions, sequence * p.ring_positions_stride);
  return position < 0 ? 0 : position;
}

SHORTCONV_HOST_DEVICE inline Sequence sequence_at(const Problem& p, const Addresses& at,
                                                  std::int64_t sequence) {
  // All loads first: none depends on another, and on a GPU each is a long wait.
  const std::int64_t begin = sequence_begin(p, at, sequence);
  const std::int64_t end = sequence_begin(p, at, sequence + 1);
  const std::int64_t read = read_slot_of(p, at, sequence);
  const std::int64_t write = write_slot_of(p, at, sequence, read);
  const std::int64_t offset = read_offset_of(p, at, sequence);
  const std::int64_t position = ring_position_of(p, at, sequence);
  const bool resumed =
      p.initial_state == InitialState::kAll ||
      (p.initial_state == InitialState::kByFlag &&
       static_cast<const std::uint8_t*>(at.has_initial_state)[sequence * p.flags_stride] != 0);

  Sequence s;
  s.begin = begin;
  s.end = end < begin ? begin : end;
  s.skipped = !usable_slot(p, read);
  if (s.skipped || !p.has_state) return s;
  if (p.keeps_state && usable_slot(p, write)) s.write_slot = write;
  if (p.has_ring_positions) s.ring_column = position % p.state_columns;
  if (!resumed) return s;
  s.read_slot = read;
  if (p.has_ring_positions) {
    const std::int64_t oldest = s.ring_column - history_of(p);
    s.read_column = oldest < 0 ? oldest + p.state_columns : oldest;
  } else {
    s.read_column = p.state_base + clamped(offset, 0, last_read_offset(p));
  }
  return s;
}

/// Offset of a packed row in x, out, a gate or seq_idx, in elements.
SHORTCONV_HOST_DEVICE inline std::int64_t row_offset(const Problem& p, std::int64_t row,
                                                     std::int64_t sequence_stride,
                                                     std::int64_t token_stride) {
  if (p.has_query_start_loc) return row * token_stride;
  return row / p.sequence_tokens * sequence_stride + row % p.sequence_tokens * token_stride;
}

/// What seq_idx says of a row of a dense batch.
SHORTCONV_HOST_DEVICE inline std::int64_t number_of_row(const Problem& p, const Addresses& at,
                                                        std::int64_t row) {
  return load_index(p.seq_idx_dtype, at.seq_idx,
                    row_offset(p, row, p.seq_idx_sequence, p.seq_idx_token));
}

/// With seq_idx: the part of a sequence that row `row` of it is in, as a sequence of its own. No
/// more than `most` rows to each side are looked at; where the part goes on, it is longer than is
/// said here.
SHORTCONV_HOST_DEVICE inline Sequence numbered_part(const Problem& p, const Addresses& at,
                                                    const Sequence& s, std::int64_t row,
                                                    std::int64_t most) {
  const std::int64_t number = number_of_row(p, at, row);
  const std::int64_t first = row - s.begin > most ? row - most : s.begin;
  const std::int64_t last = s.end - row > most ? row + most : s.end;
  Sequence part = s;
  part.begin = row;
  part.end = row + 1;
  while (part.begin > first && number_of_row(p, at, part.begin - 1) == number) --part.begin;
  while (part.end < last && number_of_row(p, at, part.end) == number) ++part.end;
  if (part.begin > s.begin) part.read_slot = -1;
  part.skipped = s.skipped || number < 0;
  return part;
}

// Inputs of a sequence have numbers: its tokens in this call from 0, its history below.

/// The column of the read slot where an input of the history lies, or an older one.
SHORTCONV_HOST_DEVICE inline std::int64_t history_column(const Problem& p, const Sequence& s,
                                                         std::int64_t input) {
  const std::int64_t column = s.read_column + history_of(p) + input;
  return column < p.state_columns ? column : column - p.state_columns;  // around a ring
}

/// The column of an input in a state whose newest input is the one before `end`.
SHORTCONV_HOST_DEVICE inline std::int64_t kept_column(const Problem& p, const Sequence& s,
                                                      std::int64_t input, std::int64_t end) {
  if (!p.has_ring_positions) return p.state_base + history_of(p) - (end - input);
  return (s.ring_column + input + (input < 0 ? p.state_columns : 0)) % p.state_columns;
}

/// The first input that the final state takes; the last token is the last. A ring that holds the
/// older inputs already takes the tokens alone, as many as it has columns. Of draft tokens it may
/// be that none stay: where the history is elsewhere they take all of it along.
SHORTCONV_HOST_DEVICE inline std::int64_t first_kept(const Problem& p, const Sequence& s) {
  const std::int64_t length = s.end - s.begin;
  const std::int64_t history = history_of(p);
  if (!p.has_ring_positions) return length - history - p.older_columns;
  std::int64_t first = p.op == Op::kVerify ? -history : length - history;
  if (first > 0 || s.read_slot == s.write_slot) first = 0;
  return first > length - p.state_columns ? first : length - p.state_columns;
}

/// The windows of a sequence that are captured: those after its first `tokens` tokens, of which
/// number t begins at first + t * window_token, in elements.
struct Windows {
  std::int64_t first = 0;
  std::int64_t tokens = 0;
};

SHORTCONV_HOST_DEVICE inline Windows windows_of(const Problem& p, const Addresses& at,
                                                const Sequence& s, std::int64_t sequence) {
  const std::int64_t length = s.end - s.begin;
  if (!p.has_windows) return {};
  if (!p.has_window_slots) return {window_of(p, sequence, s.begin, 0), length};
  const std::int64_t slot =
      load_index(p.window_slots_dtype, at.window_slots, sequence * p.window_slots_stride);
  if (slot < 0 || slot >= p.window_slots || (p.has_null_slot && slot == p.null_slot)) return {};
  return {slot * p.window_sequence, length < p.window_tokens ? length : p.window_tokens};
}

/// A row of the list of snapshots as it stands.
struct Snapshot {
  std::int64_t sequence = 0;
  std::int64_t token = 0;
  std::int64_t slot = 0;
};

SHORTCONV_HOST_DEVICE inline Snapshot snapshot_at(const Problem& p, const Addresses& at,
                                                  std::int64_t number) {
  const auto column = [&](std::int64_t index) {
    return load_index(p.snapshots_dtype, at.snapshots,
                      number * p.snapshots_row + index * p.snapshots_column);
  };
  return {column(0), column(1), column(2)};
}

/// Whether a snapshot of this sequence is to be taken. In the slot that the final state goes to,
/// that is what remains.
SHORTCONV_HOST_DEVICE inline bool is_taken(const Problem& p, const Sequence& s,
                                           const Snapshot& snapshot) {
  const std::int64_t length = s.end - s.begin;
  return !s.skipped && length > 0 && snapshot.token >= 0 && snapshot.token <= length &&
         usable_slot(p, snapshot.slot) && snapshot.slot != s.write_slot;
}

/// Whether a snapshot that is taken goes to the slot which its sequence begins from: it has to wait
/// for everybody who reads the history there, the final state among them.
SHORTCONV_HOST_DEVICE inline bool replaces_history(const Sequence& s, const Snapshot& snapshot) {
  return s.read_slot >= 0 && snapshot.slot == s.read_slot;
}

SHORTCONV_HOST_DEVICE inline std::int64_t x_row(const Problem& p, std::int64_t row) {
  return row_offset(p, row, p.x_sequence, p.x_token);
}
SHORTCONV_HOST_DEVICE inline std::int64_t out_row(const Problem& p, std::int64_t row) {
  return row_offset(p, row, p.out_sequence, p.out_token);
}
SHORTCONV_HOST_DEVICE inline std::int64_t input_gate_row(const Problem& p, std::int64_t row) {
  return row_offset(p, row, p.input_gate_sequence, p.input_gate_token);
}
SHORTCONV_HOST_DEVICE inline std::int64_t output_gate_row(const Problem& p, std::int64_t row) {
  return row_offset(p, row, p.output_gate_sequence, p.output_gate_token);
}

}  // namespace shortconv
