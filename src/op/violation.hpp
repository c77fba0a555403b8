// Rules of the checked mode: which values of index tensors are reported. sequence.hpp defines how a
// call treats these values.
//
// A number counts sequences, entries of query_start_loc (one more than sequences) or rows of
// snapshots.
#pragma once

#include <cstdint>

#include "op/sequence.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {

SHORTCONV_HOST_DEVICE constexpr std::uint32_t bit_of(Violation violation) {
  return 1u << static_cast<std::uint32_t>(violation);
}

// Slots that must be distinct. Of two sequences or rows with the same slot the later one is
// reported.

/// The slot that a sequence writes; -1 if it is padding, has no tokens, or its state is not
/// written.
SHORTCONV_HOST_DEVICE inline std::int64_t live_write_slot(const Problem& p,
                                                          const TensorPointers& at,
                                                          std::int64_t sequence) {
  const Sequence s = sequence_at(p, at, sequence);
  return s.begin < s.end ? s.write_slot : -1;
}

/// The slot of intermediate_states that a sequence writes, or -1.
SHORTCONV_HOST_DEVICE inline std::int64_t live_intermediate_slot(const Problem& p,
                                                                 const TensorPointers& at,
                                                                 std::int64_t sequence) {
  const Sequence s = sequence_at(p, at, sequence);
  if (s.skipped || intermediate_rows(p, at, s, sequence).tokens == 0) return -1;
  return load_index(p.intermediate_slots, at.intermediate_slots, sequence);
}

/// The slot that a row of snapshots writes, or -1.
SHORTCONV_HOST_DEVICE inline std::int64_t taken_snapshot_slot(const Problem& p,
                                                              const TensorPointers& at,
                                                              std::int64_t row) {
  const Snapshot snapshot = snapshot_at(p, at, row);
  if (snapshot.sequence < 0 || snapshot.sequence >= p.sequences) return -1;
  const Sequence s = sequence_at(p, at, snapshot.sequence);
  return is_taken(p, s, snapshot) ? snapshot.slot : -1;
}

/// Whether intermediate states are columns of the state (rolling states).
SHORTCONV_HOST_DEVICE inline bool captures_in_state(const Problem& p, const TensorPointers& at) {
  const std::int64_t base = p.base_column * p.state.column_stride * element_bytes(p.state.dtype);
  return p.intermediate_slots.present && p.intermediate_states.has_elements &&
         at.intermediate_states == static_cast<char*>(at.state) + base;
}

/// The slot that a sequence continues from, or -1.
SHORTCONV_HOST_DEVICE inline std::int64_t live_read_slot(const Problem& p, const TensorPointers& at,
                                                         std::int64_t sequence) {
  const Sequence s = sequence_at(p, at, sequence);
  return s.begin < s.end ? s.read_slot : -1;
}

/// The slot that a sequence continues from and does not write itself, or -1. If it writes the slot,
/// a second writer violates kWriteSlotShared or kIntermediateSlotShared.
SHORTCONV_HOST_DEVICE inline std::int64_t kept_read_slot(const Problem& p, const TensorPointers& at,
                                                         std::int64_t sequence) {
  const std::int64_t slot = live_read_slot(p, at, sequence);
  const bool is_written =
      slot == live_write_slot(p, at, sequence) ||
      (captures_in_state(p, at) && slot == live_intermediate_slot(p, at, sequence));
  return is_written ? -1 : slot;
}

/// False if sequences can write no slots but those that they read.
SHORTCONV_HOST_DEVICE inline bool may_write_other_slots(const Problem& p,
                                                        const TensorPointers& at) {
  return p.state.present && (p.write_slots.present || captures_in_state(p, at));
}

/// One past the largest number.
SHORTCONV_HOST_DEVICE inline std::int64_t violation_numbers(const Problem& p) {
  return p.sequences + 1 > p.snapshot_count ? p.sequences + 1 : p.snapshot_count;
}

/// Padding is not a violation.
SHORTCONV_HOST_DEVICE inline bool slot_outside(const Problem& p, std::int64_t slot,
                                               std::int64_t slots) {
  return slot >= slots && !is_padding(p, slot);
}

/// The bit of kSnapshotSlotOutside, or 0.
SHORTCONV_HOST_DEVICE inline std::uint32_t snapshot_violations_at(const Problem& p,
                                                                  const TensorPointers& at,
                                                                  std::int64_t row) {
  if (row >= p.snapshot_count) return 0;
  const Snapshot snapshot = snapshot_at(p, at, row);
  if (snapshot.sequence < 0 || snapshot.sequence >= p.sequences) return 0;
  const bool found = slot_outside(p, snapshot.slot, p.slots) &&
                     names_token(snapshot, sequence_at(p, at, snapshot.sequence));
  return found ? bit_of(Violation::kSnapshotSlotOutside) : 0;
}

/// One bit for each violation of a number, except for shared slots, which require the slots of
/// other numbers.
SHORTCONV_HOST_DEVICE inline std::uint32_t violations_at(const Problem& p, const TensorPointers& at,
                                                         std::int64_t number) {
  std::uint32_t found = snapshot_violations_at(p, at, number);
  if (number > p.sequences) return found;
  if (p.query_start_loc.present) {
    // Unclamped entries: clamping a too large entry could hide that the next one is smaller.
    const std::int64_t bound = load_index(p.query_start_loc, at.query_start_loc, number);
    if (bound < 0 || bound > p.tokens) found |= bit_of(Violation::kBoundOutside);
    if (number > 0 && bound < load_index(p.query_start_loc, at.query_start_loc, number - 1)) {
      found |= bit_of(Violation::kBoundsDecrease);
    }
  }
  if (number == p.sequences || !p.state.present) return found;  // no pool, no bound on slots

  const Sequence s = sequence_at(p, at, number);
  for (std::int64_t token = 0; p.parents.present && !s.skipped && token < s.end - s.begin;
       ++token) {
    const std::int64_t parent = raw_parent(p, at, number, s.begin, token);
    if (parent < -1 || parent >= token) found |= bit_of(Violation::kParentNotBefore);
  }
  const std::int64_t read_slot = read_slot_of(p, at, number);
  if (slot_outside(p, read_slot, p.slots)) found |= bit_of(Violation::kReadSlotOutside);
  if (s.skipped) return found;
  if (slot_outside(p, write_slot_of(p, at, number, read_slot), p.slots)) {
    found |= bit_of(Violation::kWriteSlotOutside);
  }
  if (p.intermediate_slots.present &&
      slot_outside(p, load_index(p.intermediate_slots, at.intermediate_slots, number),
                   p.intermediate_slot_count)) {
    found |= bit_of(Violation::kIntermediateSlotOutside);
  }
  if (s.begin < s.end && s.read_slot >= 0) {
    const std::int64_t offset = load_index_or(p.read_offsets, at.read_offsets, number, 0);
    if (offset < 0 || offset > last_read_offset(p)) found |= bit_of(Violation::kReadOffsetOutside);
  }
  return found;
}

}  // namespace shortconv
