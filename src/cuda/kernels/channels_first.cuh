// Schedule flat on channels-first rows, in which the tokens of a channel are adjacent in memory.
//
// Threads: a thread processes 16 bytes of tokens (8 or 4) of 8 channels, 4 at a time; the lanes of
// a warp have adjacent tokens. One lookup of its sequence serves all channels. The
// history of its tokens comes from the vectors of the lanes before it or, if a sequence begins at
// its first token, from the state, and the thread then writes the final state too. Threads with
// other starts and ends process token by token, by the rules of tile.cuh.
//
// 4 channels are loaded, then convolved; each lane loads one of their taps. The first loads are
// issued before the sequence is known.
//
// Bytes moved: x once, out once, states once in each direction. Ceiling: a copy of these bytes if
// rows are aligned to 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/device/activation.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename T>
inline constexpr int kThreadTokens = 16 / static_cast<int>(sizeof(T));

/// Loads the tokens of a thread, as one vector if they are aligned.
template <typename T>
__device__ inline void load_tokens(const T* from, std::uint32_t (&words)[4]) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    load_words(from, words);
    return;
  }
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int i = 0; i < kThreadTokens<T>; ++i) elements[i] = from[i];
}

template <typename T>
__device__ inline void store_tokens(T* to, const std::uint32_t (&words)[4]) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
    store_words(to, words);
    return;
  }
  const T* elements = reinterpret_cast<const T*>(words);
#pragma unroll
  for (int i = 0; i < kThreadTokens<T>; ++i) to[i] = elements[i];
}

/// Loads the words before `from`.
template <typename T, int kCount>
__device__ inline void load_tokens_before(const T* from, std::uint32_t (&words)[kCount]) {
  constexpr int kWordTokens = 4 / static_cast<int>(sizeof(T));
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int i = 0; i < kCount * kWordTokens; ++i) elements[i] = from[i - kCount * kWordTokens];
}

/// Loads the history of a sequence, newest input last. Words before it are 0.
template <typename T, int kHistory, int kCount>
__device__ inline void load_state(const Problem& p, const TensorPointers& at, const Sequence& s,
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

template <typename T, int kWidth, CompiledActivation kActivation>
struct ChannelsFirstKernel {
  static constexpr int kHistory = kWidth - 1;
  static constexpr int kTokens = kThreadTokens<T>;
  static constexpr int kWords = 4;                                            // of a thread
  static constexpr int kWordTokens = kTokens / kWords;                        // of a word
  static constexpr int kBefore = (kHistory + kWordTokens - 1) / kWordTokens;  // words of history
  static constexpr int kEdgeLanes = (kBefore - 1) / kWords + 1;  // lanes that hold them

  /// Loads the tokens of a batch of channels and, in the first lanes, the history before them.
  __device__ static void load(const T* x, std::int64_t channel_stride, int channels, bool inside,
                              bool at_edge, std::uint32_t (&own)[kChannelBatch][kWords],
                              std::uint32_t (&edge)[kChannelBatch][kBefore]) {
#pragma unroll
    for (int c = 0; c < kChannelBatch; ++c) {
      if (inside && c < channels) load_tokens(x + c * channel_stride, own[c]);
      if (at_edge && c < channels) load_tokens_before(x + c * channel_stride, edge[c]);
    }
  }

  /// Convolves channel `c` of a batch. `taps` and `biases` are those that the lane has loaded.
  __device__ static void convolve(const Problem& p, float taps, float biases, int c, int lane,
                                  bool begins, const std::uint32_t (&own)[kWords],
                                  const std::uint32_t (&edge)[kBefore],
                                  std::uint32_t (&words)[kWords]) {
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
          __shfl_sync(kFullWarp, own[kWords - 1 - distance % kWords], from & 31);
      unpack_word<T>(lane < kEdgeLanes || begins ? edge[w] : word, inputs + w * kWordTokens);
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      unpack_word<T>(own[w], inputs + (kBefore + w) * kWordTokens);
    }
#pragma unroll
    for (int pair = 0; pair < kTokens / 2; ++pair) {
      float2 sum{bias, bias};
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        constexpr int kFirst = kBefore * kWordTokens - kHistory;
        sum.x = __fmaf_rn(tap[k], inputs[kFirst + 2 * pair + k], sum.x);
        sum.y = __fmaf_rn(tap[k], inputs[kFirst + 2 * pair + 1 + k], sum.y);
      }
      pack_pair<T>(
          words, pair,
          {activate<kActivation>(p.activation, sum.x), activate<kActivation>(p.activation, sum.y)});
    }
  }
};

template <typename T, int kWidth, CompiledActivation kActivation>
__global__ void __launch_bounds__(32 * kChannelsFirstWarps, channels_first_blocks(sizeof(T)))
    convolve_channels_first(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const LaunchParams& grid = params.launch;
  using Kernel = ChannelsFirstKernel<T, kWidth, kActivation>;
  constexpr int kHistory = Kernel::kHistory, kTokens = Kernel::kTokens;
  constexpr int kWords = Kernel::kWords, kWordTokens = Kernel::kWordTokens;
  constexpr int kBefore = Kernel::kBefore;
  using Types = StaticTypes<T>;
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  std::uint32_t stream = 0, tile = unit;
  if (!p.query_start_loc.present) {
    stream = grid.sequence_tiles.divide(unit);
    tile = unit - stream * grid.sequence_tiles.divisor();
  }
  const std::int64_t stream_begin = p.query_start_loc.present ? 0 : stream * p.sequence_tokens;
  const std::int64_t stream_end =
      p.query_start_loc.present ? p.tokens : stream_begin + p.sequence_tokens;
  const std::int64_t first = stream_begin + (std::int64_t{tile} * 32 + lane) * kTokens;
  const bool inside = first + kTokens <= stream_end;
  // The first lanes have no lanes before them: they load the history from memory.
  const bool at_edge =
      inside && lane < Kernel::kEdgeLanes && first - kBefore * kWordTokens >= stream_begin;

  const std::int64_t first_channel =
      (std::int64_t{block} * kChannelsFirstWarps + warp) * kWarpChannels;
  const std::int64_t last_channel = min(first_channel + kWarpChannels, p.channels);
  const std::int64_t row = min(first, stream_end - 1);
  bool whole = false;   // all tokens belong to one sequence, with the history in x or in the state
  bool begins = false;  // in the state: the first token begins the sequence
  std::int64_t sequence = -1;
  for (std::int64_t channel = first_channel; channel < last_channel; channel += kChannelBatch) {
    const T* x =
        static_cast<const T*>(at.x) + row_offset(p, row, p.x) + channel * p.x.channel_stride;
    T* out = static_cast<T*>(at.out) + row_offset(p, row, p.out) + channel * p.out.channel_stride;
    const int channels = static_cast<int>(min(last_channel - channel, std::int64_t{kChannelBatch}));
    std::uint32_t own[kChannelBatch][kWords] = {}, edge[kChannelBatch][kBefore] = {};
    Kernel::load(x, p.x.channel_stride, channels, inside, at_edge, own, edge);
    // Each lane loads one tap: 4 channels have at most 32.
    float taps = 0.0f, biases = 0.0f;
    if (lane < channels * kWidth) taps = weight_at(p, at, channel + lane / kWidth, lane % kWidth);
    if (lane < channels) biases = bias_at(p, at, channel + lane);
    if (channel == first_channel && inside) {
      sequence = find_sequence(p, at, first);
      if (sequence >= 0) {
        const Sequence s = sequence_at(p, at, sequence);
        // The thread that starts a sequence has all tokens whose windows contain history.
        const bool at_first = s.begin == first && kHistory <= kTokens;
        whole = !s.skipped && first + kTokens <= s.end && (at_first || s.begin + kHistory <= first);
        begins = whole && at_first;
      }
    }
    if (begins) {
      const Sequence s = sequence_at(p, at, sequence);
#pragma unroll
      for (int c = 0; c < kChannelBatch; ++c) {
        if (c < channels) load_state<T, kHistory>(p, at, s, channel + c, edge[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kChannelBatch; ++c) {
      if (c >= channels) break;
      std::uint32_t words[kWords];
      Kernel::convolve(p, taps, biases, c, lane, begins, own[c], edge[c], words);
      if (whole) store_tokens(out + c * p.out.channel_stride, words);
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
