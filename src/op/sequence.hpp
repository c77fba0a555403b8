// Which rows, slots and columns a sequence of the batch has: the rules of the specification for
// values that only the device knows. Bad values (bounds that decrease or leave the tensor, slots
// out of range) never lead outside a tensor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

struct Sequence {
  std::int64_t begin = 0;  // packed rows [begin, end)
  std::int64_t end = 0;
  std::int64_t read_slot = -1;   // -1: starts from zeros
  std::int64_t write_slot = -1;  // -1: the final state is not kept
  std::int64_t read_column = 0;  // oldest column of the history
  bool skipped = false;          // padding: rows follow the policy, no state is touched
};

/// First packed row of a sequence; `sequence` = sequences gives the end of the last one.
inline std::int64_t sequence_begin(const Problem& p, const Addresses& at, std::int64_t sequence) {
  if (!p.has_query_start_loc) return sequence * p.sequence_tokens;
  const std::int64_t row =
      load_index(p.query_start_loc_dtype, at.query_start_loc, sequence * p.query_start_loc_stride);
  return std::clamp<std::int64_t>(row, 0, p.tokens);
}

/// The last sequence that begins at or before `row`, or -1. Zero-length sequences before the one
/// that owns the row are passed over.
inline std::int64_t find_sequence(const Problem& p, const Addresses& at, std::int64_t row) {
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

inline Sequence sequence_at(const Problem& p, const Addresses& at, std::int64_t sequence) {
  Sequence s;
  s.begin = sequence_begin(p, at, sequence);
  s.end = std::max(s.begin, sequence_begin(p, at, sequence + 1));

  const std::int64_t read = p.has_read_slots ? load_index(p.read_slots_dtype, at.read_slots,
                                                          sequence * p.read_slots_stride)
                                             : sequence;
  const auto usable = [&](std::int64_t slot) {
    return slot >= 0 && !(p.has_null_slot && slot == p.null_slot) &&
           (!p.has_state || slot < p.slots);
  };
  s.skipped = !usable(read);
  if (s.skipped || !p.has_state) return s;

  const std::int64_t write = p.has_write_slots ? load_index(p.write_slots_dtype, at.write_slots,
                                                            sequence * p.write_slots_stride)
                                               : read;
  if (usable(write)) s.write_slot = write;

  const bool resumed =
      p.initial_state == InitialState::kAll ||
      (p.initial_state == InitialState::kByFlag &&
       static_cast<const std::uint8_t*>(at.has_initial_state)[sequence * p.flags_stride] != 0);
  if (!resumed) return s;
  s.read_slot = read;
  std::int64_t offset = 0;
  if (p.has_read_offsets) {
    offset = load_index(p.read_offsets_dtype, at.read_offsets, sequence * p.read_offsets_stride);
  }
  const std::int64_t last = p.state_columns - (p.width - 1) - p.state_base;
  s.read_column = p.state_base + std::clamp<std::int64_t>(offset, 0, last);
  return s;
}

/// Offset of a packed row in x or out, in elements.
inline std::int64_t x_row(const Problem& p, std::int64_t row) {
  if (p.has_query_start_loc) return row * p.x_token;
  return row / p.sequence_tokens * p.x_sequence + row % p.sequence_tokens * p.x_token;
}
inline std::int64_t out_row(const Problem& p, std::int64_t row) {
  if (p.has_query_start_loc) return row * p.out_token;
  return row / p.sequence_tokens * p.out_sequence + row % p.sequence_tokens * p.out_token;
}

}  // namespace shortconv
