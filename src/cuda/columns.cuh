// Schedule flat on channel-major rows: tokens are adjacent in memory.
//
// Who owns what: a thread owns 16 bytes of tokens (8 or 4), a warp so many adjacent ones, and takes
// 8 channels in turn, so that the search for its sequence is paid once. A thread whose tokens have
// their whole history in x reads it as the vectors before its own; the others, at the beginnings of
// sequences, take token by token. The thread with a sequence's first token does its first width-1
// tokens and its state, as in tile.cuh.
//
// Bytes moved: x once (its neighbours' vectors from the L1 cache), out once, states once each way.
// The ceiling is a copy of these bytes where rows are aligned to 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/element.cuh"
#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
#include "cuda/token.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename T>
inline constexpr int kColumnTokens = 16 / static_cast<int>(sizeof(T));  // a thread

/// A vector of tokens, whole where it is aligned.
template <typename T>
__device__ inline void load_tokens(const T* from, std::uint32_t (&words)[4]) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    load_words(from, words);
    return;
  }
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int i = 0; i < kColumnTokens<T>; ++i) elements[i] = from[i];
}

template <typename T>
__device__ inline void store_tokens(T* to, const std::uint32_t (&words)[4]) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
    store_words(to, words);
    return;
  }
  const T* elements = reinterpret_cast<const T*>(words);
#pragma unroll
  for (int i = 0; i < kColumnTokens<T>; ++i) to[i] = elements[i];
}

template <typename T, int kWidth, Activation kActivation>
__global__ void __launch_bounds__(32 * kColumnWarps)
    convolve_columns(const __grid_constant__ Problem p, const __grid_constant__ Addresses at,
                     const __grid_constant__ Grid grid) {
  constexpr int kHistory = kWidth - 1;
  constexpr int kTokens = kColumnTokens<T>;
  constexpr int kVectors = (kHistory + kTokens - 1) / kTokens + 1;  // the last one is the own
  using Types = Typed<T>;
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  std::uint32_t stream = 0, tile = unit;
  if (!p.has_query_start_loc) {
    stream = grid.sequence_tiles.divide(unit);
    tile = unit - stream * grid.sequence_tiles.divisor();
  }
  const std::int64_t stream_begin = p.has_query_start_loc ? 0 : stream * p.sequence_tokens;
  const std::int64_t stream_end =
      p.has_query_start_loc ? p.tokens : stream_begin + p.sequence_tokens;
  const std::int64_t first = stream_begin + (std::int64_t{tile} * 32 + lane) * kTokens;
  if (first >= stream_end) return;
  const std::int64_t end = min(first + kTokens, stream_end);

  bool whole = false;  // all tokens live, their history in x
  const std::int64_t sequence = find_sequence(p, at, first);
  if (sequence >= 0 && end - first == kTokens) {
    const Sequence s = sequence_at(p, at, sequence);
    // A vector before the own one may begin before the stream does.
    whole = !s.skipped && s.begin + kHistory <= first && end <= s.end &&
            first - (kVectors - 1) * kTokens >= stream_begin;
  }
  std::int64_t channel = (std::int64_t{block} * kColumnWarps + warp) * kColumnChannels;
  const std::int64_t last_channel = min(channel + kColumnChannels, p.channels);
  for (; channel < last_channel; ++channel) {
    if (!whole) {
      convolve_rows<Types>(p, at, first, end, channel);
      continue;
    }
    const T* x = static_cast<const T*>(at.x) + x_row(p, first) + channel * p.x_channel;
    T* out = static_cast<T*>(at.out) + out_row(p, first) + channel * p.out_channel;
    float inputs[kVectors * kTokens];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      std::uint32_t words[4];
      load_tokens(x + (v + 1 - kVectors) * kTokens, words);
#pragma unroll
      for (int pair = 0; pair < kTokens / 2; ++pair) {
        const float2 values = unpack_pair<T>(words, pair);
        inputs[v * kTokens + 2 * pair] = values.x;
        inputs[v * kTokens + 2 * pair + 1] = values.y;
      }
    }
    float tap[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) tap[k] = weight_at(p, at, channel, k);
    const float bias = bias_at(p, at, channel);
    std::uint32_t words[4];
#pragma unroll
    for (int pair = 0; pair < kTokens / 2; ++pair) {
      float2 sum{bias, bias};
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        constexpr int kFirst = (kVectors - 1) * kTokens - kHistory;
        sum.x = __fmaf_rn(tap[k], inputs[kFirst + 2 * pair + k], sum.x);
        sum.y = __fmaf_rn(tap[k], inputs[kFirst + 2 * pair + 1 + k], sum.y);
      }
      pack_pair<T>(words, pair, {activate<kActivation>(sum.x), activate<kActivation>(sum.y)});
    }
    store_tokens(out, words);
  }
}

}  // namespace shortconv::cuda
