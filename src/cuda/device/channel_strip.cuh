// A strip of rows of a backward call whose channels are not adjacent, by one warp: a lane has one
// channel.
//
// Chunks of 8 aligned rows of one segment are processed in registers, and their gradients return to
// shared memory as chunks of 8 rows. All other rows are processed one by one, as in
// backward_windows.cuh.
#pragma once

#include <cstdint>

#include "cuda/device/backward_windows.cuh"
#include "cuda/device/channel_ring.cuh"

namespace shortconv::cuda {

template <typename Shape>
class ChannelStrip : public BackwardWindows<Shape, ChannelRing<Shape>> {
 public:
  using Ring = ChannelRing<Shape>;
  using Base = BackwardWindows<Shape, Ring>;
  using T = typename Shape::T;
  using Values = typename Shape::Values;
  using Window = typename Shape::Window;
  static constexpr int kWidth = Shape::kWidth, kHistory = Shape::kHistory;
  static constexpr int kRows = Ring::kRows, kChunk = Ring::kChunk;
  /// In the grid: then blocks that run together access adjacent memory. A kernel with these
  /// accesses and no arithmetic takes 127 us for 8192 x 8192 bf16 on an H200, and 140 in the other
  /// order.
  static constexpr bool kUnitsAreAdjacent = true;
  static_assert(Shape::kGroup == 1 && kHistory < kChunk && kRows % kChunk == 0);

  __device__ ChannelStrip(const BackwardKernelParams& params, char* memory, int first, int end,
                          int channel)
      : Base(params, memory, first, end, channel) {}

  /// Adds the gradients of the weights, oldest tap first, and of the bias, of the rows of the
  /// strip.
  __device__ void run(Window& weight_sums, Values& bias_sums) {
    Entry entry;
    load_entry(entry);
    const Segments segments(params_, first_ - kHistory, end_ - first_ + 2 * kHistory + 1);
    int begin = 0;  // the next first row of a segment
#pragma unroll 1
    for (int stage = first_ - kRows;; stage += kRows) {
      ring_.receive();  // before the first stage only issues its copies
      if (stage < first_) {
        use_entry(entry);
        find_segment(segments);
        begin = segments.next_begin(first_);
        continue;
      }
      const int stage_end = min(stage + kRows, limit_);
      const bool goes_on = process_stage(segments, stage, stage_end, begin, weight_sums, bias_sums);
      if (stage > first_) ring_.store_stage(true, stage - kRows, stage);
      if (goes_on && stage_end < limit_) continue;
      ring_.store_stage(false, stage, min(stage_end, end_));
      return;
    }
  }

 private:
  using Base::begin_segment;
  using Base::bias_;
  using Base::channel_;
  using Base::end_;
  using Base::find_segment;
  using Base::finish_segment;
  using Base::first_;
  using Base::grads_;
  using Base::inputs_;
  using Base::limit_;
  using Base::params_;
  using Base::process_row;
  using Base::ring_;
  using Base::stored_;
  using Base::takes_batches;
  using Base::taps_;

  /// Gradients of a chunk that do not wait for the next one.
  static constexpr int kWaiting = kChunk - kHistory;

  /// What the strip loads before its first row. All loads are issued before the first is used.
  struct Entry {
    T x[kWidth];  // history rows before the first
    T weights[kWidth], bias;
    F32 f32_weights[kWidth], f32_bias;
  };

  __device__ void load_entry(Entry& entry) const {
    const std::int64_t channel = min(channel_, params_.channels - 1);
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      const char* row = row_at(params_, params_.x, max(first_ - kWidth + j, 0));
      entry.x[j] = *reinterpret_cast<const T*>(row + channel * params_.x.channel_stride_bytes);
    }
    if (params_.has_f32_weights) {
      load_weights(channel, entry.f32_weights, entry.f32_bias);
    } else {
      load_weights(channel, entry.weights, entry.bias);
    }
  }

  template <typename TWeight>
  __device__ void load_weights(std::int64_t channel, TWeight (&weights)[kWidth],
                               TWeight& bias) const {
    const Weights& from = params_.weights;
    const auto* weight = static_cast<const TWeight*>(from.weight) + channel * from.channel_stride;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weights[k] = weight[k * from.tap_stride];
    bias = from_f32<TWeight>(0.0f);
    if (from.bias == nullptr) return;
    bias = static_cast<const TWeight*>(from.bias)[channel * from.bias_channel_stride];
  }

  /// Weights, and the window before the first row, as if it were in its sequence.
  __device__ void use_entry(const Entry& entry) {
    const bool f32 = params_.has_f32_weights;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      taps_[k][0] = f32 ? entry.f32_weights[k] : to_f32(entry.weights[k]);
    }
    bias_[0] = f32 ? entry.f32_bias : to_f32(entry.bias);
#pragma unroll
    for (int j = 1; j < kWidth; ++j) inputs_[j][0] = to_f32(entry.x[j]);
  }

  /// Rows [stage, stage_end). False if the strip ends before the last of them.
  __device__ bool process_stage(const Segments& segments, int stage, int stage_end, int& begin,
                                Window& weight_sums, Values& bias_sums) {
    int row = stage;
    while (true) {
      if (row == begin) {
        store_waiting(row, stage);
        if (row > first_) finish_segment(row, row - stage);
        if (row >= end_) return false;
        begin_segment(segments, row);
        begin = segments.next_begin(row + 1);
      }
      if (row >= stage_end) return true;
      const int last = min(min(begin, end_), stage_end) - kChunk;
      if (row % kChunk == 0 && row <= last && takes_batches(row)) {
        process_chunks(row, last, stage, weight_sums, bias_sums);
      } else {
        store_waiting(row, stage);
        process_row(row - stage, row, weight_sums, bias_sums);
        ++row;
      }
    }
  }

  /// Chunks at `row` up to `last` of the stage; `row` becomes the row after them. A chunk completes
  /// the last gradients of the chunk before it, which is then stored as a whole.
  __device__ void process_chunks(int& row, int last, int stage, Window& weight_sums,
                                 Values& bias_sums) {
#pragma unroll(kRows / kChunk)
    for (; row <= last; row += kChunk) {
      process_chunk(row, stage, weight_sums, bias_sums);
      if (has_waiting_) {
        typename Ring::Chunk words;
#pragma unroll
        for (int i = 0; i < kChunk; i += 2) {
          pack_pair<T>(words, i / 2, {gradients_[i], gradients_[i + 1]});
        }
        ring_.store_chunk(row - kChunk - stage, words);
      } else {
#pragma unroll
        for (int back = kHistory; back > 0; --back) {
          if (row - back >= stored_) store(row - back, stage, gradients_[kChunk - back]);
        }
      }
      has_waiting_ = true;
#pragma unroll
      for (int i = 0; i < kWaiting; ++i) gradients_[i] = gradients_[kChunk + i];
    }
  }

  /// Stores what waits for another chunk at `row`: there is none.
  __device__ void store_waiting(int row, int stage) {
    if (!has_waiting_) return;
    has_waiting_ = false;
#pragma unroll
    for (int i = 0; i < kWaiting; ++i) store(row - kChunk + i, stage, gradients_[i]);
  }

  __device__ void store(int row, int stage, float gradient) const {
    const Values values = {gradient};
    ring_.store_gradient(row, row - stage, channel_, values);
  }

  /// Rows [row, row + kChunk); the gradients that they complete become the last of gradients_.
  __device__ void process_chunk(int row, int stage, Window& weight_sums, Values& bias_sums) {
    typename Ring::Chunk x, grad_out;
    ring_.load_chunk(0, row - stage, x);
    ring_.load_chunk(1, row - stage, grad_out);
    float inputs[kHistory + kChunk], grads[kHistory + kChunk];
#pragma unroll
    for (int j = 0; j < kHistory; ++j) {
      inputs[j] = inputs_[j + 1][0];
      grads[j] = grads_[j + 1][0];
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      inputs[kHistory + i] = element(x, i);
      float sum = Shape::kHasBias ? bias_[0] : 0.0f;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum = __fmaf_rn(taps_[k][0], inputs[i + k], sum);
      const Activated activated = activate_with_slope<Shape::kActivation>(params_.activation, sum);
      const float grad = __fmul_rn(element(grad_out, i), activated.slope);
      grads[kHistory + i] = grad;
      float gradient = 0;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        weight_sums[k][0] = __fmaf_rn(grad, inputs[i + k], weight_sums[k][0]);
        gradient = __fmaf_rn(taps_[k][0], grads[kHistory + i - k], gradient);
      }
      if constexpr (Shape::kHasBias) bias_sums[0] = __fadd_rn(bias_sums[0], grad);
      gradients_[kWaiting + i] = gradient;
    }
#pragma unroll
    for (int j = 0; j < kHistory; ++j) {
      inputs_[j + 1][0] = inputs[kChunk + j];
      grads_[j + 1][0] = grads[kChunk + j];
    }
  }

  __device__ static float element(const typename Ring::Chunk& words, int i) {
    const float2 pair = unpack_pair<T>(words, i / 2);
    return i % 2 == 0 ? pair.x : pair.y;
  }

  /// Of rows from `kChunk` before the current chunk on; between chunks only the first kWaiting.
  float gradients_[kWaiting + kChunk];
  bool has_waiting_ = false;
};

}  // namespace shortconv::cuda
