// Schedule flat on channel-major rows: tokens are adjacent in memory.
//
// Who owns what: a thread owns 16 bytes of tokens (8 or 4), a warp so many adjacent ones, and takes
// 8 channels in turn, so that what it found out about its sequence is good for all. A thread has
// the history of its tokens from its neighbours' vectors, or, where a sequence begins with its
// first token, from the state, of which it then has the final one as well. Threads with other
// beginnings and ends take token by token, by the rules of tile.cuh.
//
// How: 4 channels are loaded, then convolved; a lane has one of their taps. The first loads go out
// before the sequence is known.
//
// Bytes moved: x once, out once, states once each way. The ceiling is a copy of these bytes where
// rows are aligned to 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/element.cuh"
#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
#include "cuda/search.cuh"
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

/// The words before them.
template <typename T, int kCount>
__device__ inline void load_tokens_before(const T* from, std::uint32_t (&words)[kCount]) {
  constexpr int kWordTokens = 4 / static_cast<int>(sizeof(T));
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int i = 0; i < kCount * kWordTokens; ++i) elements[i] = from[i - kCount * kWordTokens];
}

/// A history of the state, its newest input at the end of the words.
template <typename T, int kHistory, int kCount>
__device__ inline void load_state(const Problem& p, const Addresses& at, const Sequence& s,
                                  std::int64_t channel, std::uint32_t (&words)[kCount]) {
  constexpr int kFirst = kCount * 4 / static_cast<int>(sizeof(T)) - kHistory;
  clear_words(words);
  if (s.read_slot < 0) return;
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {
    elements[kFirst + k] = static_cast<const T*>(
        at.state)[state_index(p, s.read_slot, history_column(p, s, k - kHistory), channel)];
  }
}

template <typename T>
__device__ inline void unpack_word(std::uint32_t word, float* values) {
  if constexpr (sizeof(T) == 4) {
    values[0] = __uint_as_float(word);
  } else {
    const std::uint32_t words[1] = {word};
    const float2 pair = unpack_pair<T>(words, 0);
    values[0] = pair.x;
    values[1] = pair.y;
  }
}

template <typename T, int kWidth, KnownActivation kActivation>
__global__ void __launch_bounds__(32 * kColumnWarps, column_blocks(sizeof(T)))
    convolve_columns(const __grid_constant__ Problem p, const __grid_constant__ Addresses at,
                     const __grid_constant__ Grid grid) {
  constexpr int kHistory = kWidth - 1;
  constexpr int kTokens = kColumnTokens<T>;
  constexpr int kWords = 4, kWordTokens = kTokens / kWords;            // of a thread, of a word
  constexpr int kBefore = (kHistory + kWordTokens - 1) / kWordTokens;  // words of history
  constexpr int kLanes = (kBefore - 1) / kWords + 1;                   // that hold them
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
  const bool inside = first + kTokens <= stream_end;
  // Who has no neighbours for it takes its history from memory.
  const bool at_edge = inside && lane < kLanes && first - kBefore * kWordTokens >= stream_begin;

  const std::int64_t first_channel = (std::int64_t{block} * kColumnWarps + warp) * kColumnChannels;
  const std::int64_t last_channel = min(first_channel + kColumnChannels, p.channels);
  const std::int64_t row = min(first, stream_end - 1);
  bool whole = false;   // all tokens are of one sequence, their history in x
  bool begins = false;  // or in the state, the first token being the sequence's
  std::int64_t sequence = -1;
  for (std::int64_t channel = first_channel; channel < last_channel; channel += kColumnBatch) {
    const T* x = static_cast<const T*>(at.x) + x_row(p, row) + channel * p.x_channel;
    T* out = static_cast<T*>(at.out) + out_row(p, row) + channel * p.out_channel;
    const int channels = static_cast<int>(min(last_channel - channel, std::int64_t{kColumnBatch}));
    std::uint32_t own[kColumnBatch][kWords] = {}, edge[kColumnBatch][kBefore] = {};
#pragma unroll
    for (int c = 0; c < kColumnBatch; ++c) {
      if (inside && c < channels) load_tokens(x + c * p.x_channel, own[c]);
      if (at_edge && c < channels) load_tokens_before(x + c * p.x_channel, edge[c]);
    }
    // A lane has a tap of one of the channels: 4 channels have 32 at most.
    float taps = 0.0f, biases = 0.0f;
    if (lane < channels * kWidth) taps = weight_at(p, at, channel + lane / kWidth, lane % kWidth);
    if (lane < channels) biases = bias_at(p, at, channel + lane);
    if (channel == first_channel && inside) {
      sequence = find_sequence(p, at, first);
      if (sequence >= 0) {
        const Sequence s = sequence_at(p, at, sequence);
        // Whoever begins a sequence has all tokens that reach into its history.
        const bool at_first = s.begin == first && kHistory <= kTokens;
        whole = !s.skipped && first + kTokens <= s.end && (at_first || s.begin + kHistory <= first);
        begins = whole && at_first;
      }
    }
    if (begins) {
      const Sequence s = sequence_at(p, at, sequence);
#pragma unroll
      for (int c = 0; c < kColumnBatch; ++c) {
        if (c < channels) load_state<T, kHistory>(p, at, s, channel + c, edge[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kColumnBatch; ++c) {
      if (c >= channels) break;
      float tap[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) tap[k] = __shfl_sync(kFullWarp, taps, c * kWidth + k);
      const float bias = __shfl_sync(kFullWarp, biases, c);
      float inputs[(kBefore + kWords) * kWordTokens];
#pragma unroll
      for (int w = 0; w < kBefore; ++w) {
        const int distance = kBefore - 1 - w;  // from the newest
        const int from = lane - distance / kWords - 1;
        const std::uint32_t word =
            __shfl_sync(kFullWarp, own[c][kWords - 1 - distance % kWords], from & 31);
        unpack_word<T>(lane < kLanes || begins ? edge[c][w] : word, inputs + w * kWordTokens);
      }
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        unpack_word<T>(own[c][w], inputs + (kBefore + w) * kWordTokens);
      }
      std::uint32_t words[kWords];
#pragma unroll
      for (int pair = 0; pair < kTokens / 2; ++pair) {
        float2 sum{bias, bias};
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          constexpr int kFirst = kBefore * kWordTokens - kHistory;
          sum.x = __fmaf_rn(tap[k], inputs[kFirst + 2 * pair + k], sum.x);
          sum.y = __fmaf_rn(tap[k], inputs[kFirst + 2 * pair + 1 + k], sum.y);
        }
        pack_pair<T>(words, pair,
                     {activate<kActivation>(p.activation, sum.x),
                      activate<kActivation>(p.activation, sum.y)});
      }
      if (whole) store_tokens(out + c * p.out_channel, words);
    }
    if (begins) {
      const Sequence s = sequence_at(p, at, sequence);
      for (int c = 0; c < channels; ++c) write_state_of_channel<Types>(p, at, s, channel + c);
    }
  }
  if (whole || first >= stream_end) return;
  const std::int64_t end = min(first + kTokens, stream_end);
  for (std::int64_t channel = first_channel; channel < last_channel; ++channel) {
    convolve_rows<Types>(p, at, first, end, channel);
  }
}

}  // namespace shortconv::cuda
