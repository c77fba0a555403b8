// Schedules block-list and sequence-grid: convolves 8 tokens of one sequence x 256 channels per
// block. The division is that of the kernel this library started from (SGLang PR 10552), so that
// the comparison can be repeated without other software.
//
// Threads: a thread processes 2 adjacent channels and the tokens of its token block one after the
// other, with the window in registers. The first token block of a sequence writes its state. One
// more unit pads the rows outside of all sequences.
//
// Bytes moved: as in tile.cuh. Ceiling: the speed of that kernel, 105 us for 8192 x 8192 bf16 on an
// H200.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/device/taps.cuh"
#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::cuda {

inline constexpr int kBlockListThreads = kBlockChannels / 2;

/// 8 tokens of a sequence from `first` on. The last token block of sequence-grid covers all
/// remaining tokens: the sequence may be longer than max_seqlen.
struct TokenBlock {
  std::int64_t sequence, first;
  bool to_the_end = false;
};

/// False if the unit has no token block.
__device__ inline bool token_block_of_unit(const Problem& p, const TensorPointers& at,
                                           const LaunchParams& grid, std::uint32_t unit,
                                           TokenBlock& token_block) {
  if (p.schedule == Schedule::kBlockList) {
    token_block.sequence =
        static_cast<const std::int32_t*>(at.block_sequence)[unit * p.block_sequence.entry_stride];
    const std::int64_t offset =
        static_cast<const std::int32_t*>(at.block_offset)[unit * p.block_offset.entry_stride];
    token_block.first = offset * kBlockTokens;
    return token_block.sequence >= 0 && token_block.sequence < p.sequences && offset >= 0;
  }
  token_block.sequence = grid.sequence_tiles.divide(unit);
  const std::uint32_t number = unit - token_block.sequence * grid.sequence_tiles.divisor();
  token_block.first = std::int64_t{number} * kBlockTokens;
  token_block.to_the_end = number + 1 == grid.sequence_tiles.divisor();
  return true;
}

/// Not inlined: it would take registers from all token blocks.
template <typename Types>
__device__ __noinline__ void write_block_state(const Problem& p, const TensorPointers& at,
                                               const Sequence& s, std::int64_t channel) {
#pragma unroll 1
  for (int c = 0; c < 2; ++c) write_state_of_channel<Types>(p, at, s, channel + c);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlockListThreads)
    convolve_block_list(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const LaunchParams& grid = params.launch;
  constexpr int kHistory = kWidth - 1;
  using Types = StaticTypes<T>;
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const std::int64_t channel = std::int64_t{block} * kBlockChannels + 2 * threadIdx.x;
  if (channel >= p.channels) return;
  if (unit >= grid.tiles) {
#pragma unroll 1
    for (int c = 0; c < 2; ++c) pad_outside<Types>(p, at, channel + c);
    return;
  }
  TokenBlock token_block;
  if (!token_block_of_unit(p, at, grid, unit, token_block)) return;
  // Most blocks of a skewed sequence-grid end here, so nothing else is loaded before.
  const std::int64_t length =
      sequence_begin(p, at, token_block.sequence + 1) - sequence_begin(p, at, token_block.sequence);
  if (token_block.first >= length) return;
  const Sequence s = sequence_at(p, at, token_block.sequence);
  const std::int64_t last =
      token_block.to_the_end ? length : min(token_block.first + kBlockTokens, length);
  if (s.skipped) {
    for (std::int64_t token = token_block.first; token < last; ++token) {
#pragma unroll 1
      for (int c = 0; c < 2; ++c) pad_element<Types>(p, at, s.begin + token, channel + c);
    }
    return;
  }
  const T* x = static_cast<const T*>(at.x) + row_offset(p, s.begin, p.x) + channel;
  T* out = static_cast<T*>(at.out) + row_offset(p, s.begin, p.out) + channel;
  float2 window[kWidth];
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {
    const std::int64_t token = token_block.first - kHistory + k;
    if (token >= 0) {
      std::uint32_t words[kWordsOf<T, 2>];
      load_words(x + token * p.x.token_stride, words);
      window[k] = unpack_pair<T>(words, 0);
    } else {
      window[k] = {input_at<Types>(p, at, s, token, channel),
                   input_at<Types>(p, at, s, token, channel + 1)};
    }
  }
  Taps<T, kWidth, 2> taps;
  taps.load(weights_of(params), static_cast<int>(channel));
  const T* from = x + token_block.first * p.x.token_stride;
  T* to = out + token_block.first * p.out.token_stride;
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
    to += p.out.token_stride;
#pragma unroll
    for (int k = 0; k < kHistory; ++k) window[k] = window[k + 1];
  };
  for (std::int64_t left = last - token_block.first; left > 0; left -= kBlockTokens) {
    std::uint32_t words[kBlockTokens][kWordsOf<T, 2>];
#pragma unroll
    for (int t = 0; t < kBlockTokens; ++t, from += p.x.token_stride) {
      if (t < left) load_words(from, words[t]);
    }
#pragma unroll
    for (int t = 0; t < kBlockTokens; ++t) {
      if (t < left) convolve_one(words[t]);
    }
  }
  if (token_block.first == 0) write_block_state<Types>(p, at, s, channel);
}

}  // namespace shortconv::cuda
