// The rules of the checked mode: which values of the index tensors are reported. What a call does
// with such values is sequence.hpp's business.
//
// Numbers are those of sequences, of entries of query_start_loc, one more, and of rows of
// snapshots.
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

/// The slot of windows that a sequence fills, or -1.
SHORTCONV_HOST_DEVICE inline std::int64_t live_window_slot(const Problem& p, const Addresses& at,
                                                           std::int64_t sequence) {
  const Sequence s = sequence_at(p, at, sequence);
  if (s.skipped || windows_of(p, at, s, sequence).tokens == 0) return -1;
  return load_index(p.window_slots_dtype, at.window_slots, sequence * p.window_slots_stride);
}

/// Whether a row of snapshots names a token of a live sequence.
SHORTCONV_HOST_DEVICE inline bool names_token(const Snapshot& snapshot, const Sequence& s) {
  const std::int64_t length = s.end - s.begin;
  return !s.skipped && length > 0 && snapshot.token >= 0 && snapshot.token <= length;
}

/// The slot that a row of snapshots fills, or -1.
SHORTCONV_HOST_DEVICE inline std::int64_t taken_snapshot_slot(const Problem& p, const Addresses& at,
                                                              std::int64_t number) {
  const Snapshot snapshot = snapshot_at(p, at, number);
  if (snapshot.sequence < 0 || snapshot.sequence >= p.sequences) return -1;
  const Sequence s = sequence_at(p, at, snapshot.sequence);
  return is_taken(p, s, snapshot) ? snapshot.slot : -1;
}

/// One past the largest number that any rule is about.
SHORTCONV_HOST_DEVICE inline std::int64_t violation_numbers(const Problem& p) {
  return p.sequences + 1 > p.snapshots ? p.sequences + 1 : p.snapshots;
}

/// Negative slots and the null slot are how a caller says padding, so no mistake.
SHORTCONV_HOST_DEVICE inline bool slot_outside(const Problem& p, std::int64_t slot) {
  return slot >= p.slots && !(p.has_null_slot && slot == p.null_slot);
}

/// The bit of kSnapshotSlotOutside for a row that has it.
SHORTCONV_HOST_DEVICE inline std::uint32_t snapshot_violations_at(const Problem& p,
                                                                  const Addresses& at,
                                                                  std::int64_t number) {
  if (number >= p.snapshots) return 0;
  const Snapshot snapshot = snapshot_at(p, at, number);
  if (snapshot.sequence < 0 || snapshot.sequence >= p.sequences) return 0;
  const bool found = slot_outside(p, snapshot.slot) &&
                     names_token(snapshot, sequence_at(p, at, snapshot.sequence));
  return found ? bit_of(Violation::kSnapshotSlotOutside) : 0;
}

/// One bit for each violation of a number but those of shared slots, which take the other numbers.
SHORTCONV_HOST_DEVICE inline std::uint32_t violations_at(const Problem& p, const Addresses& at,
                                                         std::int64_t number) {
  std::uint32_t found = snapshot_violations_at(p, at, number);
  if (number > p.sequences) return found;
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
  if (p.has_window_slots && !s.skipped) {
    const std::int64_t slot =
        load_index(p.window_slots_dtype, at.window_slots, number * p.window_slots_stride);
    const bool null = p.has_null_slot && slot == p.null_slot;
    if (slot >= p.window_slots && !null) found |= bit_of(Violation::kWindowSlotOutside);
  }
  if (s.begin < s.end && s.read_slot >= 0) {
    const std::int64_t offset = read_offset_of(p, at, number);
    if (offset < 0 || offset > last_read_offset(p)) found |= bit_of(Violation::kReadOffsetOutside);
  }
  return found;
}

}  // namespace shortconv
