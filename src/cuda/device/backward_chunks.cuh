// Rows of the backward kernel for channels-first tensors, whose tokens are adjacent.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/backward_segments.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"

namespace shortconv::cuda {

/// Address of a row in the first channel.
template <typename T>
__device__ inline char* column_at(const BackwardKernelParams& params, const BackwardRows& rows,
                                  int row) {
  char* from = static_cast<char*>(rows.data);
  if (!params.is_packed) {
    const std::uint32_t sequence = params.sequence_tokens.divide(static_cast<std::uint32_t>(row));
    row -= static_cast<int>(sequence * params.sequence_tokens.divisor());
    from += sequence * rows.sequence_stride_bytes;
  }
  return from + std::int64_t{row} * static_cast<int>(sizeof(T));
}

template <typename T>
__device__ inline float load_shared_element(SharedAddress from) {
  if constexpr (sizeof(T) == 4) {
    std::uint32_t word[1];
    load_shared_words(from, word);
    return __uint_as_float(word[0]);
  } else {
    const std::uint16_t half = load_shared_half(from);
    return to_f32(*reinterpret_cast<const T*>(&half));
  }
}
template <typename T>
__device__ inline void store_shared_element(SharedAddress to, float value) {
  if constexpr (sizeof(T) == 4) {
    const std::uint32_t word[1] = {__float_as_uint(value)};
    store_shared_words(to, word);
  } else {
    const T element = from_f32<T>(value);
    store_shared_half(to, *reinterpret_cast<const std::uint16_t*>(&element));
  }
}

/// The rows of a strip, in chunks of kBatch aligned rows, on their way through a ring of kStages
/// chunks in shared memory. A lane copies and reads its own channels only: 16 bytes or more of each
/// at a time. The gradients of x replace x in the ring, and leave it as whole chunks.
template <typename Shape>
class ChunkRing {
 public:
  using T = typename Shape::T;
  using Words = typename Shape::Words;
  static constexpr int kBatch = Shape::kBatch, kStages = Shape::kStages, kGroup = Shape::kGroup;
  static constexpr int kChunkBytes = kBatch * static_cast<int>(sizeof(T));  // of a channel
  static constexpr int kVectors = kChunkBytes / 16, kChunkWords = kChunkBytes / 4;
  static constexpr int kChannelBytes = 32 * kChunkBytes;  // of one channel of each lane
  static constexpr int kTensorBytes = kGroup * kChannelBytes;
  static constexpr int kStageBytes = 2 * kTensorBytes;
  static constexpr int kBytes = kStages * kStageBytes;
  static_assert(kChunkBytes % 16 == 0);
  using Chunks = std::uint32_t[kGroup][kChunkWords];

  /// Rows [first, limit) of the channels from `channel` on; first is a multiple of kBatch.
  __device__ ChunkRing(const BackwardKernelParams& params, char* memory, int first, int limit,
                       int channel)
      : params_(params), next_(first), limit_(limit) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    channel_ = channel + lane * kGroup;
    begin_ = shared_address(memory) + lane * kChunkBytes;
    from_ = to_ = begin_;
  }

  /// Issues the copies of the next chunk, if it has rows, and ends their group.
  __device__ void issue(const Segments&) {
    if (next_ < limit_) {
      issue_tensor(params_.x, 0);
      issue_tensor(params_.grad_out, kTensorBytes);
    }
    commit_copies();
    next_ += kBatch;
    to_ = following(to_);
  }

  /// Goes on to the next chunk.
  __device__ void advance() { from_ = following(from_); }

  /// The lane's channels of row `row` of the current chunk.
  __device__ void load(int tensor, int row, Words& words) const {
    const SharedAddress from = from_ + (tensor * kTensorBytes + row * static_cast<int>(sizeof(T)));
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      pack_pair<T>(words, pair,
                   {load_shared_element<T>(from + 2 * pair * kChannelBytes),
                    load_shared_element<T>(from + (2 * pair + 1) * kChannelBytes)});
    }
  }

  /// The current chunk of each of the lane's channels.
  __device__ void load_chunks(int tensor, Chunks& chunks) const {
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
      load_chunk(from_ + (tensor * kTensorBytes + c * kChannelBytes), chunks[c]);
  }

  /// Replaces x of row `row`, and of the next one with store_pair; negative rows are in the chunk
  /// before the current one.
  __device__ void store(int row, int c, float gradient) const {
    store_shared_element<T>(place(row, c), gradient);
  }
  __device__ void store_pair(int row, int c, float gradient, float next) const {
    std::uint32_t words[kWordsOf<T, 2>];
    pack_pair<T>(words, 0, {gradient, next});
    store_shared_words(place(row, c), words);
  }

  /// Stores the gradients of rows [row, row + rows), which are the current chunk or the one before.
  __device__ void store_chunk(int row, int rows, bool is_previous) const {
    if (params_.grad_x.data == nullptr || channel_ >= params_.channels) return;
    const SharedAddress from = is_previous ? previous() : from_;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      char* to = rows_after(column_at<T>(params_, params_.grad_x, row), params_.grad_x.stride_bytes,
                            channel_ + c);
      if (rows < kBatch) {
        for (int i = 0; i < rows; ++i) {
          reinterpret_cast<T*>(to)[i] = from_f32<T>(
              load_shared_element<T>(from + (c * kChannelBytes + i * static_cast<int>(sizeof(T)))));
        }
        continue;
      }
      std::uint32_t chunk[kChunkWords];
      load_chunk(from + c * kChannelBytes, chunk);
      store_words(to, chunk);
    }
  }

 private:
  __device__ SharedAddress following(SharedAddress stage) const {
    return stage == begin_ + (kBytes - kStageBytes) ? begin_ : stage + kStageBytes;
  }
  __device__ SharedAddress previous() const {
    return from_ == begin_ ? begin_ + (kBytes - kStageBytes) : from_ - kStageBytes;
  }
  __device__ SharedAddress place(int row, int c) const {
    const SharedAddress chunk = row < 0 ? previous() + kChunkBytes : from_;
    return chunk + (c * kChannelBytes + row * static_cast<int>(sizeof(T)));
  }

  __device__ static void load_chunk(SharedAddress from, std::uint32_t (&chunk)[kChunkWords]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      load_shared_words(from + 16 * i, reinterpret_cast<std::uint32_t(&)[4]>(chunk[4 * i]));
    }
  }

  /// Lanes beyond the last channels copy the last ones. What is after the last token becomes 0.
  __device__ void issue_tensor(const BackwardRows& rows, int offset) const {
    const char* row = column_at<T>(params_, rows, next_);
    const int bytes = (params_.tokens - next_) * static_cast<int>(sizeof(T));
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      const char* from =
          rows_after(row, rows.stride_bytes, min(channel_ + c, params_.channels - 1));
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        copy_async_first(to_ + (offset + c * kChannelBytes + 16 * i), from + 16 * i,
                         min(max(bytes - 16 * i, 0), 16));
      }
    }
  }

  const BackwardKernelParams& params_;
  SharedAddress begin_, from_, to_;  // the lane's part of the first, current and next chunk
  int next_, limit_, channel_;
};

}  // namespace shortconv::cuda
