// What a sequence of a commit moves, and where to: the rules for values that only the device knows.
// Bad values (accepted numbers, slots or bounds out of range) never lead outside a tensor.
#pragma once

#include <cstdint>

#include "core/device.hpp"
#include "core/element.hpp"
#include "op/sequence.hpp"
#include "shortconv/commit.hpp"

namespace shortconv {

struct Commit {
  std::int64_t token = -1;  // whose window is committed; -1: nothing is committed
  std::int64_t slot = -1;   // -1: not written
  std::int64_t second_slot = -1;
};

SHORTCONV_HOST_DEVICE inline bool usable_slot(const CommitProblem& p, std::int64_t slot) {
  return slot >= 0 && slot < p.slots && !(p.has_null_slot && slot == p.null_slot);
}

SHORTCONV_HOST_DEVICE inline Commit commit_of(const CommitProblem& p, const CommitAddresses& at,
                                              std::int64_t sequence) {
  // All loads first: none depends on another, and on a GPU each is a long wait.
  const std::int64_t accepted =
      load_index(p.accepted_dtype, at.accepted, sequence * p.accepted_stride);
  const std::int64_t slot =
      p.has_slots ? load_index(p.slots_dtype, at.slots, sequence * p.slots_stride) : sequence;
  const std::int64_t second_slot =
      p.has_second_slots
          ? load_index(p.second_slots_dtype, at.second_slots, sequence * p.second_slots_stride)
          : -1;
  std::int64_t begin = 0, end = p.tokens;
  if (p.has_query_start_loc) {
    const DType dtype = p.query_start_loc_dtype;
    begin = load_index(dtype, at.query_start_loc, sequence * p.query_start_loc_stride);
    end = load_index(dtype, at.query_start_loc, (sequence + 1) * p.query_start_loc_stride);
    begin = clamped(begin, 0, p.tokens);
    end = clamped(end, 0, p.tokens);
  }

  Commit commit;
  if (accepted < 0 || accepted >= end - begin) return commit;
  if (usable_slot(p, slot)) commit.slot = slot;
  if (usable_slot(p, second_slot)) commit.second_slot = second_slot;
  if (commit.slot >= 0 || commit.second_slot >= 0) commit.token = begin + accepted;
  return commit;
}

/// First element of a window, and of a slot's history.
SHORTCONV_HOST_DEVICE inline std::int64_t window_offset(const CommitProblem& p, std::int64_t layer,
                                                        std::int64_t sequence, std::int64_t token) {
  return layer * p.windows_layer + sequence * p.windows_sequence + token * p.windows_token;
}
SHORTCONV_HOST_DEVICE inline std::int64_t history_offset(const CommitProblem& p, std::int64_t layer,
                                                         std::int64_t slot) {
  return layer * p.state_layer + slot * p.state_slot + p.state_base * p.state_column;
}

/// Where a window without gaps, window-innermost on both sides, is one run of elements, any other
/// cut of the run moves the same bits: as width - 1 rows of adjacent channels.
inline CommitProblem with_adjacent_channels(CommitProblem p) {
  const std::int64_t rows = p.width - 1;
  const bool run = p.state_columns == rows && p.windows_channel == rows &&
                   p.state_channel == rows &&
                   (rows == 1 || (p.windows_row == 1 && p.state_column == 1));
  if (!run) return p;
  p.windows_channel = p.state_channel = 1;
  p.windows_row = p.state_column = p.channels;
  return p;
}

}  // namespace shortconv
