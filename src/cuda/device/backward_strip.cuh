// A strip of rows of a backward call, by one warp.
//
// The warp goes through the rows once. Windows of the last inputs x and of the last gradients g of
// the sums are in fp32 registers, oldest first. Row t gives g[t], its contribution to the gradients
// of weight and bias, and the last term of the gradient of x[t - history], which is stored. After
// the last row, g of `history` more rows completes the gradients of the last ones.
//
// Rows are processed in batches, in which the windows do not move. A batch starts at the first row
// of each segment, with windows of zeros, so a full batch lies in one segment and needs no test per
// row. Its first rows complete gradients of earlier rows, which are stored unless they belong to
// another segment. All other rows are processed one by one: the rest of a segment, unaligned ends
// of the strip, the first rows of a sequence with a state, padding. Each row of x is stored by the
// strip that has it, and the gradient of an initial state by the strip with the first row of its
// sequence. One class, longer than others: all of its functions work on the same registers.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/device/activation.cuh"
#include "cuda/device/backward_rows.cuh"
#include "cuda/device/backward_segments.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/taps.cuh"
#include "cuda/device/token.cuh"
#include "op/epilogue.hpp"

namespace shortconv::cuda {

template <typename Input, int kTaps, CompiledActivation kAct, bool kWithBias, bool kWithEpilogue,
          int kChannels, int kBatches>
struct BackwardShape {
  using T = Input;
  static constexpr CompiledActivation kActivation = kAct;
  static constexpr bool kHasBias = kWithBias;  // or the gradient of one
  static constexpr bool kHasEpilogue = kWithEpilogue;
  static constexpr int kWidth = kTaps, kHistory = kTaps - 1;
  static constexpr int kGroup = kChannels;  // channels of a thread
  static constexpr int kRegisters = backward_registers(kTaps, kChannels);
  static constexpr int kTensors = kWithEpilogue ? 4 : 2;
  static constexpr int kStages = kBatches;
  /// Rows of a batch: a multiple of the width, so that a window is back in its order after it.
  static constexpr int kBatch = kTaps < 4 ? 2 * kTaps : kTaps;
  using Words = std::uint32_t[kWordsOf<Input, kChannels>];
  using Values = float[kChannels];
  using Window = Values[kTaps];
};

template <typename Shape>
class BackwardStrip {
 public:
  using T = typename Shape::T;
  using Words = typename Shape::Words;
  using Values = typename Shape::Values;
  using Window = typename Shape::Window;
  using Ring = RowRing<Shape>;
  static constexpr int kWidth = Shape::kWidth, kHistory = Shape::kHistory;
  static constexpr int kGroup = Shape::kGroup, kBatch = Shape::kBatch;
  /// Batches in flight. The rows of the batch before the current one stay in the ring if the
  /// gradients of the epilogue need them again.
  static constexpr int kAhead = Shape::kStages - (Shape::kHasEpilogue ? 2 : 1);
  static constexpr int kLongAgo = -0x40000000;  // a row

  __device__ BackwardStrip(const BackwardKernelParams& params, char* memory, int first, int end,
                           int channel)
      : params_(params),
        first_(first),
        end_(end),
        limit_(min(end + kHistory, params.tokens)),
        channel_(channel + static_cast<int>(threadIdx.x % 32) * kGroup),
        inside_(channel_ < params.channels),
        stored_(first),
        ring_(params, memory, first, limit_, channel) {}

  /// Adds the gradients of the weights, oldest tap first, and of the bias, of the rows of the
  /// strip.
  __device__ void run(Window& weight_sums, Values& bias_sums) {
    Entry entry;
    load_entry(entry);
    const Segments segments(params_, first_ - kHistory, end_ - first_ + 2 * kHistory + 1);
#pragma unroll 1
    for (int batch = 0; batch < kAhead; ++batch) ring_.issue(segments);
    use_entry(entry);
    find_segment(segments);
    int begin = segments.next_begin(first_);  // the next first row of a segment
    int row = first_;
    while (true) {
      if (row == begin) {
        if (row >= end_) return;
        begin_segment(segments, row);
        begin = segments.next_begin(row + 1);
      }
      if (takes_batches(row)) {
        const int last = min(begin, end_) - kBatch;
        char* to = first_gradient(row);
        for (; row <= last; row += kBatch) {
          receive_batch(segments);
          process_batch<kBatch, true>(row, to, weight_sums, bias_sums);
          to = nth_row(to, params_.grad_x.stride_bytes, kBatch);
          ring_.advance();
        }
        if (row == begin) {
          finish_segment(row, 0);
          continue;
        }
        if (row == end_ && begin >= end_ + kHistory) {
          receive_batch(segments);
          process_batch<kHistory, false>(row, to, weight_sums, bias_sums);
          return;
        }
      }
      if (row >= limit_) return;
      receive_batch(segments);
      const int rows = min(min(begin, limit_) - row, kBatch);
#pragma unroll 1
      for (int i = 0; i < rows; ++i) process_row(i, row + i, weight_sums, bias_sums);
      row += rows;
      if (row == begin) finish_segment(row, rows);
      ring_.advance();
    }
  }

 private:
  // ---- Weights and windows ----

  /// What the strip loads before its first row. All loads are issued before the first is used.
  struct Entry {
    Taps<T, kWidth, kGroup> weights;
    Taps<F32, kWidth, kGroup> f32_weights;
    Words x[kWidth], gates[kWidth];  // history rows before the first
  };

  __device__ void load_entry(Entry& entry) const {
    const int channel = min(channel_, params_.channels - kGroup);
    const std::int64_t channel_bytes = std::int64_t{channel} * static_cast<int>(sizeof(T));
    if (params_.has_f32_weights) {
      entry.f32_weights.load(params_.weights, channel);
    } else {
      entry.weights.load(params_.weights, channel);
    }
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      const int row = max(first_ - kWidth + j, 0);
      load_words(row_at(params_, params_.x, row) + channel_bytes, entry.x[j]);
      if constexpr (Shape::kHasEpilogue) {
        if (params_.input_gate.data == nullptr) continue;
        load_words(row_at(params_, params_.input_gate, row) + channel_bytes, entry.gates[j]);
      }
    }
  }

  template <typename TWeight>
  __device__ void set_weights(const Taps<TWeight, kWidth, kGroup>& weights) {
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      bias_[2 * pair] = weights.bias(pair).x;
      bias_[2 * pair + 1] = weights.bias(pair).y;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        taps_[k][2 * pair] = weights.tap(k, pair).x;
        taps_[k][2 * pair + 1] = weights.tap(k, pair).y;
      }
    }
  }

  /// Weights, and the window before the first row, as if it were in its sequence.
  __device__ void use_entry(const Entry& entry) {
    if (params_.has_f32_weights) {
      set_weights(entry.f32_weights);
    } else {
      set_weights(entry.weights);
    }
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      unpack(entry.x[j], inputs_[j]);
      if constexpr (Shape::kHasEpilogue) {
        if (params_.input_gate.data == nullptr) continue;
        Values gate;
        unpack(entry.gates[j], gate);
        apply_input_gate(gate, inputs_[j]);
      }
    }
  }

  __device__ void receive_batch(const Segments& segments) {
    wait_for_copies<kAhead - 1>();
    __syncwarp();
    ring_.issue(segments);
  }

  __device__ static void unpack(const Words& words, Values& values) {
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      const float2 two = unpack_pair<T>(words, pair);
      values[2 * pair] = two.x;
      values[2 * pair + 1] = two.y;
    }
  }

  __device__ static void pack(const Values& values, Words& words) {
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      pack_pair<T>(words, pair, {values[2 * pair], values[2 * pair + 1]});
    }
  }

  /// x * gate, rounded to their dtype.
  __device__ static void apply_input_gate(const Values& gate, Values& x) {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      x[c] = to_f32(from_f32<T>(rounded_product(x[c], gate[c])));
    }
  }

  __device__ void load_ring(int tensor, int i, Values& values) const {
    Words words;
    ring_.load(tensor, i, words);
    unpack(words, values);
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

  __device__ void store_rows(const BackwardRows& rows, int row, const Values& values) const {
    if (rows.data == nullptr || !inside_) return;
    Words words;
    pack(values, words);
    store_words(row_at(params_, rows, row) + std::int64_t{channel_} * static_cast<int>(sizeof(T)),
                words);
  }

  /// The gradient of the input of row i of the batch, which may be one of the batch before it,
  /// becomes those of x and of the input gate.
  __device__ void apply_epilogue(int i, Values& gradient, Values& gate_gradient) const {
    if constexpr (Shape::kHasEpilogue) {
      if (params_.residual) {
        Values grad_out;
        load_ring(1, i, grad_out);
#pragma unroll
        for (int c = 0; c < kGroup; ++c) gradient[c] = __fadd_rn(gradient[c], grad_out[c]);
      }
      if (params_.input_gate.data != nullptr) {
        Values x, gate;
        load_ring(0, i, x);
        load_ring(2, i, gate);
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          gate_gradient[c] = __fmul_rn(gradient[c], x[c]);
          gradient[c] = __fmul_rn(gradient[c], gate[c]);
        }
      }
    }
  }

  __device__ void store_input_gradient(int row, int i, Values& gradient) const {
    [[maybe_unused]] Values gate_gradient;
    apply_epilogue(i, gradient, gate_gradient);
    if constexpr (Shape::kHasEpilogue) store_rows(params_.grad_input_gate, row, gate_gradient);
    store_rows(params_.grad_x, row, gradient);
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
      store_input_gradient(row, i, gradient);
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
    load_ring(0, i, row.x);
    load_ring(1, i, row.grad_out);
    if constexpr (Shape::kHasEpilogue) {
      if (params_.output_gate.data != nullptr) load_ring(3, i, row.output_gate);
      if (params_.input_gate.data != nullptr) {
        Values gate;
        load_ring(2, i, gate);
        apply_input_gate(gate, row.x);
      }
    }
  }

  /// The gradient of the sum of a row, from the window whose row k is inputs_[(oldest + k) %
  /// kWidth].
  __device__ void sum_gradient(const Row& row, int oldest, int t, Values& grad) const {
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
    if constexpr (Shape::kHasEpilogue) {
      if (t < end_) store_rows(params_.grad_output_gate, t, gate_gradient);
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

  /// Address of the first gradient that the batch at `row` completes, that of row - kHistory.
  __device__ char* first_gradient(int row) const {
    if (params_.grad_x.data == nullptr) return nullptr;
    return rows_after(row_at(params_, params_.grad_x, row), params_.grad_x.stride_bytes,
                      -kHistory) +
           std::int64_t{channel_} * static_cast<int>(sizeof(T));
  }

  /// Rows [row, row + kRows) of one segment. Those after the strip only complete gradients of x.
  template <int kRows, bool kInStrip>
  __device__ void process_batch(int row, char* to, Window& weight_sums, Values& bias_sums) {
    const bool stores = inside_ && params_.grad_x.data != nullptr;
    const bool stores_earlier = row != stored_;  // the rows before the batch
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int newest = i % kWidth, oldest = (newest + 1) % kWidth;
      Row loaded;
      load_row(i, loaded);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) inputs_[newest][c] = loaded.x[c];
      sum_gradient(loaded, oldest, row + i, grads_[newest]);
      if constexpr (kInStrip) add_to_sums(grads_[newest], oldest, weight_sums, bias_sums);
      Values gradient = {};
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          gradient[c] =
              __fmaf_rn(taps_[k][c], grads_[(newest + kWidth - k) % kWidth][c], gradient[c]);
        }
      }
      const bool is_stored = i >= kHistory || stores_earlier;
      if constexpr (Shape::kHasEpilogue) {
        if (is_stored) store_input_gradient(row + i - kHistory, i - kHistory, gradient);
      } else {
        Words words;
        pack(gradient, words);
        store_words_if(stores && is_stored, nth_row(to, params_.grad_x.stride_bytes, i), words);
      }
    }
  }

  /// Row t, which is row i of the batch. The windows move by one row.
  __device__ void process_row(int i, int t, Window& weight_sums, Values& bias_sums) {
    if (padding_) {
      const Values zeros = {};
      if (t >= end_) return;
      store_rows(params_.grad_x, t, zeros);
      if constexpr (Shape::kHasEpilogue) {
        store_rows(params_.grad_input_gate, t, zeros);
        store_rows(params_.grad_output_gate, t, zeros);
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
    sum_gradient(loaded, 0, t, grads_[kHistory]);
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
