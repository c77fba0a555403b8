// One thread's part of a backward call on the CPU: a block of channels with all tokens.
// backward.cpp has what the threads share.
//
// The thread walks over the tokens of each sequence: in plain calls in strips of 8, from and to the
// rows of the tensors; in other calls, and for the first tokens of a sequence, up to 16 at a time
// in fp32 rows. The history of inputs and of sum gradients stays in its buffers, so each row of x
// and grad_out is read once (twice with an input gate or a residual). Totals are added up in fp32
// over 64 rows of x, then in fp64.
#pragma once

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/capability.hpp"
#include "core/history.hpp"
#include "cpu/backward_kernels.hpp"
#include "cpu/kernels.hpp"
#include "cpu/move.hpp"
#include "op/sequence.hpp"

namespace shortconv::cpu {

// Channels of a block. Each row of a block is on another page of memory, so longer rows cause fewer
// TLB misses: 8192 x 2048 bf16 took 35 ms in blocks of 1024 channels, 42 in 512 and 47 in 256 (2
// threads of an EPYC with AVX2, before the kernel had three passes).
inline constexpr std::int64_t kMinBackwardChannels = 64, kMaxBackwardChannels = 1024;
// A cache line: rows are in different sets of the L1 cache.
inline constexpr std::int64_t kPadding = 16;
inline constexpr std::int64_t kMaxPitch = kMaxBackwardChannels + kPadding;
inline constexpr std::int64_t kGroupTokens = 16;
inline constexpr std::int64_t kTotalRows = 64;  // rows of x whose totals are added up in fp32
inline constexpr std::int64_t kMaxHistory = kMaxWidth - 1;

struct BackwardBuffers {
  template <std::int64_t kRows>
  using FloatRows = float[kRows * kMaxPitch];

  alignas(64) FloatRows<kMaxHistory + kGroupTokens> inputs;
  alignas(64) FloatRows<kMaxHistory + kGroupTokens> sum_grads;
  alignas(64) FloatRows<kGroupTokens> grad_out;
  alignas(64) FloatRows<kGroupTokens> input_grads;
  alignas(64) FloatRows<kGroupTokens> values;
  alignas(64) FloatRows<2> rows;     // of gates and of results before they are stored
  alignas(64) FloatRows<1> ordered;  // a result in channel order
  alignas(64) FloatRows<kMaxWidth> taps;
  alignas(64) FloatRows<1> bias;
  alignas(64) FloatRows<kMaxWidth + 1> totals;
  alignas(64) double sums[(kMaxWidth + 1) * kMaxPitch];
};

/// Conversions of rows.
struct Conversions {
  const Kernels& f32 = *select(DType::kF32, kMinWidth, Activation::kNone);
  const Kernels& f16 = *select(DType::kF16, kMinWidth, Activation::kNone);
  const Kernels& bf16 = *select(DType::kBF16, kMinWidth, Activation::kNone);

  [[nodiscard]] const Kernels& of(DType dtype) const {
    return dtype == DType::kF32 ? f32 : dtype == DType::kF16 ? f16 : bf16;
  }
};

/// Rows [begin, end) that convolve with each other and with nothing else.
struct Part {
  std::int64_t sequence, begin, end;
  bool has_states;  // begins with the initial state, ends with the final one
};

class BackwardWorker {
 public:
  BackwardWorker(const BackwardProblem& p, const BackwardPointers& at,
                 const BackwardKernels& kernels, BackwardStripFn strip, BackwardBuffers& buffers)
      : p_(p), at_(at), kernels_(kernels), strip_(strip), b_(buffers) {}

  /// Channels [channel, channel + count), at most kMaxBackwardChannels.
  void process(std::int64_t channel, std::int64_t count) {
    const std::int64_t whole =
        strip_ == nullptr ? count : count / rows_of_x_.step * rows_of_x_.step;
    if (whole > 0) process_channels(channel, whole);
    if (whole < count) process_channels(channel + whole, count - whole);
  }

 private:
  void process_channels(std::int64_t channel, std::int64_t count) {
    channel_ = channel;
    count_ = count;
    channels_ = (count_ + kernels_.step - 1) / kernels_.step * kernels_.step;
    pitch_ = channels_ + kPadding;
    has_strips_ = strip_ != nullptr && count_ % rows_of_x_.step == 0;
    load_weights();
    std::fill_n(b_.totals, (p_.width + 1) * pitch_, 0.0f);
    std::fill_n(b_.sums, (p_.width + 1) * pitch_, 0.0);
    std::int64_t row = 0;  // rows before it are done
    for (std::int64_t s = 0; s < p_.sequences; ++s) {
      const std::int64_t begin = sequence_begin(p_, at_, s),
                         end = std::max(sequence_begin(p_, at_, s + 1), begin);
      clear_rows(row, begin);
      process_sequence(s, begin, end);
      row = std::max(row, end);
    }
    clear_rows(row, p_.tokens);
    add_totals();
    store_weight_gradients();
  }

  // ---- Sequences ----

  void process_sequence(std::int64_t sequence, std::int64_t begin, std::int64_t end) {
    if (!p_.seq_idx.present || begin == end) return process_part({sequence, begin, end, true});
    std::int64_t first = begin;
    for (std::int64_t row = begin; row < end; ++row) {
      if (row + 1 < end && seq_idx_of_row(p_, at_, row + 1) == seq_idx_of_row(p_, at_, row))
        continue;
      if (seq_idx_of_row(p_, at_, row) < 0) {
        clear_rows(first, row + 1);
        if (first == begin) process_part({sequence, begin, begin, true});
      } else {
        process_part({sequence, first, row + 1, first == begin});
      }
      first = row + 1;
    }
  }

  void process_part(const Part& part) {
    load_initial_state(part);
    std::fill_n(b_.sum_grads, history_ * pitch_, 0.0f);
    std::int64_t row = part.begin;
    while (row < part.end) {
      const std::int64_t boundary = (row / kTotalRows + 1) * kTotalRows;
      std::int64_t end = std::min(part.end, boundary);
      if (has_strips_ && row >= part.begin + history_) {
        end = std::min(end, row + kStripTokens);
        process_strip(row, end);
      } else {
        end = std::min(end, row + (has_strips_ ? history_ : kGroupTokens));
        process_group(part, row, end);
      }
      if (end == boundary) add_totals();
      row = end;
    }
    finish_part(part);
  }

  /// Rows [begin, end): the sum gradients of these tokens, and the input gradients of those
  /// `history` tokens earlier.
  void process_group(const Part& part, std::int64_t begin, std::int64_t end) {
    const std::int64_t tokens = end - begin;
    prefetch(p_.x, at_.x, end);
    prefetch(p_.grad_out, at_.grad_out, end);
    float* const new_inputs = b_.inputs + history_ * pitch_;
    for (std::int64_t t = 0; t < tokens; ++t) {
      load_input(begin + t, new_inputs + t * pitch_);
      load_grad_out(begin + t, b_.grad_out + t * pitch_);
    }
    kernels_.block({.inputs = b_.inputs,
                    .grad_out = b_.grad_out,
                    .sum_grads = b_.sum_grads,
                    .input_grads = b_.input_grads,
                    .values = p_.grad_output_gate.present ? b_.values : nullptr,
                    .taps = b_.taps,
                    .bias = b_.bias,
                    .totals = b_.totals,
                    .pitch = pitch_,
                    .tokens = tokens,
                    .channels = channels_,
                    .width = p_.width,
                    .dilation = p_.dilation});
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (p_.grad_output_gate.present) store_output_gate_gradient(begin + t, t);
      const std::int64_t row = begin + t - history_;
      if (row >= part.begin) {
        store_input_gradient(row, b_.input_grads + t * pitch_);
      } else {
        store_state_gradient(part, row - part.begin, begin - part.begin, tokens);
      }
    }
    keep_history(b_.inputs, tokens);
    keep_history(b_.sum_grads, tokens);
  }

  /// The same for rows whose windows are in x.
  void process_strip(std::int64_t begin, std::int64_t end) {
    const auto row = [&](const auto& layout, void* data, std::int64_t at) {
      return address(layout, data, row_offset(p_, at, layout));
    };
    strip_({.x = row(p_.x, at_.x, begin),
            .grad_out = row(p_.grad_out, at_.grad_out, begin),
            .grad_x = p_.grad_x.present ? row(p_.grad_x, at_.grad_x, begin - history_) : nullptr,
            .x_stride = p_.x.token_stride,
            .grad_out_stride = p_.grad_out.token_stride,
            .grad_x_stride = p_.grad_x.token_stride,
            .sum_grads = b_.sum_grads,
            .taps = b_.taps,
            .bias = b_.bias,
            .totals = b_.totals,
            .pitch = pitch_,
            .tokens = end - begin,
            .channels = count_});
  }

  /// Input gradients of the last `history` inputs, which the final state holds too.
  void finish_part(const Part& part) {
    const std::int64_t tokens = part.end - part.begin;
    for (std::int64_t n = tokens - history_; n < tokens; ++n) {
      if (n < 0) {
        store_state_gradient(part, n, tokens, 0);
      } else {
        chain_row(part, n, tokens, 0, b_.rows);
        store_input_gradient(part.begin + n, b_.rows);
      }
    }
  }

  /// The gradient of input n, counted from the part's first token, of the tokens so far:
  /// `done` before the group and `tokens` in it. Sum gradients of the history are in front of the
  /// buffer.
  void chain_row(const Part& part, std::int64_t n, std::int64_t done, std::int64_t tokens,
                 float* to) {
    const std::int64_t length = part.end - part.begin, last = done + tokens - 1;
    const float* init = nullptr;
    if (p_.grad_final_state.present && n >= length - history_) {
      load_row(p_.grad_final_state, at_.grad_final_state,
               state_offset(p_.grad_final_state, part.sequence, n - (length - history_)),
               b_.rows + pitch_);
      init = b_.rows + pitch_;
    }
    // Taps of tokens from `last` down to the first one.
    std::int64_t tap = 0;
    while (tap < p_.width && n + (p_.width - 1 - tap) * p_.dilation > last) ++tap;
    const std::int64_t token = n + (p_.width - 1 - tap) * p_.dilation;
    const std::int64_t first = std::max<std::int64_t>(n, 0);
    const std::int64_t count =
        tap == p_.width || token < first ? 0 : (token - first) / p_.dilation + 1;
    const float* grads = b_.sum_grads + (history_ + token - done) * pitch_;
    kernels_.row({.taps = b_.taps + tap * pitch_,
                  .grads = count > 0 ? grads : b_.sum_grads,
                  .init = init,
                  .to = to,
                  .count = count,
                  .pitch = pitch_,
                  .channels = channels_,
                  .dilation = p_.dilation});
  }

  void keep_history(float* rows, std::int64_t tokens) const {
    std::memmove(rows, rows + tokens * pitch_,
                 static_cast<std::size_t>(history_ * pitch_) * sizeof(float));
  }

  // ---- Rows ----

  template <typename Layout>
  [[nodiscard]] std::int64_t state_offset(const Layout& layout, std::int64_t sequence,
                                          std::int64_t column) const {
    return sequence * layout.sequence_stride + column * layout.column_stride;
  }
  /// Address of the block's first channel.
  template <typename Layout>
  [[nodiscard]] char* address(const Layout& layout, void* data, std::int64_t offset) const {
    return static_cast<char*>(data) +
           (offset + channel_ * layout.channel_stride) * element_bytes(layout.dtype);
  }

  /// The rows of the next group, which the hardware does not foresee: its distance in memory is a
  /// whole row of x.
  template <typename Layout>
  void prefetch(const Layout& layout, const void* data, std::int64_t row) const {
    constexpr std::int64_t kLine = 64;
    if (layout.channel_stride != 1) return;
    const std::int64_t last = std::min(row + kGroupTokens, p_.tokens);
    for (; row < last; ++row) {
      const char* line = address(layout, const_cast<void*>(data), row_offset(p_, row, layout));
      const char* const end = line + count_ * element_bytes(layout.dtype);
      for (; line < end; line += kLine) hwy::Prefetch(line);
    }
  }

  template <typename Layout>
  void load_row(const Layout& layout, void* data, std::int64_t offset, float* to) const {
    const char* from = address(layout, data, offset);
    if (layout.channel_stride == 1) {
      conversions_.of(layout.dtype).load(from, to, count_);
    } else {
      copy_run(from, layout.channel_stride, layout.dtype, reinterpret_cast<char*>(to), 1,
               DType::kF32, count_);
    }
    std::fill(to + count_, to + channels_, 0.0f);
    if (has_strips_) rows_of_x_.arrange(to, to, count_);
  }
  template <typename Layout>
  void store_row(const Layout& layout, void* data, std::int64_t offset, const float* from) const {
    char* to = address(layout, data, offset);
    if (has_strips_) {
      rows_of_x_.restore(from, b_.ordered, count_);
      from = b_.ordered;
    }
    if (layout.channel_stride == 1) {
      conversions_.of(layout.dtype).store(from, to, count_);
    } else {
      copy_run(reinterpret_cast<const char*>(from), 1, DType::kF32, to, layout.channel_stride,
               layout.dtype, count_);
    }
  }
  template <typename Layout>
  void load_token(const Layout& layout, void* data, std::int64_t row, float* to) const {
    load_row(layout, data, row_offset(p_, row, layout), to);
  }

  /// x, or x * input_gate rounded to the dtype of x.
  void load_input(std::int64_t row, float* to) {
    load_token(p_.x, at_.x, row, to);
    if (!p_.input_gate.present) return;
    load_token(p_.input_gate, at_.input_gate, row, b_.rows);
    for (std::int64_t c = 0; c < count_; ++c) to[c] *= b_.rows[c];
    if (p_.x.dtype == DType::kF32) return;
    const Kernels& kernels = conversions_.of(p_.x.dtype);
    kernels.store(to, b_.rows, count_);
    kernels.load(b_.rows, to, count_);
  }

  void load_grad_out(std::int64_t row, float* to) {
    load_token(p_.grad_out, at_.grad_out, row, to);
    if (!p_.output_gate.present) return;
    load_token(p_.output_gate, at_.output_gate, row, b_.rows);
    for (std::int64_t c = 0; c < count_; ++c) to[c] *= b_.rows[c];
  }

  void store_output_gate_gradient(std::int64_t row, std::int64_t token) {
    load_token(p_.grad_out, at_.grad_out, row, b_.rows);
    const float* values = b_.values + token * pitch_;
    for (std::int64_t c = 0; c < count_; ++c) b_.rows[c] *= values[c];
    store_row(p_.grad_output_gate, at_.grad_output_gate, row_offset(p_, row, p_.grad_output_gate),
              b_.rows);
  }

  /// `gradient` is that of the input of a row; it may be b_.rows.
  void store_input_gradient(std::int64_t row, float* gradient) {
    float* const other = b_.rows + pitch_;
    if (p_.epilogue == Epilogue::kResidual && p_.grad_x.present) {
      load_token(p_.grad_out, at_.grad_out, row, other);
      for (std::int64_t c = 0; c < count_; ++c) gradient[c] += other[c];
    }
    if (p_.grad_input_gate.present) {
      load_token(p_.x, at_.x, row, other);
      for (std::int64_t c = 0; c < count_; ++c) other[c] *= gradient[c];
      store_row(p_.grad_input_gate, at_.grad_input_gate, row_offset(p_, row, p_.grad_input_gate),
                other);
    }
    if (!p_.grad_x.present) return;
    if (p_.input_gate.present) {
      load_token(p_.input_gate, at_.input_gate, row, other);
      for (std::int64_t c = 0; c < count_; ++c) gradient[c] *= other[c];
    }
    store_row(p_.grad_x, at_.grad_x, row_offset(p_, row, p_.grad_x), gradient);
  }

  /// Input n < 0 of a part, once all its tokens are known: `done` before the group, `tokens` in it.
  void store_state_gradient(const Part& part, std::int64_t n, std::int64_t done,
                            std::int64_t tokens) {
    if (!part.has_states || !p_.grad_initial_state.present) return;
    // This input is in the final state too; finish_part adds the gradient of that.
    if (tokens > 0 && n >= part.end - part.begin - history_) return;
    chain_row(part, n, done, tokens, b_.rows);
    store_row(p_.grad_initial_state, at_.grad_initial_state,
              state_offset(p_.grad_initial_state, part.sequence, history_ + n), b_.rows);
  }

  void load_initial_state(const Part& part) {
    if (!part.has_states || !p_.initial_state.present) {
      std::fill_n(b_.inputs, history_ * pitch_, 0.0f);
      return;
    }
    for (std::int64_t column = 0; column < history_; ++column) {
      load_row(p_.initial_state, at_.initial_state,
               state_offset(p_.initial_state, part.sequence, column), b_.inputs + column * pitch_);
    }
  }

  /// Rows without a sequence have gradients of 0.
  void clear_rows(std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    std::fill_n(b_.rows, pitch_, 0.0f);
    for (std::int64_t row = begin; row < end; ++row) {
      const auto clear = [&](const auto& layout, void* data) {
        if (layout.present) store_row(layout, data, row_offset(p_, row, layout), b_.rows);
      };
      clear(p_.grad_x, at_.grad_x);
      clear(p_.grad_input_gate, at_.grad_input_gate);
      clear(p_.grad_output_gate, at_.grad_output_gate);
    }
  }

  // ---- Weights ----

  void load_weights() {
    const std::int64_t bytes = element_bytes(p_.weight.dtype);
    for (std::int64_t tap = 0; tap < p_.width; ++tap) {
      float* row = b_.taps + tap * pitch_;
      copy_run(address(p_.weight, at_.weight, 0) + tap * p_.weight.tap_stride * bytes,
               p_.weight.channel_stride, p_.weight.dtype, reinterpret_cast<char*>(row), 1,
               DType::kF32, count_);
      std::fill(row + count_, row + channels_, 0.0f);
      std::transform(row, row + count_, row, canonical_nan);
      if (has_strips_) rows_of_x_.arrange(row, row, count_);
    }
    if (p_.bias.present) {
      load_row(p_.bias, at_.bias, 0, b_.bias);
      std::transform(b_.bias, b_.bias + count_, b_.bias, canonical_nan);
    } else {
      std::fill_n(b_.bias, pitch_, 0.0f);
    }
  }

  void add_totals() { kernels_.add_totals(b_.totals, b_.sums, (p_.width + 1) * pitch_); }

  /// `channels` are those of the sums.
  template <typename Layout>
  void store_sums(const Layout& layout, void* data, std::int64_t offset, const double* sums,
                  const float* channels) const {
    char* const first = address(layout, data, offset);
    const std::int64_t bytes = layout.channel_stride * element_bytes(layout.dtype);
    for (std::int64_t c = 0; c < count_; ++c) {
      char* const to = first + static_cast<std::int64_t>(channels[c]) * bytes;
      store_element(layout.dtype, to,
                    p_.accumulate ? sums[c] + load_element(layout.dtype, to) : sums[c]);
    }
  }

  void store_weight_gradients() {
    float* const channels = b_.ordered;
    std::iota(channels, channels + count_, 0.0f);
    if (has_strips_) rows_of_x_.arrange(channels, channels, count_);
    for (std::int64_t tap = 0; p_.grad_weight.present && tap < p_.width; ++tap) {
      store_sums(p_.grad_weight, at_.grad_weight, tap * p_.grad_weight.tap_stride,
                 b_.sums + tap * pitch_, channels);
    }
    if (p_.grad_bias.present) {
      store_sums(p_.grad_bias, at_.grad_bias, 0, b_.sums + p_.width * pitch_, channels);
    }
  }

  const BackwardProblem& p_;
  const BackwardPointers& at_;
  const BackwardKernels& kernels_;
  const BackwardStripFn strip_;
  BackwardBuffers& b_;
  const Conversions conversions_;
  const Kernels& rows_of_x_ = conversions_.of(p_.x.dtype);
  const std::int64_t history_ = history_of(p_);
  std::int64_t channel_ = 0, count_ = 0;  // of the block
  std::int64_t channels_ = 0;             // count_ in whole vectors
  std::int64_t pitch_ = 0;                // of the rows of the buffers
  bool has_strips_ = false;               // true if fp32 rows are in the lane order of x
};

}  // namespace shortconv::cpu
