// Windows and sums of a strip of rows of a backward call, and where its sequences begin and end.
//
// The warp goes through the rows of the strip once, in order. Windows of the last inputs x and of
// the last gradients g of the sums are in fp32 registers, oldest first. Row t gives g[t], its
// contribution to the gradients of weight and bias, and the last term of the gradient of x[t -
// history], which is stored. After the last row, g of `history` more rows completes the gradients
// of the last ones.
//
// Here is what all layouts of rows share: segments, states, and rows that are processed one by one.
// backward_strip.cuh (adjacent channels) and channel_strip.cuh (any strides) load and store rows,
// and process several at a time without a test for each. One class, because all of its functions
// work on the same registers.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/device/activation.cuh"
#include "cuda/device/backward_segments.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/token.cuh"
#include "op/epilogue.hpp"

namespace shortconv::cuda {

/// What an instance of the kernels computes, and how many channels a thread has.
template <typename Input, int kTaps, CompiledActivation kAct, bool kWithBias, bool kWithEpilogue,
          int kChannels>
struct BackwardShape {
  using T = Input;
  static constexpr CompiledActivation kActivation = kAct;
  static constexpr bool kHasBias = kWithBias;  // or the gradient of one
  static constexpr bool kHasEpilogue = kWithEpilogue;
  static constexpr int kWidth = kTaps, kHistory = kTaps - 1;
  static constexpr int kGroup = kChannels;  // channels of a thread
  static constexpr int kRegisters = backward_registers(kTaps, kChannels);
  using Values = float[kChannels];
  using Window = Values[kTaps];
  static constexpr bool kHasGroups = false, kHasNorm = false;
};

/// The same for one group of a call with groups, whose results are normalized if kNormalize.
template <typename Base, bool kNormalize>
struct BackwardGroupShape : Base {
  static constexpr bool kHasGroups = true, kHasNorm = kNormalize;
};

template <int kCount>
__device__ inline void set_zero(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = 0.0f;
}

/// Ring: rows of the strip in shared memory (RowRing, ChannelRing), which also stores gradients.
template <typename TShape, typename Ring>
class BackwardWindows {
 public:
  using Shape = TShape;
  using Rows = Ring;

 protected:
  using T = typename Shape::T;
  using Values = typename Shape::Values;
  using Window = typename Shape::Window;
  static constexpr int kWidth = Shape::kWidth, kHistory = Shape::kHistory, kGroup = Shape::kGroup;
  static constexpr int kLongAgo = -0x40000000;  // a row

  __device__ BackwardWindows(const BackwardKernelParams& params, char* memory, int first, int end,
                             int channel)
      : params_(params),
        first_(first),
        end_(end),
        limit_(min(end + kHistory, params.tokens)),
        channel_(channel + static_cast<int>(threadIdx.x % 32) * kGroup),
        inside_(channel_ < params.channels),
        stored_(first),
        ring_(params, memory, first, limit_, channel) {}

  /// x * gate, rounded to their dtype.
  __device__ static void apply_input_gate(const Values& gate, Values& x) {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      x[c] = to_f32(from_f32<T>(rounded_product(x[c], gate[c])));
    }
  }

  /// Element of a state, for the thread's channel c.
  __device__ std::int64_t state_index(const BackwardStates& states, int column, int c) const {
    return sequence_ * states.sequence_stride + column * states.column_stride +
           (channel_ + c) * states.channel_stride;
  }

  __device__ bool has_column(const BackwardStates& states) const {
    return params_.has_states && states.data != nullptr && sequence_ >= 0 && inside_;
  }

  /// Input of the initial state of the sequence, or 0.
  __device__ void load_initial(int column, Values& values) const {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      values[c] = !has_column(params_.initial_state)
                      ? 0.0f
                      : load_f32(params_.initial_state.dtype, params_.initial_state.data,
                                 state_index(params_.initial_state, column, c));
    }
  }

  /// Gradient of the final state of the sequence.
  __device__ void load_final(int column, Values& values) const {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      values[c] = load_f32(params_.grad_final_state.dtype, params_.grad_final_state.data,
                           state_index(params_.grad_final_state, column, c));
    }
  }

  /// With seq_idx only the first part of a row of the batch has an initial state.
  __device__ void find_states(const Segments& segments, int row) {
    if (!params_.has_states) return;
    sequence_ = segments.sequence_of(row);
    if (params_.seq_idx != nullptr && row % params_.sequence_tokens.divisor() != 0) sequence_ = -1;
  }

  /// The segment of the row before the first one, and its windows.
  __device__ void find_segment(const Segments& segments) {
    segment_ = kLongAgo;
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      const int row = first_ - kWidth + j;
      if (row >= 0 && segments.begins(row)) segment_ = row;
    }
    const int previous = max(first_ - 1, 0);
    padding_ = segments.is_padding(previous);
    find_states(segments, max(segment_, 0));
    if (segment_ == kLongAgo && params_.has_states) sequence_ = segments.sequence_of(previous);
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      const int row = first_ - kWidth + j;
      if (row < segment_) load_initial(kHistory + row - segment_, inputs_[j]);
    }
  }

  /// Whether process_batch can take the rows from `row` on. The first rows of a sequence with a
  /// state also complete the gradients of its columns.
  __device__ bool takes_batches(int row) const {
    return !padding_ && (!params_.has_states || row >= segment_ + kHistory);
  }

  /// Row t is the first of a sequence, of a part with one seq_idx, or of padding.
  __device__ void begin_segment(const Segments& segments, int t) {
    find_states(segments, t);
    padding_ = segments.is_padding(t);
    segment_ = stored_ = t;
    owns_begin_ = true;
#pragma unroll
    for (int j = 1; j < kWidth; ++j) load_initial(j - 1, inputs_[j]);
  }

  // ---- Stores ----

  /// The gradient of the input of row i of the batch, which may be one of the batch before it,
  /// becomes those of x and of the input gate.
  __device__ void apply_epilogue(int i, Values& gradient, Values& gate_gradient) const {
    if constexpr (Shape::kHasEpilogue) {
      if (params_.residual) {
        Values grad_out;
        ring_.load(1, i, grad_out);
#pragma unroll
        for (int c = 0; c < kGroup; ++c) gradient[c] = __fadd_rn(gradient[c], grad_out[c]);
      }
      if (params_.input_gate.data != nullptr) {
        Values x, gate;
        ring_.load(0, i, x);
        ring_.load(2, i, gate);
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          gate_gradient[c] = __fmul_rn(gradient[c], x[c]);
          gradient[c] = __fmul_rn(gradient[c], gate[c]);
        }
      }
    }
  }

  /// Those of padding are 0.
  __device__ void store_input_gradient(int row, int i, bool is_padding, Values& gradient) const {
    [[maybe_unused]] Values gate_gradient;
    apply_epilogue(i, gradient, gate_gradient);
    if (is_padding) set_zero(gradient), set_zero(gate_gradient);
    if constexpr (Shape::kHasEpilogue)
      ring_.store(params_.grad_input_gate, row, channel_, gate_gradient);
    ring_.store_gradient(row, i, channel_, gradient);
  }

  __device__ void store_state_gradient(int column, const Values& gradient) const {
    const BackwardStates& states = params_.grad_initial_state;
    if (!owns_begin_ || !has_column(states)) return;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      store_f32(states.dtype, states.data, state_index(states, column, c), gradient[c]);
    }
  }

  /// Whether the strip stores the gradient of this row, or of the initial state's column that takes
  /// the place of a row before the segment.
  __device__ bool is_wanted(int row) const {
    return (row >= stored_ && row < end_) || (params_.has_states && row < segment_);
  }

  /// Stores the gradient of an input of the segment, if is_wanted: a row, which is row i of the
  /// batch, or one of the initial state.
  __device__ void store_gradient(int row, int i, Values& gradient) const {
    if (row < segment_) {
      store_state_gradient(kHistory + row - segment_, gradient);
    } else {
      store_input_gradient(row, i, false, gradient);
    }
  }

  // ---- Rows ----

  /// A segment ends before row t, which is row i of the batch: the gradients that wait for more
  /// rows.
  __device__ void finish_segment(int t, int i) {
    if (padding_) return;
#pragma unroll
    for (int back = kHistory; back > 0; --back) {
      if (!is_wanted(t - back)) continue;
      Values gradient = {};
      if (has_column(params_.grad_final_state)) load_final(kHistory - back, gradient);
#pragma unroll
      for (int k = kWidth - back; k < kWidth; ++k) {
        const int age = back - kHistory + k;
        if (params_.has_states && t - age < segment_) continue;
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          gradient[c] = __fmaf_rn(taps_[k][c], grads_[kWidth - age][c], gradient[c]);
        }
      }
      store_gradient(t - back, i - back, gradient);
    }
  }

  /// x of a row, the gradient of its result, and the output gate, from the ring.
  struct Row {
    Values x, grad_out, output_gate;
  };
  __device__ void load_row(int i, Row& row) const {
    ring_.load(0, i, row.x);
    ring_.load(1, i, row.grad_out);
    if constexpr (Shape::kHasEpilogue) {
      if (params_.output_gate.data != nullptr) ring_.load(3, i, row.output_gate);
      if (params_.input_gate.data != nullptr) {
        Values gate;
        ring_.load(2, i, gate);
        apply_input_gate(gate, row.x);
      }
    }
  }

  /// The gradient of the sum of row t, from the window whose row k is inputs_[(oldest + k) %
  /// kWidth]. That of padding is 0.
  __device__ void sum_gradient(const Row& row, int oldest, int t, bool is_padding,
                               Values& grad) const {
    [[maybe_unused]] Values gate_gradient;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      float sum = Shape::kHasBias ? bias_[c] : 0.0f;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        sum = __fmaf_rn(taps_[k][c], inputs_[(oldest + k) % kWidth][c], sum);
      }
      const Activated activated = activate_with_slope<Shape::kActivation>(params_.activation, sum);
      float grad_out = row.grad_out[c];
      if constexpr (Shape::kHasEpilogue) {
        gate_gradient[c] = __fmul_rn(grad_out, activated.value);
        if (params_.output_gate.data != nullptr) {
          grad_out = __fmul_rn(grad_out, row.output_gate[c]);
        }
      }
      grad[c] = __fmul_rn(grad_out, activated.slope);
    }
    if (is_padding) set_zero(grad), set_zero(gate_gradient);
    if constexpr (Shape::kHasEpilogue) {
      if (t < end_) ring_.store(params_.grad_output_gate, t, channel_, gate_gradient);
    }
  }

  __device__ void add_to_sums(const Values& grad, int oldest, Window& weight_sums,
                              Values& bias_sums) const {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        weight_sums[k][c] =
            __fmaf_rn(grad[c], inputs_[(oldest + k) % kWidth][c], weight_sums[k][c]);
      }
      if constexpr (Shape::kHasBias) bias_sums[c] = __fadd_rn(bias_sums[c], grad[c]);
    }
  }

  /// Row t, which is row i of the batch. The windows move by one row.
  __device__ void process_row(int i, int t, Window& weight_sums, Values& bias_sums) {
    if (padding_) {
      const Values zeros = {};
      if (t >= end_) return;
      ring_.store_gradient(t, i, channel_, zeros);
      if constexpr (Shape::kHasEpilogue) {
        ring_.store(params_.grad_input_gate, t, channel_, zeros);
        ring_.store(params_.grad_output_gate, t, channel_, zeros);
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kHistory; ++j) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        inputs_[j][c] = inputs_[j + 1][c];
        grads_[j][c] = grads_[j + 1][c];
      }
    }
    Row loaded;
    load_row(i, loaded);
#pragma unroll
    for (int c = 0; c < kGroup; ++c) inputs_[kHistory][c] = loaded.x[c];
    sum_gradient(loaded, 0, t, false, grads_[kHistory]);
    if (t < end_) add_to_sums(grads_[kHistory], 0, weight_sums, bias_sums);
    if (!is_wanted(t - kHistory)) return;
    Values gradient = {};
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (params_.has_states && t - k < segment_) continue;
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        gradient[c] = __fmaf_rn(taps_[k][c], grads_[kHistory - k][c], gradient[c]);
      }
    }
    store_gradient(t - kHistory, i - kHistory, gradient);
  }

  const BackwardKernelParams& params_;
  const int first_, end_, limit_;  // rows of the strip, and rows that are read
  const int channel_;
  const bool inside_;
  int stored_;  // first row whose gradient this strip and segment store
  Ring ring_;
  Window taps_;
  Values bias_;
  Window inputs_ = {}, grads_ = {};  // oldest first between batches
  int segment_ = 0;                  // its first row; that of the last `width` rows is enough
  int sequence_ = -1;                // whose states belong to the segment; -1: none
  bool padding_ = false, owns_begin_ = false;
};

}  // namespace shortconv::cuda
