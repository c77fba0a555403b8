// Outputs of a block of channels, with the SIMD kernels. The start of a sequence and everything
// that is neither token-major nor channels-first goes through the stage: up to 8 rows in fp32 with
// the history before them.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu/move.hpp"
#include "cpu/worker.hpp"

namespace shortconv::cpu {
namespace {

// A row of the history of a sequence that starts from zeros, in any dtype.
constexpr char kZeros[kMaxBlockChannels * sizeof(float)] = {};

// Visits rows x channels with the smaller stride in the inner loop.
template <typename Visit>
void for_each_element(std::int64_t rows, std::int64_t channels, std::int64_t row_stride,
                      std::int64_t channel_stride, Visit&& visit) {
  if (std::abs(row_stride) < std::abs(channel_stride)) {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) visit(r, c);
    }
  } else {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < channels; ++c) visit(r, c);
    }
  }
}

}  // namespace

void Worker::convolve(const Sequence& s, std::int64_t first, std::int64_t last) {
  const std::int64_t start = std::min(s.end - s.begin, config_.start_tokens);
  if (first == 0) {
    first = has_rows_of_inputs(s) ? std::max(last, start) : start;
    convolve_start(s, first);
    if (groups_ != nullptr) finish_rows(s.begin, s.begin + first);
  }
  first = std::max(first, start);
  if (first >= last) return;
  convolve_direct(s, first, last);
  if (groups_ != nullptr) finish_rows(s.begin + first, s.begin + last);
}

void Worker::convolve_between_slots(const Sequence& s, std::int64_t last) {
  const int history = history_of(p_);
  const std::int64_t length = s.end - s.begin;
  const std::int64_t tokens = std::max(last, std::min<std::int64_t>(length, history));
  // The last inputs of a longer sequence are rows of other tiles.
  const bool writes_all = s.write_slot >= 0 && tokens == length;
  const void* rows[kMaxWidth - 1];
  void* columns[kMaxWidth - 1];
  for (int k = 0; k < history; ++k) {
    rows[k] = s.read_slot < 0 ? kZeros : state(s.read_slot, history_column(p_, s, k - history));
    if (writes_all) columns[k] = state(s.write_slot, p_.base_column + k);
  }
  convolve_token_major(s.begin, tokens, channels_, rows, writes_all ? columns : nullptr);
  if (!writes_all) write_state(s);
  if (groups_ != nullptr) finish_rows(s.begin, s.begin + tokens);
}

void Worker::convolve_start(const Sequence& s, std::int64_t last) {
  int from = 0;
  if (has_rows_of_inputs(s)) {
    const void* rows[kMaxWidth - 1];
    for (int k = 0; k < history_of(p_); ++k) rows[k] = s.read_slot < 0 ? kZeros : raw_history(k);
    from = channels_ / config_.x_kernels->step * config_.x_kernels->step;
    convolve_token_major(s.begin, last, from, rows);
  }
  if (from == channels_) return;
  stage_history();
  convolve_staged(s, 0, last, from, channels_ - from);
}

void Worker::convolve_direct(const Sequence& s, std::int64_t first, std::int64_t last) {
  const int step = config_.x_kernels->step;
  const std::int64_t row = s.begin + first;
  int from = 0;  // first channel for the stage
  switch (form()) {
    case Form::kTokenMajor:
      from = channels_ / step * step;
      convolve_token_major(row, last - first, from);
      break;
    case Form::kChannelsFirst: {
      if (last - first < step) break;
      from = channels_;
      Block block = make_block({x(row, channel_), 1, p_.x.channel_stride}, out(row, channel_), 1,
                               out_.channel_stride, last - first, channels_);
      block.input_gate = input_gates(row);
      block.output_gate = output_gates(row);
      config_.x_kernels->channels_first(block);
      break;
    }
    case Form::kStaged:
      break;
  }
  if (from < channels_) convolve_staged(s, first, last, from, channels_ - from);
}

Block Worker::make_block(const Rows& inputs, void* out, std::int64_t out_token_stride,
                         std::int64_t out_channel_stride, std::int64_t tokens, int channels) const {
  return {
      .x = inputs.data,
      .out = out,
      .x_token_stride = inputs.token_stride,
      .x_channel_stride = inputs.channel_stride,
      .out_token_stride = out_token_stride,
      .out_channel_stride = out_channel_stride,
      .taps = taps_,
      .bias = bias_,
      .tap_pitch = pitch_,
      .tokens = tokens,
      .channels = channels,
      .width = p_.width,
      .dilation = p_.dilation,
      .epilogue = p_.epilogue,
  };
}

void Worker::convolve_token_major(std::int64_t row, std::int64_t tokens, int count,
                                  const void* const* history, void* const* state) {
  if (count == 0) return;
  const bool is_only_token = p_.tokens == 1 && has_weight_of_kernels() &&
                             p_.epilogue == Epilogue::kNone && !p_.input_gate.present;
  if (!is_only_token) arrange_taps();
  Block block = make_block({x(row, channel_), p_.x.token_stride, 1}, out(row, channel_),
                           out_.token_stride, 1, tokens, count);
  block.taps = arranged_taps_;
  block.bias = arranged_bias_;
  block.input_gate = input_gates(row);
  block.output_gate = output_gates(row);
  block.stream = stream_;
  if (is_only_token) block.weight = weight();
  block.history = history;
  block.state = state;
  config_.x_kernels->token_major(block);
}

void Worker::arrange_taps() {
  if (arranged_) return;
  arranged_ = true;
  const Kernels& kernels = *config_.x_kernels;
  if (has_weight_of_kernels()) {
    kernels.arrange_weight(weight(), arranged_taps_, pitch_, channels_);
  } else {
    if (has_only_rows_) load_taps();
    for (int tap = 0; tap < p_.width; ++tap) {
      const std::int64_t row = std::int64_t{tap} * pitch_;
      kernels.arrange(taps_ + row, arranged_taps_ + row, pitch_);
    }
  }
}

void Worker::convolve_staged(const Sequence& s, std::int64_t first, std::int64_t last, int from,
                             int count) {
  const int history = history_of(p_);
  if (first > 0) gather_inputs(s.begin + first - history, history, from, count, stage_ + from);
  float* inputs = stage_ + std::int64_t{history} * pitch_ + from;
  while (first < last) {
    const std::int64_t tokens = std::min<std::int64_t>(last - first, kStageTokens);
    gather_inputs(s.begin + first, tokens, from, count, inputs);
    convolve_stage_rows(inputs, s.begin + first, tokens, from, count);
    first += tokens;
    if (first == last) return;
    for (int k = 0; k < history; ++k) {  // ascending: each row is read before it is overwritten
      std::memcpy(stage_ + std::int64_t{k} * pitch_ + from, stage_ + (k + tokens) * pitch_ + from,
                  sizeof(float) * static_cast<std::size_t>(count));
    }
  }
}

void Worker::convolve_stage_rows(const float* inputs, std::int64_t row, std::int64_t tokens,
                                 int from, int count) {
  Block block = make_block({inputs, pitch_, 1}, results_ + from, pitch_, 1, tokens, padded(count));
  block.taps += from;
  block.bias += from;
  block.output_gate = gather_output_gate(row, tokens, from, count);
  config_.f32_kernels->token_major(block);
  scatter_results(row, tokens, from, count);
}

void Worker::stage_history() {
  for (int column = 0; column < history_of(p_); ++column) {
    float* row = stage_ + std::int64_t{column} * pitch_;
    config_.state_kernels->load(raw_history(column), row, channels_);
    std::fill(row + channels_, row + pitch_, 0.0f);
  }
}

void Worker::gather(const Rows& from, const Rows& gates, std::int64_t rows, int count, float* to) {
  const auto *data = static_cast<const char*>(from.data),
             *gate = static_cast<const char*>(gates.data);
  const bool gated = gate != nullptr;
  const bool adjacent = from.channel_stride == 1 && (!gated || gates.channel_stride == 1);
  const std::int64_t bytes = element_bytes(p_.x.dtype);
  for (std::int64_t r = 0; r < rows; ++r) {
    const void* row = data + r * from.token_stride * bytes;
    if (adjacent && gated) {
      config_.x_kernels->multiply(row, gate + r * gates.token_stride * bytes, results_, count);
      row = results_;
    }
    if (adjacent) config_.x_kernels->load(row, to + r * pitch_, count);
    std::fill(to + r * pitch_ + count, to + r * pitch_ + padded(count), 0.0f);
  }
  if (adjacent) return;
  for_each_element(
      rows, count, from.token_stride, from.channel_stride, [&](std::int64_t r, std::int64_t c) {
        const char* element = data + (r * from.token_stride + c * from.channel_stride) * bytes;
        to[r * pitch_ + c] =
            gated ? gated_f32(p_.x.dtype, element,
                              gate + (r * gates.token_stride + c * gates.channel_stride) * bytes)
                  : load_f32(p_.x.dtype, element);
      });
}

void Worker::gather_inputs(std::int64_t row, std::int64_t rows, int from, int count, float* to) {
  gather({x(row, channel_ + from), p_.x.token_stride, p_.x.channel_stride}, input_gates(row, from),
         rows, count, to);
  if (input_scale_ != 1) scale_rows(rows, count, to);
}

Rows Worker::gather_output_gate(std::int64_t row, std::int64_t tokens, int from, int count) {
  if (!p_.output_gate.present) return {};
  gather(output_gates(row, from), {}, tokens, count, results_ + from);
  return {results_ + from, pitch_, 1};
}

void Worker::scatter_results(std::int64_t row, std::int64_t rows, int from, int count) {
  const std::int64_t bytes = element_bytes(out_.dtype);
  const float* results = results_ + from;
  char* base = out(row, channel_ + from);
  if (out_.channel_stride == 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      config_.out_kernels->store(results + r * pitch_, base + r * out_.token_stride * bytes, count);
    }
    return;
  }
  for_each_element(
      rows, count, out_.token_stride, out_.channel_stride, [&](std::int64_t r, std::int64_t c) {
        store_f32(out_.dtype, base + (r * out_.token_stride + c * out_.channel_stride) * bytes,
                  results[r * pitch_ + c]);
      });
}

}  // namespace shortconv::cpu
