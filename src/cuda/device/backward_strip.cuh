// A strip of token-major rows of a backward call, by one warp.
//
// Rows are processed in batches, in which the windows (backward_windows.cuh) do not move. Each row
// of x is stored by the strip that has it, and the gradient of an initial state by the strip with
// the first row of its sequence.
//
// PackedStrip, for calls without states in which one stride leads from each row to the next: all
// rows are in batches. A batch in which no segment begins or has just begun needs no test per row.
// In the others, the bounds decide for each row whether the window starts with zeros and which
// terms a gradient has; these decisions are equal in all lanes. Copies to shared memory do not
// depend on the bounds, so they start before these are known.
//
// SegmentStrip, for all other calls: a batch starts at the first row of each segment, with windows
// of zeros, so a full batch lies in one segment. Its first rows complete gradients of earlier rows,
// which are stored unless they belong to another segment. All other rows are processed one by one:
// the rest of a segment, unaligned ends of the strip, the first rows of a sequence with a state,
// padding.
#pragma once

#include <cstdint>

#include "cuda/device/backward_norms.cuh"
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

 protected:
  using Base::add_to_sums;
  using Base::apply_input_gate;
  using Base::bias_;
  using Base::channel_;
  using Base::end_;
  using Base::first_;
  using Base::grads_;
  using Base::inputs_;
  using Base::inside_;
  using Base::load_row;
  using Base::params_;
  using Base::ring_;
  using Base::store_input_gradient;
  using Base::stored_;
  using Base::sum_gradient;
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
    const std::int64_t channel_bytes = x_offset<Shape>(params_, channel);
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

  template <typename Runs>
  __device__ void issue_first(const Runs& runs) {
#pragma unroll 1
    for (int batch = 0; batch < kAhead; ++batch) ring_.issue(runs);
  }

  template <typename Runs>
  __device__ void receive_batch(const Runs& runs) {
    wait_for_copies<kAhead - 1>();
    __syncwarp();
    ring_.issue(runs);
  }

  /// Address of the first gradient that the batch at `row` completes, that of row - kHistory.
  __device__ char* first_gradient(int row) const {
    if (params_.grad_x.data == nullptr) return nullptr;
    return rows_after(row_at(params_, params_.grad_x, row), params_.grad_x.stride_bytes,
                      -kHistory) +
           x_offset<Shape>(params_, channel_);
  }

  enum class Batch : std::uint8_t {
    kInside,      // kBatch rows of the strip and of one segment
    kAfterStrip,  // the kHistory rows after the strip, which only complete gradients of x
    kBounded,     // kBatch rows; some may begin a segment, be padding or lie behind the strip
  };

  /// For a kBounded batch: bit i of `begins` is set if a segment begins at row - kHistory + i, bit
  /// i of `padding` if that row is padding.
  struct RowBits {
    std::uint32_t begins, padding;
    __device__ bool is_padding(int i) const { return (padding >> i & 1u) != 0; }
  };

  /// Computes the results of rows of the batch from `first` on again.
  template <bool kBounded>
  __device__ void activate_rows(int first, const RowBits& bounds,
                                NormalizedRows<Shape>& normalized) const {
    Window window;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) window[j][c] = inputs_[j][c];
    }
#pragma unroll
    for (int n = 0; n < NormalizedRows<Shape>::kRows; ++n) {
      const int i = first + n, newest = i % kWidth;
      if constexpr (kBounded) {
        if ((bounds.begins >> (i + kHistory) & 1u) != 0) clear_window(window, newest);
      }
      Values grad_out, results, slopes;
      ring_.load(0, i, window[newest]);
      ring_.load(1, i, grad_out);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        float sum = Shape::kHasBias ? bias_[c] : 0.0f;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          sum = __fmaf_rn(taps_[k][c], window[(newest + 1 + k) % kWidth][c], sum);
        }
        const Activated activated =
            activate_with_slope<Shape::kActivation>(params_.activation, sum);
        results[c] = activated.value;
        slopes[c] = activated.slope;
      }
      normalized.set(n, results, slopes, grad_out);
    }
    normalized.find_factors(params_.group);
  }

  /// Rows from `row` on.
  template <Batch kBatchKind>
  __device__ void process_batch(int row, const RowBits& bounds, char* to, Window& weight_sums,
                                Values& bias_sums) {
    constexpr bool kBounded = kBatchKind == Batch::kBounded;
    constexpr int kRows = kBatchKind == Batch::kAfterStrip ? kHistory : kBatch;
    const bool stores = inside_ && params_.grad_x.data != nullptr;
    const bool stores_earlier = row != stored_;  // gradients of the kHistory rows before the batch
    [[maybe_unused]] NormalizedRows<Shape> normalized;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int newest = i % kWidth, oldest = (newest + 1) % kWidth;
      if constexpr (Shape::kHasNorm) {
        if (i % normalized.kRows == 0) activate_rows<kBounded>(i, bounds, normalized);
      }
      if constexpr (kBounded) {
        if ((bounds.begins >> (i + kHistory) & 1u) != 0) clear_window(inputs_, newest);
      }
      Row loaded;
      load_row(i, loaded);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) inputs_[newest][c] = loaded.x[c];
      const bool is_padded = kBounded && bounds.is_padding(i + kHistory);
      if constexpr (Shape::kHasNorm) {
        normalized.differentiate(i % normalized.kRows, loaded.grad_out, grads_[newest]);
        if (is_padded) set_zero(grads_[newest]);
      } else {
        sum_gradient(loaded, oldest, row + i, is_padded, grads_[newest]);
      }
      // x of padding may be anything: 0 times it may not be 0.
      if (kBatchKind == Batch::kInside ||
          (kBounded && row + i < end_ && !bounds.is_padding(i + kHistory))) {
        add_to_sums(grads_[newest], oldest, weight_sums, bias_sums);
      }
      Values gradient = {};
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        // Segments that begin after the row of the gradient, up to the row of this term.
        const std::uint32_t between = ((1u << (kHistory - k)) - 1) << (i + 1);
        const bool is_other_segment = kBounded && (bounds.begins & between) != 0;
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          if (is_other_segment) continue;
          gradient[c] =
              __fmaf_rn(taps_[k][c], grads_[(newest + kWidth - k) % kWidth][c], gradient[c]);
        }
      }
      const int completed = row + i - kHistory;
      const bool is_stored =
          kBounded ? completed >= first_ && completed < end_ : i >= kHistory || stores_earlier;
      const bool is_padding = kBounded && bounds.is_padding(i);
      if constexpr (Shape::kHasEpilogue) {
        if (is_stored) store_input_gradient(completed, i - kHistory, is_padding, gradient);
      } else {
        if (is_padding) set_zero(gradient);
        Words words;
        pack_words<T>(gradient, words);
        store_words_if(stores && is_stored, nth_row(to, params_.grad_x.stride_bytes, i), words);
      }
    }
  }

  /// The inputs before a segment are 0.
  __device__ static void clear_window(Window& window, int newest) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j != newest) set_zero(window[j]);
    }
  }
};

template <typename TShape>
class PackedStrip : public BackwardStrip<TShape> {
 public:
  using Base = BackwardStrip<TShape>;
  using Shape = TShape;
  using Batch = typename Base::Batch;
  using Window = typename Shape::Window;
  using Values = typename Shape::Values;
  static constexpr int kHistory = Shape::kHistory, kBatch = Base::kBatch;

  using Base::Base;

  /// Adds the gradients of the weights, oldest tap first, and of the bias, of the rows of the
  /// strip.
  __device__ void run(Window& weight_sums, Values& bias_sums) {
    typename Base::Entry entry;
    this->load_entry(entry);
    this->issue_first(OneRun{});
    const Segments segments(params_, first_ - kHistory, end_ - first_ + 2 * kHistory + 1);
    this->use_entry(entry);
    this->find_segment(segments);
    char* to = this->first_gradient(first_);
    const auto process = [&]<Batch kKind>(int row, const typename Base::RowBits& bounds) {
      this->receive_batch(OneRun{});
      this->template process_batch<kKind>(row, bounds, to, weight_sums, bias_sums);
      to = nth_row(to, params_.grad_x.stride_bytes, kBatch);
      ring_.advance();
    };
    int row = first_, from = first_;  // bounds: of the 32 rows from `from` - kHistory on
    typename Base::RowBits bounds = bounds_from(segments, row);
    const auto move_bounds = [&] {
      if (row - from + kHistory + kBatch > 32) bounds = bounds_from(segments, from = row);
    };
    while (true) {
      move_bounds();
      if (!bounds.is_padding(row - from + kHistory - 1)) {
        const std::uint32_t ahead = bounds.begins >> (row - from + 1);
        const int begin = ahead != 0 ? row - kHistory + __ffs(static_cast<int>(ahead))
                                     : segments.next_begin(row - kHistory + 1);
        const int last = min(begin, end_) - kBatch;
        for (; row <= last; row += kBatch) process.template operator()<Batch::kInside>(row, {});
      }
      if (row >= end_ + kHistory) return;
      move_bounds();
      process.template operator()<Batch::kBounded>(
          row, {bounds.begins >> (row - from), bounds.padding >> (row - from)});
      row += kBatch;
    }
  }

 private:
  using Base::end_;
  using Base::first_;
  using Base::params_;
  using Base::ring_;

  /// Of the 32 rows from row - kHistory on.
  __device__ static typename Base::RowBits bounds_from(const Segments& segments, int row) {
    return {segments.begins_from(row - kHistory), segments.padding_from(row - kHistory)};
  }
};

template <typename TShape>
class SegmentStrip : public BackwardStrip<TShape> {
 public:
  using Base = BackwardStrip<TShape>;
  using Shape = TShape;
  using Batch = typename Base::Batch;
  using Window = typename Shape::Window;
  using Values = typename Shape::Values;
  static constexpr int kHistory = Shape::kHistory, kBatch = Base::kBatch;

  using Base::Base;

  /// As PackedStrip::run.
  __device__ void run(Window& weight_sums, Values& bias_sums) {
    typename Base::Entry entry;
    this->load_entry(entry);
    const Segments segments(params_, first_ - kHistory, end_ - first_ + 2 * kHistory + 1);
    this->issue_first(segments);
    this->use_entry(entry);
    this->find_segment(segments);
    int begin = segments.next_begin(first_);  // the next first row of a segment
    int row = first_;
    while (true) {
      if (row == begin) {
        if (row >= end_) return;
        this->begin_segment(segments, row);
        begin = segments.next_begin(row + 1);
      }
      if (this->takes_batches(row)) {
        const int last = min(begin, end_) - kBatch;
        char* to = this->first_gradient(row);
        for (; row <= last; row += kBatch) {
          this->receive_batch(segments);
          this->template process_batch<Batch::kInside>(row, {}, to, weight_sums, bias_sums);
          to = nth_row(to, params_.grad_x.stride_bytes, kBatch);
          ring_.advance();
        }
        if (row == begin) {
          this->finish_segment(row, 0);
          continue;
        }
        if (row == end_ && begin >= end_ + kHistory) {
          this->receive_batch(segments);
          this->template process_batch<Batch::kAfterStrip>(row, {}, to, weight_sums, bias_sums);
          return;
        }
      }
      if (row >= limit_) return;
      this->receive_batch(segments);
      const int rows = min(min(begin, limit_) - row, kBatch);
#pragma unroll 1
      for (int i = 0; i < rows; ++i) this->process_row(i, row + i, weight_sums, bias_sums);
      row += rows;
      if (row == begin) this->finish_segment(row, rows);
      ring_.advance();
    }
  }

 private:
  using Base::end_;
  using Base::first_;
  using Base::limit_;
  using Base::params_;
  using Base::ring_;
};

}  // namespace shortconv::cuda
