#include "cpu/worker.hpp"

#include <hwy/cache_control.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/capability.hpp"
#include "cpu/move.hpp"

namespace shortconv::cpu {
namespace {

// Strided elements <-> fp32, for what is not contiguous. The order of the loops follows the smaller
// stride.
template <typename Move>
void for_each_element(std::int64_t rows, std::int64_t channels, std::int64_t row_stride,
                      std::int64_t channel_stride, Move&& move) {
  const auto magnitude = [](std::int64_t stride) { return stride < 0 ? -stride : stride; };
  if (magnitude(row_stride) < magnitude(channel_stride)) {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) move(r, c);
    }
  } else {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < channels; ++c) move(r, c);
    }
  }
}

float canonical_nan(float value) {
  return std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
}

}  // namespace

void Worker::process(std::int64_t item) {
  use_channels(item / choice_.tiles);
  const std::int64_t tile = item % choice_.tiles;
  if (p_.op == Op::kVerify) return tile == p_.sequences ? pad_outside() : drafts(tile);
  switch (p_.schedule) {
    case Schedule::kFlat:
      flat_tile(tile);
      return;
    case Schedule::kBlockList:
      if (tile == p_.blocks) return pad_outside();
      chunk(load_index(DType::kI32, at_.block_sequence, tile * p_.block_sequence_stride),
            load_index(DType::kI32, at_.block_offset, tile * p_.block_offset_stride), false);
      return;
    case Schedule::kSequenceGrid: {
      const std::int64_t chunks = (choice_.tiles - 1) / std::max<std::int64_t>(p_.sequences, 1);
      if (tile == p_.sequences * chunks) return pad_outside();
      // The last chunk goes on to the end: a longest_sequence that is too small leaves no row
      // unwritten.
      chunk(tile / chunks, tile % chunks, tile % chunks == chunks - 1);
      return;
    }
  }
}

void Worker::finish() const {
  if (stream_) hwy::FlushStream();
}

void Worker::use_channels(std::int64_t block) {
  if (block == block_) return;
  block_ = block;
  arranged_ = false;
  channel_ = block * choice_.block_channels;
  channels_ =
      static_cast<int>(std::min<std::int64_t>(choice_.block_channels, p_.channels - channel_));
  const int step = choice_.of_stage->step;
  pitch_ = (channels_ + step - 1) / step * step;

  const auto* weight = static_cast<const char*>(at_.weight) +
                       channel_ * p_.weight_channel * element_bytes(p_.weight_dtype);
  const bool packed = p_.weight_tap == 1 && p_.weight_channel == p_.width;
  if (packed) {
    choice_.of_weight->load(weight, stage_, std::int64_t{channels_} * p_.width);
    choice_.of_stage->split(stage_, p_.width, channels_, taps_, pitch_);
  }
  for (int tap = 0; tap < p_.width; ++tap) {
    float* row = taps_ + std::int64_t{tap} * pitch_;
    for (int c = 0; c < channels_ && !packed; ++c) {
      row[c] = load_f32(p_.weight_dtype, weight + (c * p_.weight_channel + tap * p_.weight_tap) *
                                                      element_bytes(p_.weight_dtype));
    }
    std::transform(row, row + channels_, row, canonical_nan);
    std::fill(row + channels_, row + pitch_, 0.0f);
  }
  std::fill(bias_, bias_ + pitch_, 0.0f);
  if (!p_.has_bias) return;
  const auto* bias = static_cast<const char*>(at_.bias) +
                     channel_ * p_.bias_channel * element_bytes(p_.weight_dtype);
  for (int c = 0; c < channels_; ++c) {
    bias_[c] = canonical_nan(
        load_f32(p_.weight_dtype, bias + c * p_.bias_channel * element_bytes(p_.weight_dtype)));
  }
}

void Worker::flat_tile(std::int64_t tile) {
  const std::int64_t begin = tile * choice_.tile_tokens;
  const std::int64_t end = std::min(begin + choice_.tile_tokens, p_.tokens);
  std::int64_t row = begin;
  for (std::int64_t sequence = std::max<std::int64_t>(find_sequence(p_, at_, begin), 0);
       row < end && sequence < p_.sequences; ++sequence) {
    const Sequence s = sequence_at(p_, at_, sequence);
    if (row < s.begin) {
      pad_rows(row, std::min(s.begin, end));
      row = std::min(s.begin, end);
    }
    const std::int64_t last = std::min(s.end, end);
    if (row >= last) continue;
    if (s.skipped) {
      pad_rows(row, last);
    } else if (p_.has_seq_idx) {
      numbered_tokens(s, sequence, row, last);
    } else {
      tokens(s, sequence, row - s.begin, last - s.begin, row == s.begin);
    }
    row = last;
  }
  if (row < end) pad_rows(row, end);
}

void Worker::numbered_tokens(const Sequence& s, std::int64_t sequence, std::int64_t row,
                             std::int64_t end) {
  const std::int64_t most = std::max(choice_.tile_tokens, choice_.head_tokens);
  while (row < end) {
    const Sequence part = numbered_part(p_, at_, s, row, most);
    const std::int64_t last = std::min(part.end, end);
    if (part.skipped) {
      pad_rows(row, last);
    } else {
      tokens(part, sequence, row - part.begin, last - part.begin, row == part.begin);
    }
    row = last;
  }
}

void Worker::chunk(std::int64_t sequence, std::int64_t chunk, bool to_the_end) {
  if (sequence < 0 || sequence >= p_.sequences || chunk < 0) return;
  const Sequence s = sequence_at(p_, at_, sequence);
  const std::int64_t length = s.end - s.begin;
  const std::int64_t first = chunk * kChunkTokens;
  if (first >= length) return;
  const std::int64_t last = to_the_end ? length : std::min(first + kChunkTokens, length);
  if (s.skipped) {
    pad_rows(s.begin + first, s.begin + last);
  } else {
    tokens(s, sequence, first, last, chunk == 0);
  }
}

// Schedules made of sequences do not visit the rows before the first and after the last one.
void Worker::pad_outside() {
  const std::int64_t begin = p_.sequences > 0 ? sequence_begin(p_, at_, 0) : p_.tokens;
  pad_rows(0, begin);
  if (p_.sequences > 0) pad_rows(std::max(begin, sequence_begin(p_, at_, p_.sequences)), p_.tokens);
}

void Worker::pad_rows(std::int64_t begin, std::int64_t end) {
  if (p_.padded_rows == PaddedRows::kUntouched) return;
  for (std::int64_t row = begin; row < end; ++row) {
    if (p_.padded_rows == PaddedRows::kCopy) {
      copy_run(x(row, channel_), p_.x_channel, p_.x_dtype, out(row, channel_), p_.out_channel,
               p_.out_dtype, channels_);
      continue;
    }
    const std::int64_t bytes = element_bytes(p_.out_dtype);
    if (p_.out_channel == 1) {
      std::memset(out(row, channel_), 0, static_cast<std::size_t>(bytes * channels_));
      continue;
    }
    for (int c = 0; c < channels_; ++c) {
      std::memset(out(row, channel_) + c * p_.out_channel * bytes, 0,
                  static_cast<std::size_t>(bytes));
    }
  }
}

void Worker::tokens(const Sequence& s, std::int64_t sequence, std::int64_t first, std::int64_t last,
                    bool head) {
  if (head) {
    load_history(s);
    write_state(s);
    if (replaces_histories_) replace_history(s, sequence);
  }
  convolve(s, first, last, head);
}

void Worker::convolve(const Sequence& s, std::int64_t first, std::int64_t last, bool head) {
  const std::int64_t heads = std::min(s.end - s.begin, choice_.head_tokens);
  if (head) convolve_heads(s, heads);
  first = std::max(first, heads);
  if (first < last) direct(s, first, last);
}

void Worker::load_history(const Sequence& s) {
  const int history = history_of(p_);
  if (s.read_slot < 0) {
    const std::int64_t bytes = history * pitch_ * element_bytes(p_.state_dtype);
    std::memset(raw_history(0), 0, static_cast<std::size_t>(bytes));
    return;
  }
  if (dense_window() && s.read_column + history <= p_.state_columns) {
    choice_.of_state->split(state(s.read_slot, s.read_column, channel_), history, channels_,
                            raw_history(0), pitch_);
  } else {
    for (int column = 0; column < history; ++column) {
      copy_run(state(s.read_slot, history_column(p_, s, column - history), channel_),
               p_.state_channel, p_.state_dtype, raw_history(column), 1, p_.state_dtype, channels_);
    }
  }
}

void Worker::keep_inputs(const Sequence& s, std::int64_t first, std::int64_t end,
                         std::int64_t slot) {
  const int history = history_of(p_);
  const char* const zeros = raw_history(0);  // where there is no history
  for (std::int64_t input = first; input < end; ++input) {
    char* to = state(slot, kept_column(p_, s, input, end), channel_);
    if (input >= 0) {
      move_inputs(s.begin + input, to, p_.state_channel, p_.state_dtype, stage_);
      continue;
    }
    const char* from = zeros;
    std::int64_t stride = 1;
    if (input >= -history) {
      from = raw_history(history + input);
    } else if (s.read_slot >= 0) {
      from = state(s.read_slot, history_column(p_, s, input), channel_);
      stride = p_.state_channel;
    }
    copy_run(from, stride, p_.state_dtype, to, p_.state_channel, p_.state_dtype, channels_);
  }
}

void Worker::take_snapshot(std::int64_t item) {
  const Snapshot snapshot = snapshot_at(p_, at_, item % p_.snapshots);
  if (snapshot.sequence < 0 || snapshot.sequence >= p_.sequences) return;
  const Sequence s = sequence_at(p_, at_, snapshot.sequence);
  if (!is_taken(p_, s, snapshot) || replaces_history(s, snapshot)) return;
  use_channels(item / p_.snapshots);
  const std::int64_t oldest = snapshot.token - history_of(p_);
  if (oldest < 0) load_history(s);
  keep_inputs(s, oldest, snapshot.token, snapshot.slot);
}

void Worker::replace_history(const Sequence& s, std::int64_t sequence) {
  for (std::int64_t number = 0; number < p_.snapshots; ++number) {
    const Snapshot snapshot = snapshot_at(p_, at_, number);
    if (snapshot.sequence != sequence || !is_taken(p_, s, snapshot)) continue;
    if (!replaces_history(s, snapshot)) continue;
    keep_inputs(s, snapshot.token - history_of(p_), snapshot.token, snapshot.slot);
  }
}

// The new window, column by column: rows of x or columns of the old history. What is not a run of
// channels in the state's type already becomes one in the stage.
void Worker::write_state(const Sequence& s) {
  if (s.write_slot < 0) return;
  if (p_.has_ring_positions || p_.older_columns > 0) {
    return keep_inputs(s, first_kept(p_, s), s.end - s.begin, s.write_slot);
  }
  const int history = history_of(p_);
  const std::int64_t length = s.end - s.begin;
  const void* columns[kMaxWidth - 1];
  for (int column = 0; column < history; ++column) {
    auto* scratch = reinterpret_cast<char*>(stage_ + std::int64_t{column} * pitch_);
    const std::int64_t token = length - history + column;
    columns[column] = scratch;
    if (token < 0) {
      columns[column] = raw_history(length + column);
    } else if (p_.x_channel == 1 && p_.x_dtype == p_.state_dtype && !p_.has_input_gate) {
      columns[column] = x(s.begin + token, channel_);
    } else {
      move_inputs(s.begin + token, scratch, 1, p_.state_dtype,
                  stage_ + std::int64_t{history} * pitch_);
    }
  }
  if (dense_window()) {
    choice_.of_state->join(columns, history, channels_,
                           state(s.write_slot, p_.state_base, channel_));
    return;
  }
  for (int column = 0; column < history; ++column) {
    copy_run(static_cast<const char*>(columns[column]), 1, p_.state_dtype,
             state(s.write_slot, p_.state_base + column, channel_), p_.state_channel,
             p_.state_dtype, channels_);
  }
}

void Worker::convolve_heads(const Sequence& s, std::int64_t heads) {
  const int history = history_of(p_);
  int from = 0;
  if (choice_.form == Form::kRows && (p_.state_dtype == p_.x_dtype || s.read_slot < 0)) {
    // History and inputs in one type: side by side in memory they are rows like any others.
    const int step = choice_.of_x->step;
    from = channels_ / step * step;
    const std::int64_t row_bytes = pitch_ * element_bytes(p_.x_dtype);
    auto* rows = reinterpret_cast<char*>(stage_);
    const auto history_bytes = static_cast<std::size_t>(history * row_bytes);
    if (s.read_slot < 0) {
      std::memset(rows, 0, history_bytes);
    } else {
      std::memcpy(rows, raw_history(0), history_bytes);
    }
    rows += history_bytes;
    for (std::int64_t t = 0; t < heads; ++t) {
      if (p_.has_input_gate) {
        choice_.of_x->multiply(x(s.begin + t, channel_), input_gate(s.begin + t, channel_),
                               rows + t * row_bytes, from);
      } else {
        std::memcpy(rows + t * row_bytes, x(s.begin + t, channel_),
                    static_cast<std::size_t>(from * element_bytes(p_.x_dtype)));
      }
    }
    convolve_rows(rows, pitch_, {}, s.begin, heads, from);
  }
  if (from == channels_) return;
  for (int column = 0; column < history; ++column) {
    float* row = stage_ + std::int64_t{column} * pitch_;
    choice_.of_state->load(raw_history(column), row, channels_);
    std::fill(row + channels_, row + pitch_, 0.0f);
  }
  through_stage(s, 0, heads, from, channels_ - from);
}

void Worker::convolve_rows(const void* from, std::int64_t from_token, const Rows& input_gate,
                           std::int64_t row, std::int64_t tokens, int count) {
  if (count == 0) return;
  arrange_taps();
  choice_.of_x->rows({
      .x = from,
      .out = out(row, channel_),
      .x_token = from_token,
      .x_channel = 1,
      .out_token = p_.out_token,
      .out_channel = 1,
      .taps = arranged_taps_,
      .bias = arranged_bias_,
      .tap_pitch = pitch_,
      .tokens = tokens,
      .channels = count,
      .width = p_.width,
      .dilation = p_.dilation,
      .epilogue = p_.epilogue,
      .input_gate = input_gate,
      .output_gate = output_gates(row),
      .stream = stream_,
  });
}

void Worker::arrange_taps() {
  if (arranged_) return;
  for (int tap = 0; tap < p_.width; ++tap) {
    const std::int64_t row = std::int64_t{tap} * pitch_;
    choice_.of_x->arrange(taps_ + row, arranged_taps_ + row, pitch_);
  }
  choice_.of_x->arrange(bias_, arranged_bias_, pitch_);
  arranged_ = true;
}

void Worker::direct(const Sequence& s, std::int64_t first, std::int64_t last) {
  const int step = choice_.of_x->step;
  const std::int64_t row = s.begin + first;
  if (choice_.form == Form::kRows) {
    const int count = channels_ / step * step;
    convolve_rows(x(row, channel_), p_.x_token, input_gates(row), row, last - first, count);
    if (count < channels_) through_stage(s, first, last, count, channels_ - count);
  } else if (choice_.form == Form::kColumns && last - first >= step) {
    choice_.of_x->columns({
        .x = x(row, channel_),
        .out = out(row, channel_),
        .x_token = 1,
        .x_channel = p_.x_channel,
        .out_token = 1,
        .out_channel = p_.out_channel,
        .taps = taps_,
        .bias = bias_,
        .tap_pitch = pitch_,
        .tokens = last - first,
        .channels = channels_,
        .width = p_.width,
        .dilation = p_.dilation,
        .epilogue = p_.epilogue,
        .input_gate = input_gates(row),
        .output_gate = output_gates(row),
    });
  } else {
    through_stage(s, first, last, 0, channels_);
  }
}

void Worker::through_stage(const Sequence& s, std::int64_t first, std::int64_t last, int from,
                           int count) {
  const int history = history_of(p_);
  const int step = choice_.of_stage->step;
  if (first > 0)
    gather_rows(s.begin + first - history, history, channel_ + from, count, stage_ + from);
  float* inputs = stage_ + std::int64_t{history} * pitch_ + from;
  while (first < last) {
    const std::int64_t tokens = std::min<std::int64_t>(last - first, kStageTokens);
    gather_rows(s.begin + first, tokens, channel_ + from, count, inputs);
    choice_.of_stage->rows({
        .x = inputs,
        .out = results_ + from,
        .x_token = pitch_,
        .x_channel = 1,
        .out_token = pitch_,
        .out_channel = 1,
        .taps = taps_ + from,
        .bias = bias_ + from,
        .tap_pitch = pitch_,
        .tokens = tokens,
        .channels = (count + step - 1) / step * step,
        .width = p_.width,
        .dilation = p_.dilation,
        .epilogue = p_.epilogue,
        .output_gate = gather_output_gate(s.begin + first, tokens, from, count),
    });
    scatter_rows(results_ + from, s.begin + first, tokens, channel_ + from, count);
    first += tokens;
    if (first == last) return;
    for (int k = 0; k < history; ++k) {  // ascending: a row is never read after it was overwritten
      std::memcpy(stage_ + std::int64_t{k} * pitch_ + from, stage_ + (k + tokens) * pitch_ + from,
                  sizeof(float) * static_cast<std::size_t>(count));
    }
  }
}

void Worker::move_inputs(std::int64_t row, char* to, std::int64_t to_stride, DType to_dtype,
                         void* scratch) {
  const char* from = x(row, channel_);
  std::int64_t stride = p_.x_channel;
  if (p_.has_input_gate) {
    const std::int64_t bytes = element_bytes(p_.x_dtype);
    const char* gate = input_gate(row, channel_);
    auto* products = static_cast<char*>(scratch);
    if (p_.x_channel == 1 && p_.input_gate_channel == 1) {
      choice_.of_x->multiply(from, gate, products, channels_);
    } else {
      for (int c = 0; c < channels_; ++c) {
        store_f32(p_.x_dtype, products + c * bytes,
                  gated_f32(p_.x_dtype, from + c * p_.x_channel * bytes,
                            gate + c * p_.input_gate_channel * bytes));
      }
    }
    from = products;
    stride = 1;
  }
  copy_run(from, stride, p_.x_dtype, to, to_stride, to_dtype, channels_);
}

void Worker::gather(const char* from, std::int64_t token_stride, std::int64_t channel_stride,
                    std::int64_t rows, int count, float* to) {
  const int step = choice_.of_stage->step;
  const int padded = (count + step - 1) / step * step;
  const std::int64_t bytes = element_bytes(p_.x_dtype);
  for (std::int64_t r = 0; r < rows; ++r) {
    if (channel_stride == 1)
      choice_.of_x->load(from + r * token_stride * bytes, to + r * pitch_, count);
    std::fill(to + r * pitch_ + count, to + r * pitch_ + padded, 0.0f);
  }
  if (channel_stride == 1) return;
  for_each_element(rows, count, token_stride, channel_stride, [&](std::int64_t r, std::int64_t c) {
    to[r * pitch_ + c] =
        load_f32(p_.x_dtype, from + (r * token_stride + c * channel_stride) * bytes);
  });
}

void Worker::gather_rows(std::int64_t row, std::int64_t rows, std::int64_t channel, int count,
                         float* to) {
  if (!p_.has_input_gate) {
    gather(x(row, channel), p_.x_token, p_.x_channel, rows, count, to);
    return;
  }
  const std::int64_t bytes = element_bytes(p_.x_dtype);
  const char *from = x(row, channel), *gate = input_gate(row, channel);
  if (p_.x_channel == 1 && p_.input_gate_channel == 1) {
    auto* products = reinterpret_cast<char*>(results_);
    for (std::int64_t r = 0; r < rows; ++r) {
      choice_.of_x->multiply(from + r * p_.x_token * bytes, gate + r * p_.input_gate_token * bytes,
                             products, count);
      gather(products, 0, 1, 1, count, to + r * pitch_);
    }
    return;
  }
  gather(from, p_.x_token, p_.x_channel, rows, count, to);  // fills up the steps as well
  for_each_element(rows, count, p_.x_token, p_.x_channel, [&](std::int64_t r, std::int64_t c) {
    to[r * pitch_ + c] =
        gated_f32(p_.x_dtype, from + (r * p_.x_token + c * p_.x_channel) * bytes,
                  gate + (r * p_.input_gate_token + c * p_.input_gate_channel) * bytes);
  });
}

Rows Worker::gather_output_gate(std::int64_t row, std::int64_t tokens, int from, int count) {
  if (p_.epilogue != Epilogue::kOutputGate) return {};
  gather(output_gate(row, channel_ + from), p_.output_gate_token, p_.output_gate_channel, tokens,
         count, results_ + from);
  return {results_ + from, pitch_, 1};
}

void Worker::scatter_rows(const float* from, std::int64_t row, std::int64_t rows,
                          std::int64_t channel, int count) {
  const std::int64_t bytes = element_bytes(p_.out_dtype);
  char* base = out(row, channel);
  if (p_.out_channel == 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      choice_.of_out->store(from + r * pitch_, base + r * p_.out_token * bytes, count);
    }
    return;
  }
  for_each_element(rows, count, p_.out_token, p_.out_channel, [&](std::int64_t r, std::int64_t c) {
    store_f32(p_.out_dtype, base + (r * p_.out_token + c * p_.out_channel) * bytes,
              from[r * pitch_ + c]);
  });
}

}  // namespace shortconv::cpu
