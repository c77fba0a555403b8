// Rows of the backward kernels: addresses, and copies through shared memory.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/device/backward_segments.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/head_columns.cuh"
#include "cuda/device/memory.cuh"

namespace shortconv::cuda {

/// Address of a packed row.
__device__ inline char* row_at(const BackwardKernelParams& params, const BackwardRows& rows,
                               int row) {
  char* from = static_cast<char*>(rows.data);
  if (!params.is_packed) {
    const std::uint32_t sequence = params.sequence_tokens.divide(static_cast<std::uint32_t>(row));
    row -= static_cast<int>(sequence * params.sequence_tokens.divisor());
    from += sequence * rows.sequence_stride_bytes;
  }
  return rows_after(from, rows.stride_bytes, row);
}

template <typename T, int kWords, int kGroup>
__device__ inline void unpack_words(const std::uint32_t (&words)[kWords], float (&values)[kGroup]) {
#pragma unroll
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    const float2 two = unpack_pair<T>(words, pair);
    values[2 * pair] = two.x;
    values[2 * pair + 1] = two.y;
  }
}

template <typename T, int kWords, int kGroup>
__device__ inline void pack_words(const float (&values)[kGroup], std::uint32_t (&words)[kWords]) {
#pragma unroll
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    pack_pair<T>(words, pair, {values[2 * pair], values[2 * pair + 1]});
  }
}

/// Offset of a channel in a row of x or of grad_x, in bytes.
template <typename Shape>
__device__ inline std::int64_t x_offset(const BackwardKernelParams& params, int channel) {
  constexpr int kBytes = sizeof(typename Shape::T);
  if constexpr (Shape::kHasGroups) {
    const std::uint32_t head = params.group.head_dim.divide_above_1(channel);
    const int d = channel - static_cast<int>(head * params.group.head_dim.divisor());
    return (column_of(params.group.columns, head) + d) * kBytes;
  }
  return std::int64_t{channel} * kBytes;
}

/// Of a channel of a group in a row of grad_out, in elements.
__device__ inline int grad_out_offset(const BackwardKernelParams& params, int channel) {
  const std::uint32_t head = params.group.head_dim.divide_above_1(channel);
  const int d = channel - static_cast<int>(head * params.group.head_dim.divisor());
  return static_cast<int>(head) * params.group.grad_head_stride + d;
}

/// All rows of a strip are one run.
struct OneRun {
  __device__ int next_begin(int /*row*/) const { return RowMask::kNone; }
};

/// Copies the rows of a strip from global memory to a ring of kStages batches in shared memory. A
/// batch ends with its run, a segment or all rows, so it may have fewer rows than kBatch.
/// A warp has a ring; only its own lanes read it. Lanes beyond the last channels copy the last
/// ones.
template <typename Shape>
class RowRing {
 public:
  using T = typename Shape::T;
  using Words = std::uint32_t[kWordsOf<T, Shape::kGroup>];
  using Values = typename Shape::Values;
  static constexpr int kWidth = Shape::kWidth;
  /// Rows of a batch: a multiple of the width, so that a window is back in its order after it.
  static constexpr int kBatch = kWidth < 4 ? 2 * kWidth : kWidth;
  static constexpr int kStages = backward_stages(sizeof(T), Shape::kHasEpilogue);
  static constexpr int kRowBytes = 32 * Shape::kGroup * static_cast<int>(sizeof(T));
  static constexpr int kTensorBytes = kBatch * kRowBytes;
  static constexpr int kStageBytes = (Shape::kHasEpilogue ? 4 : 2) * kTensorBytes;
  static constexpr int kBytes = kStages * kStageBytes;

  /// Rows [first, limit) of the channels from `channel` on.
  __device__ RowRing(const BackwardKernelParams& params, char* memory, int first, int limit,
                     int channel)
      : params_(params), next_(first), run_end_(first), limit_(limit) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int chunk = params.copy_bytes;
    const int lanes = kRowBytes / chunk;  // of a row
    const int offset = lane % lanes * chunk;
    lane_row_ = lane / lanes;
    constexpr int kElement = sizeof(T);
    x_offset_ = min(channel * kElement + offset, params.channels * kElement - chunk);
    grad_out_offset_ = x_offset_;
    if constexpr (Shape::kHasGroups) {
      const int copied = x_offset_ / kElement;  // the first channel
      x_offset_ = static_cast<int>(x_offset<Shape>(params, copied));
      grad_out_offset_ = grad_out_offset(params, copied) * kElement;
    }
    to_ = shared_address(memory) + (lane_row_ * kRowBytes + offset);
    from_ = shared_address(memory) + lane * static_cast<int>(sizeof(Words));
    to_end_ = to_ + kBytes;
    from_end_ = from_ + kBytes;
    opaque(to_), opaque(from_), opaque(to_end_), opaque(from_end_);
  }

  /// Issues the copies of the next batch, if it has rows, and ends their group. Runs of rows end at
  /// runs.next_begin.
  template <typename Runs>
  __device__ void issue(const Runs& runs) {
    if (next_ + kBatch <= whole_end_) {
      issue_rows<16>([](const char* from, int stride, int r) { return nth_row(from, stride, r); });
    } else if (next_ < limit_) {
      issue_rest(runs);
    }
    commit_copies();
    next_ = min(next_ + kBatch, run_end_);
    lane_x_ = nth_row(lane_x_, params_.x.stride_bytes, kBatch);
    lane_grad_out_ = nth_row(lane_grad_out_, params_.grad_out.stride_bytes, kBatch);
    to_ = following(to_, to_end_);
  }

  /// Goes on to the next batch for load.
  __device__ void advance() { from_ = following(from_, from_end_); }

  /// The thread's channels of row `row` of the current batch; negative rows are in the one before
  /// it.
  __device__ void load(int tensor, int row, Values& values) const {
    SharedAddress from = from_ + (tensor * kTensorBytes + row * kRowBytes);
    if (row < 0) {
      from -= kStageBytes - kBatch * kRowBytes;
      if (from_ == from_end_ - kBytes) from += kBytes;
    }
    Words words;
    load_shared_words(from, words);
    unpack_words<T>(words, values);
  }

  /// Stores the thread's channels of a row in global memory.
  __device__ void store(const BackwardRows& rows, int row, int channel,
                        const Values& values) const {
    if (rows.data == nullptr || channel >= params_.channels) return;
    Words words;
    pack_words<T>(values, words);
    store_words(row_at(params_, rows, row) + std::int64_t{channel} * static_cast<int>(sizeof(T)),
                words);
  }
  __device__ void store_gradient(int row, int /*batch_row*/, int channel,
                                 const Values& values) const {
    store(params_.grad_x, row, channel, values);
  }

 private:
  __device__ static SharedAddress following(SharedAddress stage, SharedAddress end) {
    stage += kStageBytes;
    return stage == end ? end - kBytes : stage;
  }

  /// What the lane copies of the next batch's first rows.
  __device__ const char* lane_source(const BackwardRows& rows, int offset) const {
    return rows_after(row_at(params_, rows, next_), rows.stride_bytes, lane_row_) + offset;
  }

  /// Copies a batch that starts a run, or ends one: copies of the last row fill up the batch.
  template <typename Runs>
  __device__ void issue_rest(const Runs& runs) {
    if (next_ == run_end_) {
      run_end_ = min(runs.next_begin(next_ + 1), limit_);
      if (params_.copy_bytes == 16) whole_end_ = run_end_;
      lane_x_ = lane_source(params_.x, x_offset_);
      lane_grad_out_ = lane_source(params_.grad_out, grad_out_offset_);
    }
    const int last = run_end_ - 1 - next_ - lane_row_;
    const auto row_of = [&](const char* from, int stride, int r) {
      return rows_after(from, stride, min(r, last));
    };
    if (params_.copy_bytes == 16) {
      issue_rows<16>(row_of);
    } else {
      issue_rows<8>(row_of);
    }
  }

  /// The lane copies row_of(from, stride, r) to row r + lane_row_ of the batch, for each tensor.
  template <int kChunk, typename RowOf>
  __device__ void issue_rows(const RowOf& row_of) {
    issue_tensor<kChunk>(0, lane_x_, params_.x.stride_bytes, row_of);
    issue_tensor<kChunk>(1, lane_grad_out_, params_.grad_out.stride_bytes, row_of);
    if constexpr (Shape::kHasEpilogue) {
      const auto issue_gate = [&](const BackwardRows& rows, int tensor) {
        if (rows.data == nullptr) return;
        issue_tensor<kChunk>(tensor, lane_source(rows, x_offset_), rows.stride_bytes, row_of);
      };
      issue_gate(params_.input_gate, 2);
      issue_gate(params_.output_gate, 3);
    }
  }

  template <int kChunk, typename RowOf>
  __device__ void issue_tensor(int tensor, const char* from, int stride, const RowOf& row_of) {
    constexpr int kRows = 32 * kChunk / kRowBytes;  // of one instruction
#pragma unroll
    for (int r = 0; r < kBatch; r += kRows) {
      if (kBatch % kRows != 0 && r + lane_row_ >= kBatch) continue;
      copy_async<kChunk>(to_ + (tensor * kTensorBytes + r * kRowBytes), row_of(from, stride, r));
    }
  }

  const BackwardKernelParams& params_;
  // Addresses in shared memory of the lane's part of the current and of the next batch, and of
  // where they begin again.
  SharedAddress from_, to_, from_end_, to_end_;
  const char *lane_x_ = nullptr, *lane_grad_out_ = nullptr;  // of the next batch
  int next_, run_end_, limit_;  // the next row, the end of its run, and that of the rows
  int whole_end_ = -kBatch;     // as run_end_; batches before it are copied without tests
  int lane_row_, x_offset_, grad_out_offset_;
};

}  // namespace shortconv::cuda
