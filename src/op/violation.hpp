// The rules of the checked mode: which values of the index tensors are reported. What a call does
// with such values is sequence.hpp's business.
//
// Numbers run from 0 to sequences, the last one being only the end of query_start_loc.
#pragma once

#include <cstdint>

#include "op/sequence.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {

SHORTCONV_HOST_DEVICE constexpr std::uint32_t bit_of(Violation violation) {
  return 1u << static_cast<std::uint32_t>(violation);
}

/// The slot that a sequence writes, or -1: it is padding, has no tokens, or its state is not kept.
/// Of two live sequences with one write slot the later one is reported.
SHORTCONV_HOST_DEVICE inline std::int64_t live_write_slot(const Problem& p, const Addresses& at,
                                                          std::int64_t sequence) {
  const Sequence s = sequence_at(p, at, sequence);
  return s.begin < s.end ? s.write_slot : -1;
}

/// Negative slots and the null slot are how a caller says padding, so no mistake.
SHORTCONV_HOST_DEVICE inline bool slot_outside(const Problem& p, std::int64_t slot) {
  return slot >= p.slots && !(p.has_null_slot && slot == p.null_slot);
}

/// One bit for each violation of a number but kWriteSlotShared, which takes the other sequences.
SHORTCONV_HOST_DEVICE inline std::uint32_t violations_at(const Problem& p, const Addresses& at,
                                                         std::int64_t number) {
  std::uint32_t found = 0;
  if (p.has_query_start_loc) {
    // Entries as they stand, not clamped: one that is too large may hide that the next is less.
    const std::int64_t stride = p.query_start_loc_stride;
    const std::int64_t bound =
        load_index(p.query_start_loc_dtype, at.query_start_loc, number * stride);
    if (bound < 0 || bound > p.tokens) found |= bit_of(Violation::kBoundOutside);
    if (number > 0 &&
        bound < load_index(p.query_start_loc_dtype, at.query_start_loc, (number - 1) * stride)) {
      found |= bit_of(Violation::kBoundsDecrease);
    }
  }
  if (number == p.sequences || !p.has_state) return found;  // without a pool any slot will do

  const Sequence s = sequence_at(p, at, number);
  for (std::int64_t token = 0; p.has_parents && !s.skipped && token < s.end - s.begin; ++token) {
    const std::int64_t parent = stated_parent(p, at, number, s.begin, token);
    if (parent < -1 || parent >= token) found |= bit_of(Violation::kParentNotBefore);
  }
  const std::int64_t read = read_slot_of(p, at, number);
  if (slot_outside(p, read)) found |= bit_of(Violation::kReadSlotOutside);
  if (!s.skipped && slot_outside(p, write_slot_of(p, at, number, read))) {
    found |= bit_of(Violation::kWriteSlotOutside);
  }
  if (s.begin < s.end && s.read_slot >= 0) {
    const std::int64_t offset = read_offset_of(p, at, number);
    if (offset < 0 || offset > last_read_offset(p)) found |= bit_of(Violation::kReadOffsetOutside);
  }
  return found;
}

}  // namespace shortconv
