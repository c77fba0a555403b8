// Draft tokens. One item per sequence and block of channels: the thread has the history and all
// ancestors of a token.
#include <algorithm>

#include "cpu/move.hpp"
#include "cpu/worker.hpp"

namespace shortconv::cpu {

void Worker::process_drafts(std::int64_t sequence) {
  const Sequence s = sequence_at(p_, at_, sequence);
  if (s.begin >= s.end) return;
  if (s.skipped) return pad_rows(s.begin, s.end);
  load_history(s);
  write_intermediate_states(s, sequence);
  write_state(s);
  if (p_.parents.present) {
    convolve_tree(s, sequence);
  } else {
    convolve(s, 0, s.end - s.begin);
  }
}

// Intermediate states may overlap the slot of the history, which has been loaded.
void Worker::write_intermediate_states(const Sequence& s, std::int64_t sequence) {
  const int history = history_of(p_);
  const auto& states = p_.intermediate_states;
  const bool overlap = states.token_stride == states.column_stride;
  const IntermediateRows rows = intermediate_rows(p_, at_, s, sequence);
  for (std::int64_t token = 0; token < rows.tokens; ++token) {
    std::int64_t input = token;
    for (int column = history - 1; column >= 0; --column) {
      const std::int64_t offset = rows.first + token * states.token_stride +
                                  column * states.column_stride + channel_ * states.channel_stride;
      char* to =
          static_cast<char*>(at_.intermediate_states) + offset * element_bytes(p_.state.dtype);
      if (input >= 0) {
        move_inputs(s.begin + input, to, states.channel_stride, p_.state.dtype, stage_);
      } else {
        copy_run(raw_history(history + input), 1, p_.state.dtype, to, states.channel_stride,
                 p_.state.dtype, channels_);
      }
      if (overlap && token > 0) break;  // the other columns belong to the token before, too
      input = parent_of(p_, at_, sequence, s.begin, input);
    }
  }
}

// The stage holds the history in fp32, then the window of one token.
void Worker::convolve_tree(const Sequence& s, std::int64_t sequence) {
  const int history = history_of(p_);
  stage_history();
  float* const window = stage_ + std::int64_t{history} * pitch_;
  for (std::int64_t token = 0; token < s.end - s.begin; ++token) {
    std::int64_t input = token;
    for (int tap = history; tap >= 0; --tap) {
      float* row = window + std::int64_t{tap} * pitch_;
      if (input >= 0) {
        gather_inputs(s.begin + input, 1, 0, channels_, row);
      } else {
        std::copy_n(stage_ + (history + input) * pitch_, pitch_, row);
      }
      input = parent_of(p_, at_, sequence, s.begin, input);
    }
    convolve_stage_rows(window + std::int64_t{history} * pitch_, s.begin + token, 1, 0, channels_);
  }
}

}  // namespace shortconv::cpu
