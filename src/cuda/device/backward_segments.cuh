// Where the sequences of a strip of rows begin and end, for the backward kernels.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"

namespace shortconv::cuda {

/// One bit for each row from `base` on; lane i has the bits of rows [32 * i, 32 * i + 32).
class RowMask {
 public:
  __device__ void set_word(int word, std::uint32_t bits) {
    if (static_cast<int>(threadIdx.x % 32) == word) bits_ |= bits;
  }
  __device__ std::uint32_t& own_word() { return bits_; }
  /// The bits of 32 positions from `position` on, which lie in the first 31 words.
  __device__ std::uint32_t from(int position) const {
    const int word = position >> 5;
    const std::uint64_t high = __shfl_sync(kFullWarp, bits_, word + 1);
    const std::uint32_t low = __shfl_sync(kFullWarp, bits_, word);
    return static_cast<std::uint32_t>((high << 32 | low) >> (position & 31));
  }
  /// Positions before the first row or after the last one are left out.
  __device__ void set(int position) { set_word(position >> 5, 1u << (position & 31)); }

  /// Equal `position` in all lanes.
  __device__ bool test(int position) const {
    return (__shfl_sync(kFullWarp, bits_, position >> 5) >> (position & 31) & 1u) != 0;
  }
  /// The first set bit at or after `position`; kNone without one.
  static constexpr int kNone = 0x3fffffff;
  __device__ int next(int position) const {
    const int lane = static_cast<int>(threadIdx.x % 32), word = position >> 5;
    std::uint32_t left = lane < word ? 0u : bits_;
    if (lane == word) left &= ~0u << (position & 31);
    const std::uint32_t lanes = __ballot_sync(kFullWarp, left != 0);
    if (lanes == 0) return kNone;
    const int from = __ffs(static_cast<int>(lanes)) - 1;
    return from * 32 + __ffs(static_cast<int>(__shfl_sync(kFullWarp, left, from))) - 1;
  }

 private:
  std::uint32_t bits_ = 0;
};

/// Rows [base, base + rows) of at most 1024: which of them are the first of a sequence, of a part
/// with one seq_idx or of padding, and which are padding. What follows the last row counts as
/// another sequence.
class Segments {
 public:
  __device__ Segments(const BackwardKernelParams& params, int base, int rows)
      : params_(params), base_(base) {
    const int words = (rows + 31) / 32;
    if (params.is_dense) add_dense(words);
    if (params.query_start_loc != nullptr) add_packed(words);
    if (params.seq_idx != nullptr) add_seq_idx(words);
    begins_.set(params.tokens - base);
  }

  __device__ bool begins(int row) const { return begins_.test(row - base_); }
  /// One bit for each of 32 rows from `row` on.
  __device__ std::uint32_t begins_from(int row) const { return begins_.from(row - base_); }
  __device__ bool is_padding(int row) const { return padding_.test(row - base_); }
  __device__ std::uint32_t padding_from(int row) const { return padding_.from(row - base_); }
  /// The first row from `row` on with begins(row), or a number above all rows.
  __device__ int next_begin(int row) const { return base_ + begins_.next(row - base_); }

  /// The sequence that has `row`; -1: none begins at or before it.
  __device__ int sequence_of(int row) const {
    if (params_.is_dense) {
      return static_cast<int>(
          params_.sequence_tokens.divide(static_cast<std::uint32_t>(max(row, 0))));
    }
    if (params_.query_start_loc == nullptr) return 0;
    return find_last_begin(row);
  }

 private:
  __device__ int begin_of(int sequence) const {
    const int begin =
        load_int_evict_last(rows_after(static_cast<const char*>(params_.query_start_loc),
                                       params_.query_start_loc_stride_bytes, sequence));
    return min(max(begin, 0), params_.tokens);
  }

  /// The last sequence that begins at or before the row, or -1. The warp compares 32 bounds at a
  /// time.
  __device__ int find_last_begin(int row) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int low = 0, high = params_.sequences;  // sequences before low begin at or before the row
    while (high > low) {
      const int stride = (high - low + 31) / 32;
      const int probe = low + (lane + 1) * stride - 1;
      const bool begun = probe < high && begin_of(min(probe, high - 1)) <= row;
      const int groups = __popc(__ballot_sync(kFullWarp, begun));
      low += groups * stride;
      high = min(high, low + stride - 1);
    }
    return low - 1;
  }

  /// Marks the row of each lane.
  __device__ void add_begins(int words, bool wanted, int row) {
    const int position = row - base_;
    for (int word = 0; word < words; ++word) {
      const bool here = wanted && position >> 5 == word && position >= 0;
      const std::uint32_t bits = __reduce_or_sync(kFullWarp, here ? 1u << (position & 31) : 0u);
      begins_.set_word(word, bits);
    }
  }

  /// Marks rows [begin, end) as padding.
  __device__ void add_padding(int begin, int end) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int low = max(begin - base_ - 32 * lane, 0), high = min(end - base_ - 32 * lane, 32);
    if (low >= high) return;
    const std::uint32_t below_high = high == 32 ? ~0u : (1u << high) - 1;
    padding_.own_word() |= below_high & (~0u << low);
  }

  __device__ void add_dense(int words) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int tokens = static_cast<int>(params_.sequence_tokens.divisor());
    const int first = max(base_ + 32 * lane, 0), last = min(base_ + 32 * lane + 32, params_.tokens);
    if (lane >= words || first >= last) return;
    const int before = static_cast<int>(
        params_.sequence_tokens.divide(static_cast<std::uint32_t>(first + tokens - 1)));
    for (int row = before * tokens; row < last; row += tokens) {
      begins_.own_word() |= 1u << ((row - base_) & 31);
    }
  }

  /// A small batch takes one load, without a search.
  __device__ void add_packed(int words) {
    const int lane = static_cast<int>(threadIdx.x % 32), sequences = params_.sequences;
    const int last = base_ + 32 * words;
    int begin = 0, end = 0;
    if (sequences < 32) {
      const int row = begin_of(min(lane, sequences));
      begin = __shfl_sync(kFullWarp, row, 0);
      end = __shfl_sync(kFullWarp, row, sequences);
      add_begins(words, lane <= sequences && row < last, row);
    } else {
      begin = begin_of(0), end = begin_of(sequences);
      for (int sequence = max(find_last_begin(base_), 0); sequence <= sequences; sequence += 32) {
        const int number = sequence + lane;
        const int row = begin_of(min(number, sequences));
        add_begins(words, number <= sequences && row < last, row);
        if (__shfl_sync(kFullWarp, row, 31) >= last) break;
      }
    }
    begins_.set(-base_);
    add_padding(base_, begin);
    add_padding(max(end, begin), params_.tokens);
  }

  __device__ std::int64_t seq_idx_of(int row) const {
    std::int64_t index = row * params_.seq_idx_token_stride;
    if (params_.is_dense) {
      const std::uint32_t sequence =
          params_.sequence_tokens.divide(static_cast<std::uint32_t>(row));
      const int token = row - static_cast<int>(sequence * params_.sequence_tokens.divisor());
      index = sequence * params_.seq_idx_sequence_stride + token * params_.seq_idx_token_stride;
    }
    return load_index(params_.seq_idx_dtype, params_.seq_idx, index);
  }

  __device__ void add_seq_idx(int words) {
    constexpr int kInFlight = 4;  // words
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int first = 0; first < words; first += kInFlight) {
      std::int64_t numbers[kInFlight], before[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int row = min(max(base_ + 32 * (first + i) + lane, 0), params_.tokens - 1);
        numbers[i] = seq_idx_of(row);
        before[i] = seq_idx_of(max(row - 1, 0));
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int row = base_ + 32 * (first + i) + lane;
        const bool inside = row >= 0 && row < params_.tokens;
        const bool begins = inside && numbers[i] != before[i];
        begins_.set_word(first + i, __ballot_sync(kFullWarp, begins));
        padding_.set_word(first + i, __ballot_sync(kFullWarp, inside && numbers[i] < 0));
      }
    }
  }

  const BackwardKernelParams& params_;
  int base_;
  RowMask begins_, padding_;
};

}  // namespace shortconv::cuda
