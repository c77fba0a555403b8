// A strip of token-major rows of a backward call, by one warp.
//
// Rows are processed in batches, in which the windows (backward_windows.cuh) do not move. A batch
// starts at the first row of each segment, with windows of zeros, so a full batch lies in one
// segment and needs no test per row. Its first rows complete gradients of earlier rows, which are
// stored unless they belong to another segment. All other rows are processed one by one: the rest
// of a segment, unaligned ends of the strip, the first rows of a sequence with a state, padding.
// Each row of x is stored by the strip that has it, and the gradient of an initial state by the
// strip with the first row of its sequence.
#pragma once

#include <cstdint>

#include "cuda/device/backward_rows.cuh"
#include "cuda/device/backward_windows.cuh"
#include "cuda/device/taps.cuh"

namespace shortconv::cuda {

template <typename Shape>
class BackwardStrip : public BackwardWindows<Shape, RowRing<Shape>> {
 public:
  using Base = BackwardWindows<Shape, RowRing<Shape>>;
  using T = typename Shape::T;
  using Words = typename RowRing<Shape>::Words;
  using Values = typename Shape::Values;
  using Window = typename Shape::Window;
  static constexpr int kWidth = Shape::kWidth, kHistory = Shape::kHistory;
  static constexpr int kGroup = Shape::kGroup, kBatch = RowRing<Shape>::kBatch;
  static constexpr bool kUnitsAreAdjacent = false;  // in the grid
  /// Batches in flight. The rows of the batch before the current one stay in the ring if the
  /// gradients of the epilogue need them again.
  static constexpr int kAhead = RowRing<Shape>::kStages - (Shape::kHasEpilogue ? 2 : 1);

  __device__ BackwardStrip(const BackwardKernelParams& params, char* memory, int first, int end,
                           int channel)
      : Base(params, memory, first, end, channel) {}

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
  using Base::add_to_sums;
  using Base::apply_input_gate;
  using Base::begin_segment;
  using Base::bias_;
  using Base::channel_;
  using Base::end_;
  using Base::find_segment;
  using Base::finish_segment;
  using Base::first_;
  using Base::grads_;
  using Base::inputs_;
  using Base::inside_;
  using Base::limit_;
  using Base::load_row;
  using Base::params_;
  using Base::process_row;
  using Base::ring_;
  using Base::store_input_gradient;
  using Base::stored_;
  using Base::sum_gradient;
  using Base::takes_batches;
  using Base::taps_;
  using typename Base::Row;

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
      unpack_words<T>(entry.x[j], inputs_[j]);
      if constexpr (Shape::kHasEpilogue) {
        if (params_.input_gate.data == nullptr) continue;
        Values gate;
        unpack_words<T>(entry.gates[j], gate);
        apply_input_gate(gate, inputs_[j]);
      }
    }
  }

  __device__ void receive_batch(const Segments& segments) {
    wait_for_copies<kAhead - 1>();
    __syncwarp();
    ring_.issue(segments);
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
        pack_words<T>(gradient, words);
        store_words_if(stores && is_stored, nth_row(to, params_.grad_x.stride_bytes, i), words);
      }
    }
  }
};

}  // namespace shortconv::cuda
