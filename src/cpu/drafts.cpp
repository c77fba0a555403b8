// Draft tokens: a sequence is done by one thread, which knows its history and every ancestor of a
// token.
#include <algorithm>

#include "core/capability.hpp"
#include "cpu/move.hpp"
#include "cpu/worker.hpp"

namespace shortconv::cpu {

void Worker::drafts(std::int64_t sequence) {
  const Sequence s = sequence_at(p_, at_, sequence);
  if (s.begin >= s.end) return;
  if (s.skipped) return pad_rows(s.begin, s.end);
  load_history(s);
  capture_windows(s, sequence);
  write_state(s);
  if (p_.has_parents) {
    convolve_tree(s, sequence);
  } else {
    convolve(s, 0, s.end - s.begin, true);
  }
}

// Windows may lie where the history was, which has been loaded.
void Worker::capture_windows(const Sequence& s, std::int64_t sequence) {
  const int history = history_of(p_);
  // Overlapping windows of a chain: the next one has one more input.
  const bool overlap = p_.window_token == p_.window_column;
  const Windows windows = windows_of(p_, at_, s, sequence);
  for (std::int64_t token = 0; token < windows.tokens; ++token) {
    const std::int64_t first = windows.first + token * p_.window_token;
    std::int64_t input = token;
    for (int column = history - 1; column >= 0; --column) {
      char* to = window(first, column);
      if (input >= 0) {
        move_inputs(s.begin + input, to, p_.window_channel, p_.state_dtype, stage_);
      } else {
        copy_run(raw_history(history + input), 1, p_.state_dtype, to, p_.window_channel,
                 p_.state_dtype, channels_);
      }
      if (overlap && token > 0) break;
      input = parent_of(p_, at_, sequence, s.begin, input);
    }
  }
}

// The stage holds the history in fp32 and behind it the window of one token.
void Worker::convolve_tree(const Sequence& s, std::int64_t sequence) {
  const int history = history_of(p_);
  for (int column = 0; column < history; ++column) {
    float* row = stage_ + std::int64_t{column} * pitch_;
    choice_.of_state->load(raw_history(column), row, channels_);
    std::fill(row + channels_, row + pitch_, 0.0f);
  }
  float* const window = stage_ + std::int64_t{history} * pitch_;
  for (std::int64_t token = 0; token < s.end - s.begin; ++token) {
    std::int64_t input = token;
    for (int tap = history; tap >= 0; --tap) {
      float* row = window + std::int64_t{tap} * pitch_;
      if (input >= 0) {
        gather_rows(s.begin + input, 1, channel_, channels_, row);
      } else {
        std::copy_n(stage_ + (history + input) * pitch_, pitch_, row);
      }
      input = parent_of(p_, at_, sequence, s.begin, input);
    }
    choice_.of_stage->rows({
        .x = window + std::int64_t{history} * pitch_,
        .out = results_,
        .x_token = pitch_,
        .x_channel = 1,
        .out_token = pitch_,
        .out_channel = 1,
        .taps = taps_,
        .bias = bias_,
        .tap_pitch = pitch_,
        .tokens = 1,
        .channels = pitch_,
        .width = p_.width,
        .dilation = p_.dilation,
        .epilogue = p_.epilogue,
        .output_gate = gather_output_gate(s.begin + token, 1, 0, channels_),
    });
    scatter_rows(results_, s.begin + token, 1, channel_, channels_);
  }
}

}  // namespace shortconv::cpu
