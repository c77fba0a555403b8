// Groups of channels in the tile kernels: the channels, the columns and the output of a block,
// norms of its heads, copied columns and the gates.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/head_columns.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/tile_rows.cuh"
#include "cuda/device/token.cuh"
#include "cuda/group_params.hpp"
#include "op/groups.hpp"

namespace shortconv::cuda {

/// The kGroup channels of a thread, in a block of one group. Threads of unused slots read the last
/// channels of the head before them and write nothing.
template <int kThreads, int kGroup>
struct GroupChannels {
  std::uint32_t block = 0;  // of the blocks of channels
  std::uint32_t group = 0;
  int channel = 0;     // of the convolution
  int column = 0;      // of x
  int out_column = 0;  // of the group's output; -1 in unused slots

  GroupChannels() = default;
  __device__ explicit GroupChannels(std::uint32_t channel_block) : block(channel_block) {}

  __device__ bool is_inside() const { return out_column >= 0; }
  /// As TileChannels::next. enter_group has to follow.
  __device__ bool next(const KernelParams& params, std::uint32_t rounds) {
    ++block;
    return (block & (rounds - 1)) != 0 &&
           block * kThreads * kGroup < static_cast<std::uint32_t>(params.channels);
  }
};

/// Finds the group of the block and the thread's channels.
template <int kGroup, int kThreads>
__device__ inline void enter_group(const GroupTileParams& call,
                                   GroupChannels<kThreads, kGroup>& channels) {
  channels.group = call.group_of_block[channels.block];
  const TileGroup& group = call.groups[channels.group];
  const std::uint32_t slot =
      ((channels.block - group.first_block) * kThreads + threadIdx.x % kThreads) * kGroup;
  const std::uint32_t slot_head = group.head_slots.divide_above_1(slot);
  const auto in_head = static_cast<int>(slot - slot_head * group.head_slots.divisor());
  const bool is_inside = slot_head < group.heads && in_head < group.head_dim;
  const auto head = min(static_cast<int>(slot_head), group.heads - 1);
  const int d = min(in_head, group.head_dim - kGroup);
  channels.channel = group.first_channel + head * group.head_dim + d;
  channels.column = column_of(group.columns, head) + d;
  channels.out_column = is_inside ? head * group.out_head_stride + d : -1;
}

/// Computes the thread's channels again, so that they take no registers during the convolution.
template <int kGroup, int kThreads>
__device__ inline void reenter_group(const GroupTileParams& call,
                                     GroupChannels<kThreads, kGroup>& channels) {
  opaque(channels.block);
  enter_group(call, channels);
}

/// The thread's channels of the output in a row of the tile.
template <typename T, typename Channels>
__device__ inline T* group_out_at(const GroupTileParams& call, const Channels& channels,
                                  const TileRows& tile, int row) {
  const TileGroup& group = call.groups[channels.group];
  T* out = static_cast<T*>(group.out) + channels.out_column;
  if (!call.forward.has_query_start_loc) {
    out += tile.origin.sequence * call.out_sequence_strides[channels.group];
  }
  return rows_after(out, group.out_stride_bytes, row);
}

/// Stores the results of the rows of the mask. opaque makes the compiler add the stride from row to
/// row instead of multiplying it, which takes more instructions.
template <typename T, typename Channels, int kWords, int kRows>
__device__ inline void store_group_rows(const GroupTileParams& call, const Channels& channels,
                                        const TileRows& tile, std::uint32_t mask,
                                        const std::uint32_t (&rows)[kRows][kWords]) {
  const std::int32_t stride_bytes = call.groups[channels.group].out_stride_bytes;
  T* out = group_out_at<T>(call, channels, tile, tile.first);
  if (mask == kAllTileRows) {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t, out = nth_row(out, stride_bytes, 1)) {
      opaque(out);
      store_words(out, rows[t]);
    }
  } else {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t, out = nth_row(out, stride_bytes, 1)) {
      opaque(out);
      if ((mask >> t & 1) != 0) store_words(out, rows[t]);
    }
  }
}

/// As TileStore::fill_padding.
template <typename T, int kGroup, int kThreads>
__device__ inline void fill_group_padding(const GroupTileParams& call, const TileRows& tile,
                                          const GroupChannels<kThreads, kGroup>& channels) {
  const KernelParams& params = call.forward;
  if (params.padded_rows == PaddedRows::kUntouched) return;
  for (std::uint32_t left = tile.padding; left != 0; left &= left - 1) {
    const int row = tile.first + __ffs(left) - 1;
    std::uint32_t words[kWordsOf<T, kGroup>];
    clear_words(words);
    if (params.padded_rows == PaddedRows::kCopy) {
      load_words(x_at<T>(params, tile.origin, row, channels.column), words);
    }
    store_words(group_out_at<T>(call, channels, tile, row), words);
  }
}

/// Lanes of a head that is normalized: at least as many as a tile has rows.
inline constexpr int kMinHeadLanes = 8;
static_assert(kMinHeadLanes == kTileTokens);

/// The row of a tile whose sum lane `lane` has after sum_heads, and the reverse.
__device__ inline int reversed_row(int lane) {
  return (lane & 1) << 2 | (lane & 2) | (lane & 4) >> 2;
}

/// Adds up the values of each row over the lanes of a head, neighbors first. Lane i of 8 returns
/// the sum of row reversed_row(i): with each of the first three steps a lane keeps half of its
/// rows.
__device__ inline float sum_heads(float (&rows)[kTileTokens], int lanes) {
  const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int distance = 1; distance < kMinHeadLanes; distance *= 2) {
    const int kept = kMinHeadLanes / (2 * distance);
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int t = 0; t < kept; ++t) {
      const float sent = upper ? rows[t] : rows[t + kept];
      const float own = upper ? rows[t + kept] : rows[t];
      rows[t] = rounded_sum(own, __shfl_xor_sync(kFullWarp, sent, distance));
    }
  }
  float sum = rows[0];
  for (int distance = kMinHeadLanes; distance < lanes; distance *= 2) {
    sum = rounded_sum(sum, __shfl_xor_sync(kFullWarp, sum, distance));
  }
  return sum;
}

/// Multiplies each row by its factor, which lane i of 8 has for row reversed_row(i).
template <typename T, int kGroup, int kWords, int kRows, typename Multiply>
__device__ inline void scale_rows(float factor, std::uint32_t (&rows)[kRows][kWords],
                                  const Multiply& multiply) {
  const int first_lane = static_cast<int>(threadIdx.x) & ~(kMinHeadLanes - 1);
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    const float own = __shfl_sync(kFullWarp, factor, first_lane | reversed_row(t));
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      const float2 y = unpack_pair<T>(rows[t], pair);
      pack_pair<T>(rows[t], pair, {multiply(y.x, own), multiply(y.y, own)});
    }
  }
}

/// The lane's part of the sum of squares.
template <typename T, int kGroup, int kWords>
__device__ inline float sum_squares(const std::uint32_t (&words)[kWords]) {
  static_assert(kGroup == 4 || kGroup == 2);
  float pairs[kGroup / 2];
#pragma unroll
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    const float2 y = unpack_pair<T>(words, pair);
    pairs[pair] = __fmaf_rn(y.y, y.y, __fmul_rn(y.x, y.x));  // see kMinTileEps
  }
  return kGroup == 4 ? rounded_sum(pairs[0], pairs[kGroup / 2 - 1]) : pairs[0];
}

/// The norm of the heads of a tile's results. All lanes of the warp call it.
template <typename T, int kGroup, int kWords, int kRows>
__device__ inline void normalize_rows(const TileGroup& group, const L2Norm& norm, bool is_inside,
                                      std::uint32_t (&rows)[kRows][kWords]) {
  float sums[kTileTokens];
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) sums[t] = sum_squares<T, kGroup>(rows[t]);
  if (group.head_slots.divisor() != static_cast<std::uint32_t>(group.head_dim)) {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) sums[t] = is_inside ? sums[t] : 0;
  }
  const int lanes = static_cast<int>(group.head_slots.divisor()) / kGroup;
  const float inverse = inverse_norm(sum_heads(sums, lanes), norm.eps);
  if (norm.scale == 1) {
    scale_rows<T, kGroup>(inverse, rows, [](float y, float n) { return rounded_product(y, n); });
  } else {
    const float scale = norm.scale;
    scale_rows<T, kGroup>(inverse, rows, [&](float y, float n) { return normalized(y, n, scale); });
  }
}

/// The norm of the heads of one row.
template <typename T, int kGroup, int kWords>
__device__ inline void normalize_row(const TileGroup& group, const L2Norm& norm, bool is_inside,
                                     std::uint32_t (&words)[kWords]) {
  float sum = is_inside ? sum_squares<T, kGroup>(words) : 0;
  const int lanes = static_cast<int>(group.head_slots.divisor()) / kGroup;
  for (int distance = 1; distance < lanes; distance *= 2) {
    sum = rounded_sum(sum, __shfl_xor_sync(kFullWarp, sum, distance));
  }
  const float inverse = inverse_norm(sum, norm.eps);
#pragma unroll
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    const float2 y = unpack_pair<T>(words, pair);
    pack_pair<T>(words, pair,
                 {normalized(y.x, inverse, norm.scale), normalized(y.y, inverse, norm.scale)});
  }
}

/// The gates of kGateBlockHeads heads, from number part * kGateBlockHeads on, in the rows of a
/// tile, or zeros for padding. All lanes of the warp call it; `computed` has the rows that are not
/// padding.
template <typename T>
__device__ inline void store_tile_gates(const GroupTileParams& call, const TileRows& tile,
                                        std::uint32_t computed, std::uint32_t part) {
  constexpr int kLanes = 32, kRounds = kTileTokens * kGateBlockHeads / kLanes;
  constexpr int kRoundRows = kLanes / kGateBlockHeads;
  const TileGateParams& gates = call.gates;
  const auto head = static_cast<int>(part * kGateBlockHeads + threadIdx.x % kGateBlockHeads);
  if (head >= gates.heads) return;
  const int first = static_cast<int>(threadIdx.x) / kGateBlockHeads;  // of the tile's rows
  const auto element = [&](const GateRows& rows, int row, std::int64_t in_row) {
    return tile.origin.sequence * rows.sequence_stride +
           min(tile.first + row, call.forward.tokens - 1) * rows.token_stride + in_row;
  };
  const std::int64_t a_column = column_of(gates.a_columns, head);
  const std::int64_t b_column = column_of(gates.b_columns, head);
  T a[kRounds], b[kRounds];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int row = first + i * kRoundRows;
    a[i] = static_cast<const T*>(gates.a.data)[element(gates.a, row, a_column)];
    b[i] = static_cast<const T*>(gates.b.data)[element(gates.b, row, b_column)];
  }
  const float a_log = static_cast<const float*>(gates.a_log)[head * gates.a_log_stride];
  const float dt_bias = load_f32(gates.dt_bias_dtype, gates.dt_bias, head * gates.dt_bias_stride);
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int row = first + i * kRoundRows;
    if (tile.first + row >= call.forward.tokens) return;
    float decay = 0, beta = 0;
    if ((computed >> row & 1) != 0) {
      decay = decay_gate(gates.decay, to_f32(a[i]), a_log, dt_bias);
      beta = sigmoid(to_f32(b[i]));
      if (gates.round_beta) beta = to_f32(from_f32<T>(beta));
      beta = rounded_product(beta, gates.beta_factor);
    } else if (call.forward.padded_rows == PaddedRows::kUntouched) {
      continue;
    }
    static_cast<float*>(gates.g.data)[element(gates.g, row, head * gates.g_head_stride)] = decay;
    static_cast<float*>(gates.beta.data)[element(gates.beta, row, head * gates.beta_head_stride)] =
        beta;
  }
}

}  // namespace shortconv::cuda
