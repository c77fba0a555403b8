// Rows of the backward kernels: addresses, and copies through shared memory.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/element.cuh"
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

/// The rows of a strip, in batches, on their way from global memory through a ring of kStages
/// batches in shared memory. A warp has a ring; only its own lanes read it. Lanes beyond the last
/// channels copy the last ones.
template <typename Shape>
class RowRing {
 public:
  using T = typename Shape::T;
  using Words = typename Shape::Words;
  static constexpr int kBatch = Shape::kBatch, kStages = Shape::kStages;
  static constexpr int kRowBytes = 32 * Shape::kGroup * static_cast<int>(sizeof(T));
  static constexpr int kTensorBytes = kBatch * kRowBytes;
  static constexpr int kStageBytes = Shape::kTensors * kTensorBytes;
  static constexpr int kBytes = kStages * kStageBytes;

  /// Rows [first, limit) of the channels from `channel` on.
  __device__ RowRing(const BackwardKernelParams& params, char* memory, int first, int limit,
                     int channel)
      : params_(params), memory_(memory), next_(first), limit_(limit) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int chunk = params.copies_16_bytes ? 16 : 8;
    const int lanes = kRowBytes / chunk;  // of a row
    const int offset = lane % lanes * chunk;
    lane_row_ = lane / lanes;
    lane_offset_ = lane_row_ * kRowBytes + offset;
    channel_bytes_ = min(channel * static_cast<int>(sizeof(T)) + offset,
                         params.channels * static_cast<int>(sizeof(T)) - chunk);
    lane_x_ = lane_source(params.x);
    lane_grad_out_ = lane_source(params.grad_out);
  }

  /// Issues the copies of the next batch, if it has rows, and ends their group.
  __device__ void issue() {
    if (params_.is_packed && next_ + kBatch <= limit_) {
      if (params_.copies_16_bytes) {
        issue_packed<16>();
      } else {
        issue_packed<8>();
      }
    } else if (next_ < limit_) {
      if (params_.copies_16_bytes) {
        issue_any<16>();
      } else {
        issue_any<8>();
      }
    }
    commit_copies();
    next_ += kBatch;
    lane_x_ = nth_row(lane_x_, params_.x.stride_bytes, kBatch);
    lane_grad_out_ = nth_row(lane_grad_out_, params_.grad_out.stride_bytes, kBatch);
    to_ = following(to_);
  }

  /// Goes on to the next batch for load.
  __device__ void advance() { from_ = following(from_); }

  /// The thread's channels of row `row` of the current batch; negative rows are in the one before
  /// it.
  __device__ void load(int tensor, int row, Words& words) const {
    int stage = from_;
    if (row < 0) {
      stage = stage == 0 ? kBytes - kStageBytes : stage - kStageBytes;
      row += kBatch;
    }
    load_shared_words(memory_ + stage + tensor * kTensorBytes + row * kRowBytes +
                          (threadIdx.x % 32) * sizeof(Words),
                      words);
  }

 private:
  __device__ static int following(int stage) {
    return stage == kBytes - kStageBytes ? 0 : stage + kStageBytes;
  }

  __device__ const char* lane_source(const BackwardRows& rows) const {
    return rows_after(static_cast<const char*>(rows.data), rows.stride_bytes, next_ + lane_row_) +
           channel_bytes_;
  }

  template <int kChunk>
  __device__ void issue_packed() {
    issue_tensor<kChunk>(0, [&](int r) { return nth_row(lane_x_, params_.x.stride_bytes, r); });
    issue_tensor<kChunk>(
        1, [&](int r) { return nth_row(lane_grad_out_, params_.grad_out.stride_bytes, r); });
    if constexpr (Shape::kHasEpilogue) {
      const auto issue_gate = [&](const BackwardRows& rows, int tensor) {
        if (rows.data == nullptr) return;
        const char* source = lane_source(rows);
        issue_tensor<kChunk>(tensor, [&](int r) { return nth_row(source, rows.stride_bytes, r); });
      };
      issue_gate(params_.input_gate, 2);
      issue_gate(params_.output_gate, 3);
    }
  }

  /// The last existing row replaces those beyond it.
  template <int kChunk>
  __device__ void issue_any() {
    const auto issue_rows = [&](const BackwardRows& rows, int tensor) {
      if (rows.data == nullptr) return;
      issue_tensor<kChunk>(tensor, [&](int r) {
        return row_at(params_, rows, min(next_ + r + lane_row_, limit_ - 1)) + channel_bytes_;
      });
    };
    issue_rows(params_.x, 0);
    issue_rows(params_.grad_out, 1);
    if constexpr (Shape::kHasEpilogue) {
      issue_rows(params_.input_gate, 2);
      issue_rows(params_.output_gate, 3);
    }
  }

  /// The lane copies source_of(r) to row r + lane_row_ of the batch.
  template <int kChunk, typename SourceOf>
  __device__ void issue_tensor(int tensor, const SourceOf& source_of) {
    constexpr int kRows = 32 * kChunk / kRowBytes;  // of one instruction
#pragma unroll
    for (int r = 0; r < kBatch; r += kRows) {
      if (kBatch % kRows != 0 && r + lane_row_ >= kBatch) continue;
      copy_async<kChunk>(memory_ + to_ + tensor * kTensorBytes + r * kRowBytes + lane_offset_,
                         source_of(r));
    }
  }

  const BackwardKernelParams& params_;
  char* memory_;
  int from_ = 0, to_ = 0;                // stages of the current and of the next batch, in bytes
  const char *lane_x_, *lane_grad_out_;  // of the next batch, if rows are packed
  int next_, limit_;
  int lane_row_, lane_offset_, channel_bytes_;
};

}  // namespace shortconv::cuda
