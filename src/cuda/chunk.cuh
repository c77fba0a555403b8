// Schedules block-list and sequence-grid: 8 tokens of one sequence x 256 channels a block, as the
// kernel this library started from has them (SGLang PR 10552), so that the comparison can be
// repeated with nothing else installed.
//
// Who owns what: a thread owns 2 adjacent channels and walks the tokens of the chunk one after the
// other with the window in registers; the first chunk of a sequence owns its state. A last unit
// fills the rows outside of all sequences. Bytes moved: as in tile.cuh. The aim is the speed of
// that kernel, 105 us for 8192 x 8192 bf16 on an H200, not more.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
#include "cuda/taps.cuh"
#include "cuda/token.cuh"
#include "shortconv/schedule.hpp"

namespace shortconv::cuda {

inline constexpr int kChunkThreads = kChunkChannels / 2;

/// Which sequence and which of its chunks a unit stands for; false if it stands for none. The last
/// chunk of sequence-grid runs to the end, whatever the host believed the longest length to be.
struct Chunk {
  std::int64_t sequence, first;
  bool to_the_end = false;
};

__device__ inline bool chunk_of_unit(const Problem& p, const Addresses& at, const Grid& grid,
                                     std::uint32_t unit, Chunk& chunk) {
  if (p.schedule == Schedule::kBlockList) {
    chunk.sequence =
        static_cast<const std::int32_t*>(at.block_sequence)[unit * p.block_sequence_stride];
    const std::int64_t offset =
        static_cast<const std::int32_t*>(at.block_offset)[unit * p.block_offset_stride];
    chunk.first = offset * kChunkTokens;
    return chunk.sequence >= 0 && chunk.sequence < p.sequences && offset >= 0;
  }
  chunk.sequence = grid.sequence_tiles.divide(unit);
  const std::uint32_t number = unit - chunk.sequence * grid.sequence_tiles.divisor();
  chunk.first = std::int64_t{number} * kChunkTokens;
  chunk.to_the_end = number + 1 == grid.sequence_tiles.divisor();
  return true;
}

/// Not inlined: beside the rest it takes registers from all chunks.
template <typename Types>
__device__ __noinline__ void write_chunk_state(const Problem& p, const Addresses& at,
                                               const Sequence& s, std::int64_t channel) {
#pragma unroll 1
  for (int c = 0; c < 2; ++c) write_state_of_channel<Types>(p, at, s, channel + c);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kChunkThreads)
    convolve_chunks(const __grid_constant__ Problem p, const __grid_constant__ Addresses at,
                    const __grid_constant__ Grid grid) {
  constexpr int kHistory = kWidth - 1;
  using Types = Typed<T>;
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const std::int64_t channel = std::int64_t{block} * kChunkChannels + 2 * threadIdx.x;
  if (channel >= p.channels) return;
  if (unit >= grid.tiles) {
#pragma unroll 1
    for (int c = 0; c < 2; ++c) pad_outside<Types>(p, at, channel + c);
    return;
  }
  Chunk chunk;
  if (!chunk_of_unit(p, at, grid, unit, chunk)) return;
  // Most blocks of a skewed sequence-grid end here, so nothing else is looked up before.
  const std::int64_t length =
      sequence_begin(p, at, chunk.sequence + 1) - sequence_begin(p, at, chunk.sequence);
  if (chunk.first >= length) return;
  const Sequence s = sequence_at(p, at, chunk.sequence);
  const std::int64_t last = chunk.to_the_end ? length : min(chunk.first + kChunkTokens, length);
  if (s.skipped) {
    for (std::int64_t token = chunk.first; token < last; ++token) {
#pragma unroll 1
      for (int c = 0; c < 2; ++c) pad_element<Types>(p, at, s.begin + token, channel + c);
    }
    return;
  }
  const T* x = static_cast<const T*>(at.x) + x_row(p, s.begin) + channel;
  T* out = static_cast<T*>(at.out) + out_row(p, s.begin) + channel;
  float2 window[kWidth];
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {
    const std::int64_t token = chunk.first - kHistory + k;
    if (token >= 0) {
      std::uint32_t words[kWordsOf<T, 2>];
      load_words(x + token * p.x_token, words);
      window[k] = unpack_pair<T>(words, 0);
    } else {
      window[k] = {input_at<Types>(p, at, s, token, channel),
                   input_at<Types>(p, at, s, token, channel + 1)};
    }
  }
  Taps<T, kWidth, 2> taps;
  taps.load(weights_of(p, at, grid), static_cast<int>(channel));
  const T* from = x + chunk.first * p.x_token;
  T* to = out + chunk.first * p.out_token;
  const auto convolve_one = [&](const std::uint32_t(&words)[kWordsOf<T, 2>]) {
    window[kHistory] = unpack_pair<T>(words, 0);
    float2 sum = taps.bias(0);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      sum.x = __fmaf_rn(taps.tap(k, 0).x, window[k].x, sum.x);
      sum.y = __fmaf_rn(taps.tap(k, 0).y, window[k].y, sum.y);
    }
    std::uint32_t result[kWordsOf<T, 2>];
    pack_pair<T>(result, 0, {activate(p.activation, sum.x), activate(p.activation, sum.y)});
    store_words(to, result);
    to += p.out_token;
#pragma unroll
    for (int k = 0; k < kHistory; ++k) window[k] = window[k + 1];
  };
  for (std::int64_t left = last - chunk.first; left > 0; left -= kChunkTokens) {
    std::uint32_t words[kChunkTokens][kWordsOf<T, 2>];
#pragma unroll
    for (int t = 0; t < kChunkTokens; ++t, from += p.x_token) {
      if (t < left) load_words(from, words[t]);
    }
#pragma unroll
    for (int t = 0; t < kChunkTokens; ++t) {
      if (t < left) convolve_one(words[t]);
    }
  }
  if (chunk.first == 0) {
    write_chunk_state<Types>(p, at, s, channel);
  }
}

}  // namespace shortconv::cuda
