// Schedule flat on token-major rows, for any batch: convolves tiles of 8 packed rows. The grid
// depends on shapes only.
//
// Threads: a thread processes 4 adjacent channels (2 of fp32; 8 bytes per row) of a strip of 8
// rows. A tile contains rows of the sequence that enters it and of the sequence that starts in it.
// One pass convolves both: at the boundary row, the initial state replaces the window. The thread
// then writes the final state of the sequence that starts, so one thread reads and writes each
// slot, in this order. Sequences of fewer than 8 tokens (decode, draft tokens) have sequence-start
// blocks instead, so a tile has at most one start: dozens of starts one after the other would take
// longer than everything else. If sequences are short on average, these blocks process up to 32
// tokens of each. A start covers at least width - 1 tokens, from the next tile if
// necessary, so that the rows which enter a tile find their window in x. In small calls
// sequence-start blocks also process the first 8 tokens of long sequences: more work, but the call
// ends sooner.
//
// Registers hold width - 1 rows of history and 8 rows of tokens; only the source of the history
// differs. The loads of a tile are issued before its sequences are known, because rows do not
// depend on them. Meanwhile the warp searches query_start_loc. Tiles near which no sequence starts
// or ends take a separate path without further tests. If sequences are so short on average that
// sequence-start blocks do most of the work, the search comes first.
//
// Bytes moved: x once (and 3 of 8 rows again from the L2 cache at width 4), out once, states once
// in each direction, gates as x and out. Ceiling: a copy of these bytes. The sizes of tile and
// block are the best of those measured, see tuning.hpp.
#pragma once

#include <cstdint>

#include "cuda/device/pdl.cuh"
#include "cuda/device/tile_convolution.cuh"
#include "cuda/device/tile_loader.cuh"
#include "cuda/device/tile_rows.cuh"
#include "cuda/device/tile_shape.cuh"
#include "cuda/device/tile_state.cuh"
#include "cuda/device/traits.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// The parts of the tile kernels and the steps of their blocks.
template <typename Traits, int kThreads = tile_threads(Traits::kInputBytes),
          int kGroup = tile_group(Traits::kInputBytes)>
struct TileKernel {
  using Shape = TileShape<Traits, kThreads, kGroup>;
  using Loader = TileLoader<Shape>;
  using Gating = TileGates<Shape>;
  using Convolution = TileConvolution<Shape>;
  using Store = TileStore<Shape>;
  using State = TileState<Shape>;
  using T = typename Shape::T;
  using Channels = typename Shape::Channels;
  using Words = typename Shape::Words;
  using StateWords = typename Shape::StateWords;
  using Rows = typename Shape::Rows;
  using Gates = typename Shape::Gates;
  using Taps = typename Shape::Taps;
  static constexpr Variant kVariant = Shape::kVariant;
  static constexpr int kHistory = Shape::kHistory;

  /// A block of a snapshot.
  __device__ static void take_snapshot(const KernelParams& params, std::uint32_t block) {
    const std::uint32_t number = params.snapshot_channel_blocks.divide(block);
    const std::uint32_t channel_block = block - number * params.snapshot_channel_blocks.divisor();
    State::take_snapshot(params, static_cast<int>(number),
                         Channels(channel_block * kSnapshotRounds), kSnapshotRounds);
  }

  /// A sequence of kTokens tokens. Its final state is among the inputs that are in registers, so
  /// that there is no second load after the slot is known.
  template <int kTokens>
  __device__ static void convolve_few(const KernelParams& params, const SequenceStart& start,
                                      const Channels& channels, const Taps& taps) {
    const int channel = channels.first(params);
    Words inputs[kHistory + kTokens];
    State::load_history(params, start, channel, reinterpret_cast<Words(&)[kHistory]>(inputs));
    const T* x = x_of<T>(params, start.sequence, start.first, channel);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      load_words(nth_row(x, params.x_stride_bytes, t), inputs[kHistory + t]);
    }
    if (!channels.inside(params)) return;
    T* out = out_of<T>(params, start.sequence, start.first, channel);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      Words result;
      convolve_window<T, Traits::kActivation, kVariant>(
          params, taps, reinterpret_cast<const Words(&)[Shape::kWidth]>(inputs[t]),
          inputs[kHistory + t], result);
      store_words(nth_row(out, params.out_stride_bytes, t), result);
    }
    if (start.state.write_slot < 0) return;
    store_state<T, kHistory, kGroup>(params, start.state.write_slot, channel,
                                     reinterpret_cast<const Words(&)[kHistory]>(inputs[kTokens]));
  }

  /// Writes the final state of a sequence of any length, from x alone if it can.
  __device__ static void write_final_state(const KernelParams& params, const SequenceStart& start,
                                           const Channels& channels) {
    State::write_states(params, start, start.length - kHistory, channels.inside(params),
                        channels.first(params), channels.first(params));
  }

  /// A sequence-start block that processes the first kMaxTokens tokens of its sequence, a strip of
  /// 8 after the other, and the final state, which depends on no result. It comes first if its
  /// inputs are not in the first strip: their loads are in flight together. 256 sequences of 9 x
  /// 8192 take 27.6 us instead of 29.4. In small tiles it comes last for a few tokens: 64 of 9 x
  /// 2048 take 4.5 us, and 5.1 with the state first (H200).
  template <int kMaxTokens>
  __device__ static void convolve_start(const KernelParams& params) {
    const std::uint32_t sequence = params.start_channel_blocks.divide(blockIdx.x);
    const Channels channels(blockIdx.x - sequence * params.start_channel_blocks.divisor());
    const bool inside = channels.inside(params);
    if (!__any_sync(kFullWarp, inside)) return;
    const int channel = channels.first(params);
    Taps taps;
    taps.load(params.weights(), channel);  // in flight during the lookup
    const SequenceStart start = sequence_start<kVariant>(params, static_cast<int>(sequence));
    if (start.length == 0) return;
    if (start.length == 1) return convolve_few<1>(params, start, channels, taps);
    if (start.length == 2) return convolve_few<2>(params, start, channels, taps);
    Rows rows;
    const int tokens = min(start.length, kMaxTokens);
    State::load_history(params, start, channel, reinterpret_cast<Words(&)[kHistory]>(rows));
    Loader::load_tokens(params, x_of<T>(params, start.sequence, start.first, channel),
                        min(tokens, kTileTokens), rows);
    const bool state_first = kMaxTokens > kTileTokens || start.length > 2 * kTileTokens;
    if (state_first) write_final_state(params, start, channels);
    for (int first = 0;;) {
      const std::uint32_t mask = tile_rows_between(0, tokens - first);
      Words next_history[kHistory];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(rows[kTileTokens + k], next_history[k]);
      Convolution::convolve(params, taps, mask, rows, {});
      const int row = start.first + first;
      if (inside) {
        Store::store(params, out_of<T>(params, start.sequence, row, channel), mask, rows);
      }
      first += kTileTokens;
      if (first >= tokens) break;
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(next_history[k], rows[k]);
      Loader::load_tokens(params, x_of<T>(params, start.sequence, row + kTileTokens, channel),
                          min(tokens - first, kTileTokens), rows);
    }
    if (!state_first) write_final_state(params, start, channels);
  }

  /// A tile whose rows all belong to one sequence that enters it.
  __device__ static void convolve_inner_tile(const KernelParams& params, const TileRows& tile,
                                             const Channels& channels, int channel,
                                             const Taps& taps, Gates& gates, Rows& rows) {
    // All rows, hidden from the compiler, see convolve_rows.
    const std::uint32_t mask = params.channels != 0 ? kAllTileRows : 0;
    Gating::apply(params, tile, channel, 0, gates, rows);
    Convolution::convolve(params, taps, mask, rows, gates);
    if (channels.inside(params)) {
      Store::store(params, out_at<T>(params, tile.origin, tile.first, channel), kAllTileRows, rows);
    }
  }

  /// Looks up the sequence that starts in the tile. Returns how many of its tokens the block
  /// convolves: those in the tile, but at least kHistory.
  __device__ static int find_start(const KernelParams& params, const TileRows& tile,
                                   SequenceStart& start) {
    start = sequence_start<kVariant>(params, tile.starting_sequence);
    const int in_tile = tile.first + kTileTokens - start.first;
    return min(start.length, max(in_tile, kHistory));
  }

  /// Loads the first tokens of a sequence, whose first row is the first one of the tile.
  __device__ static void load_start(const KernelParams& params, const TileRows& tile, int tokens,
                                    int channel, Rows& rows, Gates& gates) {
    Loader::load_tokens(params, x_at<T>(params, tile.origin, tile.first, channel), tokens, rows);
    Gating::load_inputs(params, tile, channel, gates);
  }

  __device__ static void store_tile(const KernelParams& params, const TileRows& tile, int channel,
                                    const Rows& rows) {
    Store::store(params, out_at<T>(params, tile.origin, tile.first, channel), tile.mask, rows);
  }

  /// Loads the history of a sequence that starts in the tile: apart from the rows, if these have
  /// the history of another sequence.
  __device__ static void load_start_history(const KernelParams& params, const SequenceStart& start,
                                            int channel, StateWords (&history)[kHistory],
                                            Rows& rows) {
    static_assert(Convolution::kJoinsSequences || sizeof(StateWords) == sizeof(Words),
                  "fp32 states do not fit into the rows");
    auto& in_rows = reinterpret_cast<StateWords(&)[kHistory]>(rows);
    State::load_history(params, start, channel, Convolution::kJoinsSequences ? history : in_rows);
  }
};

/// Maximum resident blocks of a multiprocessor of the target architecture.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
inline constexpr int kMaxResidentBlocks = 24;
#elif defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870)
inline constexpr int kMaxResidentBlocks = 16;
#else
inline constexpr int kMaxResidentBlocks = 32;
#endif

constexpr int resident(int wanted) {
  return wanted < kMaxResidentBlocks ? wanted : kMaxResidentBlocks;
}

template <typename Traits>
constexpr int tile_blocks_of() {
  constexpr std::size_t kBytes = Traits::kInputBytes;
  if (Traits::kVariant == Variant::kGated) return gated_tile_blocks(kBytes, Traits::kWidth);
  if (sizeof(typename Traits::State) > kBytes) return kF32StateTileBlocks;
  return tile_blocks(kBytes, Traits::kWidth);
}

/// The general form: snapshot blocks, then sequence-start blocks, then tile blocks. The flags and
/// the loop stay in the kernel: in a struct or in functions, the machine code of all variants
/// changes.
template <typename Traits>
__global__ void __launch_bounds__(tile_threads(Traits::kInputBytes),
                                  resident(tile_blocks_of<Traits>()))
    convolve_tiles(const __grid_constant__ KernelParams params) {
  using Kernel = TileKernel<Traits>;
  using Convolution = typename Kernel::Convolution;
  constexpr Variant kVariant = Traits::kVariant;
  pdl_wait_and_launch(params);
  typename Kernel::Rows rows;
  typename Kernel::Gates gates;
  typename Kernel::Taps taps;
  TileRows tile;
  typename Kernel::Channels channels;
  SequenceStart start;
  std::uint32_t rounds = 1;  // groups of channels
  int start_tokens = 0;      // tokens of `start` that this block convolves
  bool loaded = false;       // the rows and their input gates
  std::uint32_t block = blockIdx.x;
  if constexpr (kVariant == Variant::kExtended) {
    if (block < params.snapshot_blocks) return Kernel::take_snapshot(params, block);
    block -= params.snapshot_blocks;
  }
  if (block < params.start_blocks) {
    const std::uint32_t sequence = params.start_channel_blocks.divide(block);
    const std::uint32_t channel_block = block - sequence * params.start_channel_blocks.divisor();
    rounds = params.start_rounds;
    channels = typename Kernel::Channels(channel_block * rounds);
    taps.load(params.weights(), channels.first(params));  // in flight during the lookup
    tile = start_tile<kVariant>(params, static_cast<int>(sequence), start);
    if (start.length == 0) return;
    if (!params.start_blocks_take_all && start.length >= kTileTokens) return;
    start_tokens = min(start.length, kTileTokens);
  } else {
    const std::uint32_t number = block - params.start_blocks;
    const std::uint32_t unit = params.channel_blocks.divide(number);
    channels = typename Kernel::Channels(number - unit * params.channel_blocks.divisor());
    const int channel = channels.first(params);
    tile = tile_of(params, static_cast<int>(unit));
    Kernel::Loader::load_tile(params, tile, channel, rows);
    Kernel::Gating::load_inputs(params, tile, channel, gates);
    taps.load(params.weights(), channel);
    if (is_inner_tile<Kernel::kHistory>(params, tile)) {
      return Kernel::convolve_inner_tile(params, tile, channels, channel, taps, gates, rows);
    }
    if (tile.padding != 0 && channels.inside(params)) {
      Kernel::Store::fill_padding(params, tile, channel);
    }
    if (tile.starting_sequence >= 0) start_tokens = Kernel::find_start(params, tile, start);
    if (tile.mask == 0 && start_tokens == 0) return;
    loaded = tile.mask != 0 || start.first - tile.first <= Convolution::kLastBoundaryRow;
    if (!loaded) tile.first = start.first;
  }
  // Each pass convolves rows of the sequence that enters the tile, of the one that starts in it, or
  // of both. A start that reaches into the next tile takes a pass after the rows that enter.
  while (true) {
    const int channel = channels.first(params);
    const bool inside = channels.inside(params);
    const int boundary_row = start.first - tile.first;
    const bool starts = start_tokens > 0 && boundary_row <= Convolution::kLastBoundaryRow;
    typename Kernel::StateWords start_history[Kernel::kHistory];
    if (starts) {
      Kernel::load_start_history(params, start, channel, start_history, rows);
      tile.mask |= tile_rows_between(boundary_row, boundary_row + start_tokens);
    }
    if (!loaded) Kernel::load_start(params, tile, start_tokens, channel, rows, gates);
    // A history in the rows is gated already.
    const int first_input = starts && !Convolution::kJoinsSequences ? Kernel::kHistory : 0;
    Kernel::Gating::apply(params, tile, channel, first_input, gates, rows);
    Convolution::template convolve_joined<Convolution::kJoinsSequences>(
        params, taps, tile.mask, starts ? boundary_row : Convolution::kNoBoundaryRow, start_history,
        rows, gates);
    if (inside) Kernel::store_tile(params, tile, channel, rows);
    loaded = false;
    if (starts) {
      Kernel::State::write_states(params, start, start.length - Kernel::kHistory, inside, channel,
                                  channel);
      if (!channels.next(params, rounds)) return;
      taps.load(params.weights(), channels.first(params));
    } else {
      if (start_tokens == 0) return;
      tile.first = start.first;
      tile.mask = 0;
    }
  }
}

/// For batches of short sequences: sequence-start blocks process the first kMaxShortTokens tokens
/// of all of them, tiles the others. Tiles search first, and a tile block processes several groups
/// of channels.
template <typename Traits>
__global__ void __launch_bounds__(short_sequence_threads(Traits::kInputBytes),
                                  short_sequence_blocks(Traits::kInputBytes, Traits::kWidth))
    convolve_short_sequences(const __grid_constant__ KernelParams params) {
  using Kernel = TileKernel<Traits, 0>;
  pdl_wait_and_launch(params);
  if (blockIdx.x < params.start_blocks) {
    return Kernel::template convolve_start<kMaxShortTokens>(params);
  }
  const std::uint32_t number = blockIdx.x - params.start_blocks;
  const std::uint32_t unit = params.channel_blocks.divide(number);
  const std::uint32_t rounds = kShortTileChannels / (blockDim.x * Kernel::Shape::kGroup);
  typename Kernel::Channels channels((number - unit * params.channel_blocks.divisor()) * rounds);
  TileRows tile = tile_of(params, static_cast<int>(unit));
  classify_tile<Kernel::kHistory, kMaxShortTokens>(params, tile);
  if ((tile.mask | tile.padding) == 0) return;
  typename Kernel::Rows rows;
  typename Kernel::Taps taps;
  do {
    const int channel = channels.first(params);
    if (tile.mask != 0) {
      Kernel::Loader::load_tile(params, tile, channel, rows);
      taps.load(params.weights(), channel);
      Kernel::Convolution::convolve(params, taps, tile.mask, rows, {});
      if (channels.inside(params)) Kernel::store_tile(params, tile, channel, rows);
    }
    if (tile.padding != 0 && channels.inside(params)) {
      Kernel::Store::fill_padding(params, tile, channel);
    }
  } while (channels.next(params, rounds));
}

/// For calls of at most one wave of blocks, in which nothing hides the latency of a thread:
/// sequence-start blocks start all sequences, and twice as many threads process half as many
/// channels each.
template <typename Traits>
__global__ void __launch_bounds__(kSmallTileThreads,
                                  resident(small_tile_blocks(Traits::kInputBytes)))
    convolve_small_tiles(const __grid_constant__ KernelParams params) {
  using Kernel = TileKernel<Traits, kSmallTileThreads, kSmallTileGroup>;
  using T = typename Traits::Input;
  pdl_wait_and_launch(params);
  if (blockIdx.x < params.start_blocks) {
    return Kernel::template convolve_start<kTileTokens>(params);
  }
  const std::uint32_t number = blockIdx.x - params.start_blocks;
  const std::uint32_t unit = params.channel_blocks.divide(number);
  const typename Kernel::Channels channels(number - unit * params.channel_blocks.divisor());
  const int channel = channels.first(params);
  TileRows tile = tile_of(params, static_cast<int>(unit));
  typename Kernel::Rows rows;
  typename Kernel::Taps taps;
  Kernel::Loader::load_tile(params, tile, channel, rows);
  taps.load(params.weights(), channel);
  if (is_inner_tile<Kernel::kHistory>(params, tile)) {
    Kernel::Convolution::convolve(params, taps, kAllTileRows, rows, {});
    if (channels.inside(params)) {
      Kernel::Store::store(params, out_at<T>(params, tile.origin, tile.first, channel),
                           kAllTileRows, rows);
    }
    return;
  }
  if (tile.mask != 0) {
    Kernel::Convolution::convolve(params, taps, tile.mask, rows, {});
    if (channels.inside(params)) Kernel::store_tile(params, tile, channel, rows);
  }
  if (tile.padding != 0 && channels.inside(params))
    Kernel::Store::fill_padding(params, tile, channel);
}

}  // namespace shortconv::cuda
