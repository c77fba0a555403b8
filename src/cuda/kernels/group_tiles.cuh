// Calls with groups in one launch: convolutions, norms of heads, copied columns and gates of tiles
// of 8 packed rows. The grid depends on shapes only.
//
// Threads: as of convolve_tiles in kernels/tile.cuh, but each block has 128 slots for channels of
// one group: those of a head, then unused slots up to a power of two if heads are normalized. A
// warp so has the whole of a head of 128 channels, or several smaller ones. Its lanes add up the
// squares of the 8 rows with 9 shuffles: with each of the first three a lane keeps half of its
// rows, so that a lane computes one square root and one reciprocal. Other blocks copy
// columns or compute gates.
//
// Bytes moved: the columns of the groups, a and b once (and 3 of 8 rows again from the L2 cache at
// width 4), the outputs once, states once in each direction. Ceiling: a copy of these bytes.
#pragma once

#include <cstdint>

#include "cuda/device/tile_groups.cuh"
#include "cuda/group_params.hpp"
#include "cuda/kernels/tile.cuh"

namespace shortconv::cuda {

/// The steps of convolve_groups.
template <typename Traits>
struct GroupTileKernel : TileKernel<Traits> {
  using Base = TileKernel<Traits>;
  using Base::kHistory;
  using typename Base::Convolution;
  using typename Base::Loader;
  using typename Base::Rows;
  using typename Base::State;
  using typename Base::T;
  using typename Base::Taps;
  using typename Base::Words;
  static constexpr int kGroup = tile_group(Traits::kInputBytes);
  using Channels = GroupChannels<tile_threads(Traits::kInputBytes), kGroup>;

  /// Normalizes heads where their group asks for it, and stores the rows of the tile's mask.
  __device__ static void store_tile(const GroupTileParams& call, const TileRows& tile,
                                    const Channels& channels, Rows& rows) {
    const L2Norm& norm = call.norms[channels.group];
    if (norm.eps != 0) {
      normalize_rows<T, kGroup>(call.groups[channels.group], norm, channels.is_inside(), rows);
    }
    if (!channels.is_inside()) return;
    store_group_rows<T>(call, channels, tile, tile.mask, rows);
  }

  /// Loads the first tokens of a sequence and its history, as rows of a tile.
  __device__ static void load_start(const KernelParams& params, const SequenceStart& start,
                                    int tokens, const Channels& channels, const TileRows& tile,
                                    Rows& rows) {
    State::load_history(params, start, channels.channel,
                        reinterpret_cast<Words(&)[kHistory]>(rows));
    Loader::load_tokens(params, x_at<T>(params, tile.origin, tile.first, channels.column), tokens,
                        rows);
  }

  /// The first `tokens` of a sequence, one after the other.
  __device__ static void convolve_start(const GroupTileParams& call, const Taps& taps,
                                        const TileRows& tile, const SequenceStart& start,
                                        int tokens, const Channels& channels) {
    const KernelParams& params = call.forward;
    const auto load = [&](int token, Words& words) {
      load_words(
          x_at<T>(params, tile.origin, start.first + min(token, tokens - 1), channels.column),
          words);
    };
    Words columns[kHistory + 1], ahead[kHistory];  // and the rows of the next tokens
    State::load_history(params, start, channels.channel,
                        reinterpret_cast<Words(&)[kHistory]>(columns));
#pragma unroll
    for (int i = 0; i < kHistory; ++i) load(i, ahead[i]);
    const L2Norm& norm = call.norms[channels.group];
#pragma unroll 1
    for (int token = 0; token < tokens; ++token) {
      copy_words(ahead[0], columns[kHistory]);
#pragma unroll
      for (int i = 1; i < kHistory; ++i) copy_words(ahead[i], ahead[i - 1]);
      load(token + kHistory, ahead[kHistory - 1]);
      Words result;
      convolve_window<T, Traits::kActivation, Traits::kVariant, T>(params, taps, columns,
                                                                   columns[kHistory], result);
      if (norm.eps != 0) {
        normalize_row<T, kGroup>(call.groups[channels.group], norm, channels.is_inside(), result);
      }
      if (channels.is_inside()) {
        store_words(group_out_at<T>(call, channels, tile, start.first + token), result);
      }
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(columns[k + 1], columns[k]);
    }
  }

  /// Writes the padded rows of a tile in all blocks of channels that the block convolves.
  __device__ static void fill_padding(const GroupTileParams& call, const TileRows& tile,
                                      Channels channels, std::uint32_t rounds) {
    do {
      enter_group(call, channels);
      if (channels.is_inside()) fill_group_padding<T>(call, tile, channels);
    } while (channels.next(call.forward, rounds));
  }

  /// The rows of a tile that are not padding.
  __device__ static std::uint32_t computed_rows(const KernelParams& params, TileRows& tile) {
    if (is_inner_tile<kHistory>(params, tile)) return kAllTileRows;
    return ~tile.padding & tile_rows_between(0, params.tokens - tile.first);
  }

  /// Block `number` of those of the gates.
  __device__ static void run_gate_block(const GroupTileParams& call, std::uint32_t number) {
    const std::uint32_t unit = call.tile_gate_blocks.divide(number);
    const std::uint32_t part = number - unit * call.tile_gate_blocks.divisor();
    TileRows tile = tile_of(call.forward, static_cast<int>(unit));
    const std::uint32_t computed = computed_rows(call.forward, tile);
    store_tile_gates<T>(call, tile, computed, part);
  }

  /// Block `number` of those of a unit that copy columns.
  __device__ static void run_copy_block(const GroupTileParams& call, int unit,
                                        std::uint32_t number) {
    const KernelParams& params = call.forward;
    Channels channels(call.convolved_blocks + number * call.copy_rounds);
    TileRows tile = tile_of(params, unit);
    const std::uint32_t computed = computed_rows(params, tile);
    const std::uint32_t end = min(channels.block + call.copy_rounds, call.channel_blocks);
    for (; channels.block < end; ++channels.block) {
      Rows rows;
      enter_group(call, channels);
      Loader::load_rows(params, tile, channels.column, rows);
      if (!channels.is_inside()) continue;
      store_group_rows<T>(call, channels, tile, computed, rows);
      if (tile.padding != 0) fill_group_padding<T>(call, tile, channels);
    }
  }
};

/// Two instances: with the code of both in one, 64 sequences of 128 tokens take 86.4 us instead of
/// 82.9 (H200, separate runs).
///   kStartBlocksTakeAll: sequence-start blocks process the first 8 tokens of all sequences, as a
///     tile, for calls of few waves.
///   else: tiles start the sequences in them, sequence-start blocks those of fewer than 8 tokens,
///     and both take the first tokens one after the other. After 3 of them a tile finds its window
///     in x.
template <typename Traits, bool kStartBlocksTakeAll>
__global__ void __launch_bounds__(tile_threads(Traits::kInputBytes),
                                  resident(group_tile_blocks(kStartBlocksTakeAll)))
    convolve_groups(const __grid_constant__ GroupTileParams call) {
  using Kernel = GroupTileKernel<Traits>;
  const KernelParams& params = call.forward;
  pdl_wait_and_launch(params);
  typename Kernel::Rows rows;
  typename Kernel::Taps taps;
  TileRows tile;
  typename Kernel::Channels channels;
  SequenceStart start;
  std::uint32_t rounds = 1;  // blocks of channels
  int start_tokens = 0;      // first tokens of `start` that this block convolves after its history
  const bool is_tile = blockIdx.x >= params.start_blocks;
  if (!is_tile) {
    const std::uint32_t sequence = params.start_channel_blocks.divide(blockIdx.x);
    rounds = params.start_rounds;
    channels.block = (blockIdx.x - sequence * params.start_channel_blocks.divisor()) * rounds;
    enter_group(call, channels);
    taps.load(params.weights(), channels.channel);  // in flight during the lookup
    tile = start_tile<Traits::kVariant>(params, static_cast<int>(sequence), start);
    if (start.length == 0) return;
    if (!kStartBlocksTakeAll && start.length >= kTileTokens) return;
    start_tokens = min(start.length, kTileTokens);
    if (kStartBlocksTakeAll) tile.mask = tile_rows_between(0, start_tokens);
  } else {
    std::uint32_t number = blockIdx.x - params.start_blocks;
    if (number < call.gate_blocks) return Kernel::run_gate_block(call, number);
    number -= call.gate_blocks;
    const std::uint32_t unit = params.channel_blocks.divide(number);
    const std::uint32_t block = number - unit * params.channel_blocks.divisor();
    if (block >= call.convolving_blocks) {
      return Kernel::run_copy_block(call, static_cast<int>(unit), block - call.convolving_blocks);
    }
    rounds = call.tile_rounds;
    channels.block = block * rounds;
    enter_group(call, channels);
    tile = tile_of(params, static_cast<int>(unit));
    Kernel::Loader::load_tile(params, tile, channels.column, rows);
    taps.load(params.weights(), channels.channel);
    if (is_inner_tile<Kernel::kHistory>(params, tile)) {
      tile.mask = kAllTileRows;
    } else {
      if (tile.padding != 0) Kernel::fill_padding(call, tile, channels, rounds);
      if (!kStartBlocksTakeAll && tile.starting_sequence >= 0) {
        start = sequence_start<Traits::kVariant>(params, tile.starting_sequence);
        start_tokens = min(start.length, Kernel::kHistory);
        const int first = start.first + start_tokens - tile.first;
        tile.mask |= tile_rows_between(first, first + start.length - start_tokens);
      }
      if (tile.mask == 0 && start_tokens == 0) return;
    }
  }
  while (true) {
    if (kStartBlocksTakeAll && !is_tile) {
      Kernel::load_start(params, start, start_tokens, channels, tile, rows);
    }
    if (tile.mask != 0) {
      Kernel::Convolution::convolve(params, taps, tile.mask, rows, {});
      Kernel::store_tile(call, tile, channels, rows);
    }
    if (start_tokens > 0) {
      reenter_group(call, channels);
      if constexpr (!kStartBlocksTakeAll) {
        Kernel::convolve_start(call, taps, tile, start, start_tokens, channels);
      }
      Kernel::State::write_states(params, start, start.length - Kernel::kHistory,
                                  channels.is_inside(), channels.channel, channels.column);
    }
    if (!channels.next(params, rounds)) return;
    enter_group(call, channels);
    if (is_tile) Kernel::Loader::load_tile(params, tile, channels.column, rows);
    taps.load(params.weights(), channels.channel);
  }
}

}  // namespace shortconv::cuda
