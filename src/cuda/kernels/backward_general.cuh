// Backward calls of any kind: different dtypes, any strides, widths up to 64, dilation, unaligned
// addresses, more than 2^31 rows. Every result has the bits of backward.cuh.
//
// Threads: a thread processes one channel of a strip, one row after the other, with the windows of
// its last inputs and gradients in local memory. The warps of a block have the strips of a unit,
// so the sums are divided as everywhere.
//
// Bytes moved: as backward.cuh, element by element. Not tuned.
#pragma once

#include <cstdint>

#include "core/history.hpp"
#include "cuda/backward_params.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/device/activation.cuh"
#include "cuda/device/token.cuh"
#include "op/epilogue.hpp"
#include "op/sequence.hpp"

namespace shortconv::cuda {

class GeneralStrip {
 public:
  __device__ GeneralStrip(const BackwardProblem& p, const BackwardPointers& at, std::int64_t first,
                          std::int64_t end, std::int64_t channel)
      : p_(p), at_(at), first_(first), end_(end), channel_(channel), history_(history_of(p)) {}

  __device__ void run() {
    bias_ = p_.bias.present ? load_f32(p_.bias.dtype, at_.bias, channel_ * p_.bias.channel_stride)
                            : 0.0f;
    for (int k = 0; k < p_.width; ++k) weight_sums[k] = 0;
    enter();
    const std::int64_t limit = min(end_ + history_, p_.tokens);
    for (std::int64_t t = first_; t < limit; ++t) {
      if (begins(t)) {
        finish_segment(t);
        if (t >= end_) return;
        begin_segment(t);
      }
      process_row(t);
    }
    if (limit == p_.tokens) finish_segment(limit);
  }

  float weight_sums[kMaxWidth];
  float bias_sum = 0;

 private:
  // ---- Sequences ----

  /// Sets sequence, first row and end of the sequence or of the padding that has a row.
  __device__ void find_sequence_of(std::int64_t row) {
    padding_ = false;
    if (!p_.query_start_loc.present) {
      sequence_ = row / p_.sequence_tokens;
      segment_ = sequence_ * p_.sequence_tokens;
      segment_end_ = segment_ + p_.sequence_tokens;
      return;
    }
    sequence_ =
        find_last(p_.sequences, row, [&](std::int64_t s) { return sequence_begin(p_, at_, s); });
    segment_ = sequence_ < 0 ? 0 : sequence_begin(p_, at_, sequence_);
    segment_end_ = sequence_begin(p_, at_, sequence_ + 1);
    if (sequence_ >= 0 && segment_end_ <= row) {  // after the last sequence
      padding_ = true;
      segment_ = max(segment_, segment_end_);
      segment_end_ = p_.tokens;
    } else if (sequence_ < 0) {
      padding_ = true;
    }
  }

  __device__ std::int64_t seq_idx_at(std::int64_t row) const {
    return seq_idx_of_row(p_, at_, row);
  }

  __device__ bool begins(std::int64_t t) const {
    if (t == 0 || t == segment_end_) return true;
    return p_.seq_idx.present && seq_idx_at(t) != seq_idx_at(t - 1);
  }

  __device__ void begin_segment(std::int64_t t) {
    find_sequence_of(t);
    if (p_.seq_idx.present) {
      if (segment_ != t) sequence_ = -1;  // only the first part of a row of the batch has states
      padding_ = seq_idx_at(t) < 0;
    }
    segment_ = t;
    owns_begin_ = true;
    for (int column = 0; column < history_; ++column) {
      inputs_[place(t - history_ + column)] = initial_state(column);
    }
  }

  /// The windows before the first row.
  __device__ void enter() {
    if (first_ == 0) return;
    find_sequence_of(first_ - 1);
    if (p_.seq_idx.present) {
      const std::int64_t begin = segment_;
      const std::int64_t number = seq_idx_at(first_ - 1);
      segment_ = first_ - 1;
      while (segment_ > begin && segment_ > first_ - history_ &&
             seq_idx_at(segment_ - 1) == number) {
        --segment_;
      }
      if (segment_ != begin) sequence_ = -1;
      padding_ = number < 0;
    }
    for (std::int64_t row = first_ - history_; row < first_; ++row) {
      inputs_[place(row)] = row >= segment_ ? input(row) : initial_state(history_ + row - segment_);
    }
  }

  // ---- Elements ----

  /// Where the windows keep a row; history rows before row 0 too.
  __device__ int place(std::int64_t row) const {
    return static_cast<int>((row + history_) % (history_ + 1));
  }

  template <typename Layout>
  __device__ float load_row(const Layout& layout, const void* data, std::int64_t row) const {
    return load_f32(layout.dtype, data,
                    row_offset(p_, row, layout) + channel_ * layout.channel_stride);
  }
  template <typename Layout>
  __device__ void store_row(const Layout& layout, void* data, std::int64_t row, float value) const {
    if (!layout.present) return;
    store_f32(layout.dtype, data, row_offset(p_, row, layout) + channel_ * layout.channel_stride,
              value);
  }
  template <typename Layout>
  __device__ std::int64_t state_index(const Layout& layout, std::int64_t column) const {
    return sequence_ * layout.sequence_stride + column * layout.column_stride +
           channel_ * layout.channel_stride;
  }

  /// x, or x * input_gate rounded to the dtype of x.
  __device__ float input(std::int64_t row) const {
    const float x = load_row(p_.x, at_.x, row);
    if (!p_.input_gate.present) return x;
    float rounded = 0;
    store_f32(p_.x.dtype, &rounded, 0,
              rounded_product(x, load_row(p_.input_gate, at_.input_gate, row)));
    return load_f32(p_.x.dtype, &rounded, 0);
  }

  __device__ float initial_state(std::int64_t column) const {
    if (!p_.initial_state.present || sequence_ < 0) return 0;
    return load_f32(p_.initial_state.dtype, at_.initial_state,
                    state_index(p_.initial_state, column));
  }

  __device__ float weight(int tap) const {
    return load_f32(p_.weight.dtype, at_.weight,
                    channel_ * p_.weight.channel_stride + tap * p_.weight.tap_stride);
  }

  // ---- Rows ----

  __device__ void process_row(std::int64_t t) {
    if (padding_) {
      if (t >= end_) return;
      store_row(p_.grad_x, at_.grad_x, t, 0);
      store_row(p_.grad_input_gate, at_.grad_input_gate, t, 0);
      store_row(p_.grad_output_gate, at_.grad_output_gate, t, 0);
      return;
    }
    inputs_[place(t)] = input(t);
    const float grad = sum_gradient(t);
    grads_[place(t)] = grad;
    if (t < end_) {
      for (int k = 0; k < p_.width; ++k) {
        weight_sums[k] = __fmaf_rn(grad, inputs_[place(tap_row(t, k))], weight_sums[k]);
      }
      bias_sum = __fadd_rn(bias_sum, grad);
    }
    store_gradient(t - history_, chain(t - history_, t, 0.0f));
  }

  /// The row that tap k takes for the sum of row t.
  __device__ std::int64_t tap_row(std::int64_t t, int k) const {
    return t - std::int64_t{p_.width - 1 - k} * p_.dilation;
  }

  __device__ float sum_gradient(std::int64_t t) const {
    float sum = bias_;
    for (int k = 0; k < p_.width; ++k) {
      sum = __fmaf_rn(weight(k), inputs_[place(tap_row(t, k))], sum);
    }
    const Activated activated = activate_with_slope(p_.activation, sum);
    float grad_out = load_row(p_.grad_out, at_.grad_out, t);
    if (t < end_) {
      store_row(p_.grad_output_gate, at_.grad_output_gate, t, __fmul_rn(grad_out, activated.value));
    }
    if (p_.output_gate.present) {
      grad_out = __fmul_rn(grad_out, load_row(p_.output_gate, at_.output_gate, t));
    }
    return __fmul_rn(grad_out, activated.slope);
  }

  /// The gradient of the input of row n from the rows of its segment up to `last`.
  __device__ float chain(std::int64_t n, std::int64_t last, float gradient) const {
    for (int k = 0; k < p_.width; ++k) {
      const std::int64_t row = n + std::int64_t{p_.width - 1 - k} * p_.dilation;
      if (row > last || row < segment_) continue;
      gradient = __fmaf_rn(weight(k), grads_[place(row)], gradient);
    }
    return gradient;
  }

  /// A segment ends before row t: the gradients that wait for more rows.
  __device__ void finish_segment(std::int64_t t) {
    if (padding_ || t == 0) return;
    for (int back = history_; back > 0; --back) {
      float gradient = 0;
      if (p_.grad_final_state.present && sequence_ >= 0) {
        gradient = load_f32(p_.grad_final_state.dtype, at_.grad_final_state,
                            state_index(p_.grad_final_state, history_ - back));
      }
      store_gradient(t - back, chain(t - back, t - 1, gradient));
    }
  }

  /// Stores the gradient of an input of the segment: a row, or one of the initial state.
  __device__ void store_gradient(std::int64_t row, float gradient) const {
    if (row < segment_) {
      if (!p_.grad_initial_state.present || !owns_begin_ || sequence_ < 0) return;
      store_f32(p_.grad_initial_state.dtype, at_.grad_initial_state,
                state_index(p_.grad_initial_state, history_ + row - segment_), gradient);
      return;
    }
    if (row < first_ || row >= end_) return;
    if (p_.epilogue == Epilogue::kResidual) {
      gradient = __fadd_rn(gradient, load_row(p_.grad_out, at_.grad_out, row));
    }
    if (p_.input_gate.present) {
      const float gate = load_row(p_.input_gate, at_.input_gate, row);
      store_row(p_.grad_input_gate, at_.grad_input_gate, row,
                __fmul_rn(gradient, load_row(p_.x, at_.x, row)));
      gradient = __fmul_rn(gradient, gate);
    }
    store_row(p_.grad_x, at_.grad_x, row, gradient);
  }

  const BackwardProblem& p_;
  const BackwardPointers& at_;
  const std::int64_t first_, end_, channel_;
  const int history_;
  float bias_ = 0;
  float inputs_[kMaxWidth], grads_[kMaxWidth];  // of the last history + 1 rows, see place
  std::int64_t sequence_ = -1, segment_ = 0, segment_end_ = 0;
  bool padding_ = true, owns_begin_ = false;  // padding: nothing is before row 0
};

__global__ void __launch_bounds__(kBackwardThreads)
    backward_general(const __grid_constant__ BackwardGeneralParams params) {
  const BackwardProblem& p = params.problem;
  const std::uint32_t unit = params.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * params.channel_blocks.divisor();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t channel = std::int64_t{block} * 32 + lane;
  const std::int64_t first = params.partition.first_row(unit, warp);
  const std::int64_t end = min(first + params.partition.strip_rows(unit), p.tokens);
  GeneralStrip strip(p, params.pointers, first, end, channel);
  const bool has_rows = first < p.tokens && channel < p.channels;
  if (has_rows) strip.run();
  if (!p.grad_weight.present && !p.grad_bias.present) return;
  __shared__ float sums[kBackwardThreads];
  for (int row = 0; row <= p.width; ++row) {
    __syncthreads();
    sums[threadIdx.x] = !has_rows ? 0.0f : row == p.width ? strip.bias_sum : strip.weight_sums[row];
    __syncthreads();
    if (warp != 0 || channel >= p.channels) continue;
    double sum = 0;
    for (int i = 0; i < kUnitStrips; ++i) sum += static_cast<double>(sums[32 * i + lane]);
    float* to = static_cast<float*>(params.pointers.workspace) +
                (std::int64_t{unit} * (p.width + 1) + row) * p.channels + channel;
    *to = static_cast<float>(sum);
  }
}

}  // namespace shortconv::cuda
