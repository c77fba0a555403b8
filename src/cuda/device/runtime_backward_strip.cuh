// A strip of rows of one channel of a backward call, by one thread, for any strides, dtypes and
// widths, and dilation. The operations and their order are those of backward_strip.cuh, and so are
// the bits of the results.
//
// Rows are processed in batches of 8. The last inputs and gradients stay in shared memory, so that
// a batch loads each of them once for up to 8 rows. A whole batch inside a segment takes its rows
// together, all others one by one. Gradients of x wait until all later rows of their window are
// there: those of 8 adjacent rows become complete together.
#pragma once

#include <cstdint>

#include "core/history.hpp"
#include "cuda/backward_params.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/device/activation.cuh"
#include "cuda/device/backward_elements.cuh"
#include "cuda/device/tap_windows.cuh"
#include "op/epilogue.hpp"
#include "op/sequence.hpp"

namespace shortconv::cuda {

class RuntimeBackwardStrip : BackwardElements {
 public:
  /// `taps` of the channel; `sums` of the thread, all 0, to which the strip adds. Both are
  /// indexed by tap_indices, from 1 on. The rings of the thread follow the sums.
  __device__ RuntimeBackwardStrip(const BackwardGeneralParams& params, std::int64_t first,
                                  std::int64_t end, std::int64_t channel, const QuadColumn& taps,
                                  const QuadColumn& sums)
      : BackwardElements(params.problem, params.pointers, channel),
        first_(first),
        end_(end),
        limit_(min(end + shortconv::history_of(params.problem), params.problem.tokens)),
        history_(shortconv::history_of(params.problem)),
        waiting_(general_backward_waiting(history_)),
        indices_(tap_indices(params.problem)),
        taps_(taps),
        sums_(sums),
        inputs_{{sums.quads + general_backward_tap_quads(params.problem.width) * sums.stride,
                 sums.stride},
                waiting_ + kBatch},
        grads_{{inputs_.quads + inputs_.rows / 4 * sums.stride, sums.stride}, inputs_.rows},
        slot_(waiting_),
        done_(first) {}

  static constexpr int kBiasSum = 0;  // of `sums`
  __device__ static TapIndices tap_indices(const BackwardProblem& p) {
    return {p.width, p.dilation};
  }

  __device__ void run() {
    bias_ = p_.bias.present ? load_f32(p_.bias.dtype, at_.bias, channel_ * p_.bias.channel_stride)
                            : 0.0f;
    enter();
    process();
    sums_.at(kBiasSum) = bias_sum_;
  }

 private:
  __device__ float tap(int k) const { return taps_.at(indices_.first + k); }

  __device__ void process() {
    for (row_ = first_; row_ < limit_; row_ += kBatch, slot_ = inputs_.move(slot_, kBatch)) {
      const auto count = static_cast<int>(min(limit_ - row_, std::int64_t{kBatch}));
      if (!enter_row(row_, slot_)) return;
      if (is_inside_segment(count)) {
        process_batch(count);
      } else if (!process_rows(count)) {
        return;
      }
      complete_rows(row_ + count);
    }
    if (limit_ == p_.tokens) finish_segment(limit_);
  }

  // ---- Sequences ----

  /// Sets sequence, first row and end of the sequence or of the padding that has a row.
  __device__ void find_sequence_of(std::int64_t row) {
    padding_ = false;
    if (!p_.query_start_loc.present) {
      sequence_ = batch_row_ = row / p_.sequence_tokens;
      segment_ = batch_begin_ = sequence_ * p_.sequence_tokens;
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

  /// Of a row of the current sequence.
  __device__ std::int64_t seq_idx_at(std::int64_t row) const {
    return load_index(p_.seq_idx.dtype, at_.seq_idx, offset(p_.seq_idx, row));
  }

  /// Whether a segment begins at row t, which follows one of the current segment.
  __device__ bool begins(std::int64_t t) const {
    if (t == 0 || t == segment_end_) return true;
    return p_.seq_idx.present && seq_idx_at(t) != number_;
  }

  __device__ void begin_segment(std::int64_t t, int slot) {
    find_sequence_of(t);
    if (p_.seq_idx.present) {
      if (segment_ != t) sequence_ = -1;  // only the first part of a row of the batch has states
      number_ = seq_idx_at(t);
      padding_ = number_ < 0;
    }
    segment_ = done_ = t;
    owes_state_ = p_.grad_initial_state.present && sequence_ >= 0 && !padding_;
    for (int column = 0; column < history_; ++column) {
      inputs_.at(inputs_.move(slot, column - history_)) = initial_state(column);
    }
  }

  /// The windows before the first row.
  __device__ void enter() {
    if (first_ == 0) return;
    find_sequence_of(first_ - 1);
    if (p_.seq_idx.present) {
      const std::int64_t begin = segment_;
      number_ = seq_idx_at(first_ - 1);
      segment_ = first_ - 1;
      while (segment_ > begin && segment_ > first_ - history_ &&
             seq_idx_at(segment_ - 1) == number_) {
        --segment_;
      }
      if (segment_ != begin) sequence_ = -1;
      padding_ = number_ < 0;
    }
    for (int slot = 0; slot < waiting_; slot += kBatch) {
      const std::int64_t first = first_ - waiting_ + slot;
      if (first >= segment_) {
        Values inputs;
        load_inputs(first, inputs);
        inputs_.store_batch(slot, inputs);
        continue;
      }
      for (int i = 0; i < kBatch; ++i) {
        const std::int64_t row = first + i;
        if (row < first_ - history_) continue;
        inputs_.at(slot + i) =
            row >= segment_ ? input(row) : initial_state(history_ + row - segment_);
      }
    }
  }

  /// Whether process_batch can take the batch.
  __device__ bool is_inside_segment(int count) const {
    if (padding_ || row_ + count > segment_end_) return false;
    if (count < kBatch && row_ < end_) return false;  // the sums need to end before
    if (!p_.seq_idx.present) return true;
    for (int i = 0; i < count; ++i) {
      if (seq_idx_at(row_ + i) != number_) return false;
    }
    return true;
  }

  // ---- Batches ----

  /// Last row, exclusive, that one stride leads to from the current one.
  __device__ std::int64_t adjacent_end() const {
    return p_.query_start_loc.present ? limit_ : min(segment_end_, limit_);
  }

  /// Stores the inputs of the batch in their ring. `grads` become the gradients of its results.
  __device__ void load_batch(int count, Values& grads) {
    Raw x = {}, grad_out = {};
    if (has_next_) {
      x = next_x_, grad_out = next_grad_out_;
    } else {
      load_raw(p_.x, at_.x, row_, count, x);
      load_raw(p_.grad_out, at_.grad_out, row_, count, grad_out);
    }
    Values inputs;
    x.convert(p_.x.dtype, inputs);
    grad_out.convert(p_.grad_out.dtype, grads);
    has_next_ = row_ + 2 * kBatch <= adjacent_end();
    if (has_next_) {
      load_raw(p_.x, at_.x, row_ + kBatch, kBatch, next_x_);
      load_raw(p_.grad_out, at_.grad_out, row_ + kBatch, kBatch, next_grad_out_);
    }
    apply_input_gate(row_, count, inputs);
    inputs_.store_batch(slot_, inputs);
  }

  /// Rows [row_, row_ + count) are of one segment, and all of the strip or all after it.
  __device__ void process_batch(int count) {
    Values grads;
    load_batch(count, grads);
    const int oldest = inputs_.move(slot_, -history_);
    Values sums;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) sums[i] = bias_;
    TapSums<false> tap_sums{taps_, sums};
    visit_windows<false>(indices_, inputs_, oldest, tap_sums);
    differentiate(count, sums, grads);
    grads_.store_batch(slot_, grads);
    if (row_ >= end_ || !wants_sums()) return;
    GradientSums gradient_sums{sums_, grads};
    visit_windows<false>(indices_, inputs_, oldest, gradient_sums);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) bias_sum_ = __fadd_rn(bias_sum_, grads[i]);
  }

  /// The gradients of the results of a batch become those of the sums.
  __device__ void differentiate(int count, const Values& sums, Values& grads) const {
    Values slopes, gate_grads;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const Activated activated = activate_with_slope(p_.activation, sums[i]);
      slopes[i] = activated.slope;
      gate_grads[i] = __fmul_rn(grads[i], activated.value);
    }
    if (p_.output_gate.present) {
      if (row_ < end_) store_rows(p_.grad_output_gate, at_.grad_output_gate, row_, gate_grads);
      Raw raw = {};
      Values gate;
      load_raw(p_.output_gate, at_.output_gate, row_, count, raw);
      raw.convert(p_.output_gate.dtype, gate);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) grads[i] = __fmul_rn(grads[i], gate[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) grads[i] = __fmul_rn(grads[i], slopes[i]);
  }

  __device__ bool wants_sums() const { return p_.grad_weight.present || p_.grad_bias.present; }
  __device__ bool wants_rows() const { return p_.grad_x.present || p_.grad_input_gate.present; }

  // ---- Rows ----

  /// Rows [row_, row_ + count), one by one. False if the strip ends before the last of them.
  __device__ bool process_rows(int count) {
    // The gradients of results that wait for their row are in the ring of its gradients.
    const bool are_loaded = row_ + count <= adjacent_end();
    if (are_loaded) {
      Values grads;
      load_batch(count, grads);
      grads_.store_batch(slot_, grads);
    }
    for (int i = 0; i < count; ++i) {
      const std::int64_t t = row_ + i;
      if (i > 0 && !enter_row(t, slot_ + i)) return false;
      if (!are_loaded && !padding_) {
        inputs_.at(slot_ + i) = input(t);
        grads_.at(slot_ + i) = load_row(p_.grad_out, at_.grad_out, t);
      }
      process_row(t, slot_ + i);
    }
    return true;
  }

  /// A segment may begin at row t. False if the strip ends before it.
  __device__ bool enter_row(std::int64_t t, int slot) {
    if (!begins(t)) return true;
    finish_segment(t);
    if (t >= end_) return false;
    begin_segment(t, slot);
    return true;
  }

  __device__ void process_row(std::int64_t t, int slot) {
    if (padding_) {
      if (t >= end_) return;
      store_row(p_.grad_x, at_.grad_x, t, 0);
      store_row(p_.grad_input_gate, at_.grad_input_gate, t, 0);
      store_row(p_.grad_output_gate, at_.grad_output_gate, t, 0);
      return;
    }
    float sum = bias_;
    int from = inputs_.move(slot, -history_);
    for (int k = 0; k < p_.width; ++k, from = inputs_.move(from, p_.dilation)) {
      sum = __fmaf_rn(tap(k), inputs_.at(from), sum);
    }
    const Activated activated = activate_with_slope(p_.activation, sum);
    float grad = grads_.at(slot);
    if (t < end_) {
      store_row(p_.grad_output_gate, at_.grad_output_gate, t, __fmul_rn(grad, activated.value));
    }
    if (p_.output_gate.present) {
      grad = __fmul_rn(grad, load_row(p_.output_gate, at_.output_gate, t));
    }
    grad = __fmul_rn(grad, activated.slope);
    grads_.at(slot) = grad;
    if (t >= end_) return;
    from = inputs_.move(slot, -history_);
    for (int k = 0; k < p_.width; ++k, from = inputs_.move(from, p_.dilation)) {
      float& to = sums_.at(indices_.first + k);
      to = __fmaf_rn(grad, inputs_.at(from), to);
    }
    bias_sum_ = __fadd_rn(bias_sum_, grad);
  }

  // ---- Gradients of the inputs ----

  /// The rows before `next` are processed: stores the gradients that need no later ones.
  __device__ void complete_rows(std::int64_t next) {
    if (padding_) return;
    const std::int64_t batch = row_ - waiting_;  // of 8 rows, which are complete together
    const bool is_batch = batch >= done_ && batch + kBatch + history_ <= next;
    const bool has_state = owes_state_ && next >= segment_ + history_;
    // As long as the segment owes a state, no row is done.
    const std::int64_t last = is_batch ? done_ : max(done_, min(batch + kBatch, next - history_));
    store_gradients(has_state, last, next, false);
    if (!is_batch) return;
    if (wants_rows()) complete_batch(batch);
    done_ = batch + kBatch;
  }

  __device__ void complete_batch(std::int64_t first) {
    Values gradients = {};
    const int newest = grads_.move(slot_, history_ - waiting_);
    TapSums<true> tap_sums{taps_, gradients};
    visit_windows<true>(indices_, grads_, newest, tap_sums);
    Values other;
    if (p_.epilogue == Epilogue::kResidual) {
      load_rows(p_.grad_out, at_.grad_out, first, other);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) gradients[i] = __fadd_rn(gradients[i], other[i]);
    }
    if (p_.input_gate.present) {
      load_rows(p_.x, at_.x, first, other);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) other[i] = __fmul_rn(gradients[i], other[i]);
      store_rows(p_.grad_input_gate, at_.grad_input_gate, first, other);
      load_rows(p_.input_gate, at_.input_gate, first, other);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) gradients[i] = __fmul_rn(gradients[i], other[i]);
    }
    store_rows(p_.grad_x, at_.grad_x, first, gradients);
  }

  /// The gradient of the input of row n from the rows of its segment before `next`.
  __device__ float chain(std::int64_t n, std::int64_t next, float gradient) const {
    for (int k = 0; k < p_.width; ++k) {
      const std::int64_t row = n + std::int64_t{p_.width - 1 - k} * p_.dilation;
      if (row >= next || row < segment_) continue;
      const auto distance = static_cast<int>(row - row_);  // from the first row of the batch
      gradient = __fmaf_rn(tap(k), grads_.at(grads_.move(slot_, distance)), gradient);
    }
    return gradient;
  }

  /// A segment ends before row t: the gradients that wait for more rows.
  __device__ void finish_segment(std::int64_t t) {
    if (!padding_ && t > 0) store_gradients(owes_state_, min(t, end_), t, true);
  }

  /// Stores the gradients of the initial state, if `has_state`, and of the rows up to `last`, from
  /// the rows before `next`, at which the segment ends or not.
  __device__ void store_gradients(bool has_state, std::int64_t last, std::int64_t next, bool ends) {
    // Columns of the state take the place of the rows before the segment.
    if (has_state) done_ = segment_ - history_, owes_state_ = false;
    for (; done_ < last; ++done_) {
      if (done_ >= segment_ && !wants_rows()) continue;
      const std::int64_t column = history_ + done_ - next;  // of the final state
      float gradient = 0;
      if (ends && column >= 0 && p_.grad_final_state.present && sequence_ >= 0) {
        gradient = load_f32(p_.grad_final_state.dtype, at_.grad_final_state,
                            state_index(p_.grad_final_state, column));
      }
      gradient = chain(done_, next, gradient);
      if (done_ >= segment_) {
        store_gradient(done_, gradient);
      } else {
        store_f32(p_.grad_initial_state.dtype, at_.grad_initial_state,
                  state_index(p_.grad_initial_state, history_ + done_ - segment_), gradient);
      }
    }
  }

  /// Stores the gradient of the input of a row.
  __device__ void store_gradient(std::int64_t row, float gradient) const {
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

  const std::int64_t first_, end_, limit_;  // rows of the strip, and rows that are read
  const int history_;
  const int waiting_;  // rows between a batch and the one that is complete with it
  const TapIndices indices_;
  const QuadColumn taps_, sums_;
  const RowRing inputs_, grads_;
  float bias_ = 0, bias_sum_ = 0;
  std::int64_t row_ = 0;   // first row of the batch
  int slot_;               // its slot
  bool has_next_ = false;  // whether these are those of the next batch
  Raw next_x_, next_grad_out_;
  std::int64_t done_;  // first row of the segment whose gradient is not stored
  std::int64_t segment_ = 0, segment_end_ = 0;
  std::int64_t number_ = 0;  // seq_idx of the segment
  bool padding_ = true;      // nothing is before row 0
  bool owes_state_ = false;  // the gradient of the segment's initial state is not stored
};

}  // namespace shortconv::cuda
