// What a commit copies for a sequence, and to which slots: the rules of the specification for
// values in index tensors. Invalid values (accepted numbers, slots or bounds out of range) never
// cause an access outside a tensor.
#pragma once

#include <cstdint>

#include "op/sequence.hpp"

namespace shortconv {

struct Commit {
  std::int64_t token = -1;  // the state after this token is committed; -1: none
  std::int64_t slot = -1;   // -1: not written
  std::int64_t second_slot = -1;
};

SHORTCONV_HOST_DEVICE inline Commit commit_of(const CommitProblem& p, const CommitPointers& at,
                                              std::int64_t sequence) {
  // All loads come first: they are independent, and each has a long latency on a GPU.
  const std::int64_t accepted = load_index(p.accepted, at.accepted, sequence);
  const std::int64_t slot = load_index_or(p.slots, at.slots, sequence, sequence);
  const std::int64_t second_slot = load_index_or(p.second_slots, at.second_slots, sequence, -1);
  std::int64_t begin = 0, end = p.tokens;
  if (p.query_start_loc.present) {
    begin = load_index(p.query_start_loc, at.query_start_loc, sequence);
    end = load_index(p.query_start_loc, at.query_start_loc, sequence + 1);
    begin = clamped(begin, 0, p.tokens);
    end = clamped(end, 0, p.tokens);
  }

  Commit commit;
  if (accepted < 0 || accepted >= end - begin) return commit;
  if (usable_slot(p, slot, p.slot_count)) commit.slot = slot;
  if (usable_slot(p, second_slot, p.slot_count)) commit.second_slot = second_slot;
  if (commit.slot >= 0 || commit.second_slot >= 0) commit.token = begin + accepted;
  return commit;
}

/// Offset of an intermediate state, in elements.
SHORTCONV_HOST_DEVICE inline std::int64_t intermediate_offset(const CommitProblem& p,
                                                              std::int64_t layer,
                                                              std::int64_t sequence,
                                                              std::int64_t token) {
  return layer * p.intermediate_states.layer_stride +
         sequence * p.intermediate_states.sequence_stride +
         token * p.intermediate_states.token_stride;
}
/// Offset of the history in a slot, in elements.
SHORTCONV_HOST_DEVICE inline std::int64_t history_offset(const CommitProblem& p, std::int64_t layer,
                                                         std::int64_t slot) {
  return layer * p.state.layer_stride + slot * p.state.slot_stride +
         p.base_column * p.state.column_stride;
}

/// A problem with the same copies but adjacent channels, if each state is one contiguous run of
/// elements on both sides with columns innermost: the run can be read as width - 1 rows of any
/// order.
inline CommitProblem with_adjacent_channels(CommitProblem p) {
  const std::int64_t rows = p.width - 1;
  const bool run =
      p.state_columns == rows && p.intermediate_states.channel_stride == rows &&
      p.state.channel_stride == rows &&
      (rows == 1 || (p.intermediate_states.column_stride == 1 && p.state.column_stride == 1));
  if (!run) return p;
  p.intermediate_states.channel_stride = p.state.channel_stride = 1;
  p.intermediate_states.column_stride = p.state.column_stride = p.channels;
  return p;
}

}  // namespace shortconv
