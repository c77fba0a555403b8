// Verify with chains: convolves the draft tokens after the state of each sequence and writes the
// intermediate states after them. Trees are in trees.cuh.
//
// Threads: a thread processes 4 adjacent channels (8 or 16 bytes per row) of one sequence, in
// strips of 8 tokens, with the windows in registers. In a batch of drafts and prompts, tiles of
// packed rows process the tokens after the first strip of a sequence, as in tile.cuh. A history of
// fp32 beside 16-bit rows stays apart from the rows, and is the window of the first token.
//
// Bytes moved: x and out once, the state once, and width - 1 inputs for each intermediate state
// (one if they overlap). Ceiling: a copy of these bytes.
#pragma once

#include <cstdint>

#include "cuda/device/state.cuh"
#include "cuda/kernels/tile.cuh"

namespace shortconv::cuda {

template <typename Traits>
struct DraftKernel {
  using T = typename Traits::Input;
  using Tiles = TileKernel<Traits, kDraftThreads, kDraftGroup>;
  static constexpr int kHistory = Traits::kHistory;
  static constexpr Variant kVariant = Traits::kVariant;
  using TState = typename Traits::State;
  using Words = typename Tiles::Words;
  using StateWords = typename Tiles::StateWords;
  using Rows = typename Tiles::Rows;  // history, then tokens
  using History = StateWords[kHistory];
  static constexpr bool kHistoryInRows = sizeof(StateWords) == sizeof(Words);
  using Gates = typename Tiles::Gates;
  using DraftTaps = typename Tiles::Taps;

  /// Looks up a sequence. The loads of its first rows are issued before its state is known.
  __device__ static TileRows first_strip(const KernelParams& params, int sequence, int channel,
                                         SequenceStart& start, Rows& rows, Gates& gates) {
    TileRows tile;
    tile.origin = row_origin(params, sequence);
    start = sequence_start<kVariant>(params, sequence, [&](const Bounds& bounds) {
      tile.first = bounds.begin;
      const int length = bounds.end - bounds.begin;  // 0: one row is loaded and not used
      const T* x = x_at<T>(params, tile.origin, min(bounds.begin, params.tokens - 1), channel);
      Tiles::Loader::load_tokens(params, x, min(max(length, 1), kTileTokens), rows);
      Tiles::Gating::load_inputs(params, tile, channel, gates);
    });
    return tile;
  }

  /// Pads the rows of a skipped sequence. Not inlined, as fill_outside: small calls are 5% faster.
  __device__ __noinline__ static void fill_sequence(const KernelParams& params, int sequence,
                                                    int channel) {
    const Bounds rows = clamped_bounds(params, raw_bounds(params, sequence));
    const RowOrigin origin = row_origin(params, sequence);
    for (int row = rows.begin; row < rows.end; ++row)
      Tiles::Store::fill_row(params, origin, row, channel);
  }

  /// Pads the rows before the first sequence and after the last.
  __device__ __noinline__ static void fill_outside(const KernelParams& params, int channel) {
    if (!params.has_query_start_loc) return;
    const int tokens = params.tokens;
    const int begin = params.sequences > 0 ? min(max(raw_begin(params, 0), 0), tokens) : tokens;
    const int end = max(params.sequences > 0 ? raw_begin(params, params.sequences) : tokens, begin);
    for (int row = 0; row < begin; ++row) Tiles::Store::fill_row(params, {}, row, channel);
    for (int row = end; row < tokens; ++row) Tiles::Store::fill_row(params, {}, row, channel);
  }

  /// Loads the history of a sequence, to the rows if they have its type.
  __device__ static void load_history(const KernelParams& params, const SequenceStart& start,
                                      int channel, History& history, Rows& rows) {
    auto& in_rows = reinterpret_cast<History&>(rows);
    Tiles::State::load_history(params, start, channel, kHistoryInRows ? in_rows : history);
  }

  /// Stores the state after a token. If the intermediate states overlap, that of the previous token
  /// contains all inputs but the newest.
  __device__ static void store_intermediate(const KernelParams& params,
                                            const IntermediateRows& intermediate, int token,
                                            int channel, const History& columns) {
    if (kVariant == Variant::kExtended && token >= intermediate.tokens) return;
    TState* to = static_cast<TState*>(params.intermediate_states) + intermediate.first +
                 token * params.intermediate_token_stride +
                 channel * params.intermediate_channel_stride;
    if (token > 0 && params.intermediate_token_stride == params.intermediate_column_stride &&
        params.intermediate_access == StateAccess::kChannelVectors) {
      store_words(to + (kHistory - 1) * params.intermediate_column_stride, columns[kHistory - 1]);
    } else {
      store_columns<TState, kHistory, kDraftGroup>(to, params.intermediate_column_stride,
                                                   params.intermediate_channel_stride,
                                                   params.intermediate_access, columns);
    }
  }

  /// Stores the states after the tokens of a strip that are in the mask. `token` is the first token
  /// of the strip; `history` is null if all inputs are in the rows.
  __device__ static void store_intermediates(const KernelParams& params,
                                             const IntermediateRows& intermediate, int token,
                                             std::uint32_t mask, int channel,
                                             const StateWords* history, const Rows& rows) {
    if (intermediate.tokens == 0) return;
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      if (mask >> t == 0) break;
      if (kVariant == Variant::kExtended && (mask >> t & 1u) == 0) continue;
      if constexpr (kHistoryInRows) {
        store_intermediate(params, intermediate, token + t, channel,
                           reinterpret_cast<const History&>(rows[t + 1]));
      } else {
        History columns;
#pragma unroll
        for (int k = 0; k < kHistory; ++k) {
          to_state<T, TState>(rows[t + 1 + k], columns[k]);
          if (t + 1 + k < kHistory && history != nullptr) {
            copy_words(history[t + 1 + k], columns[k]);
          }
        }
        store_intermediate(params, intermediate, token + t, channel, columns);
      }
    }
  }

  /// Processes the rows of a tile that follow the first strip of their sequence.
  __device__ static void convolve_tile(const KernelParams& params, int number, int channel,
                                       bool inside) {
    TileRows tile = tile_of(params, number);
    Rows rows;
    DraftTaps taps;
    Tiles::Loader::load_tile(params, tile, channel, rows);
    taps.load(params.weights(), channel);
    classify_tile<kHistory>(params, tile);
    if (tile.mask != 0) {
      // They belong to the sequence that enters the tile.
      const int sequence = params.has_query_start_loc
                               ? find_sequence(params, tile.first, 0, 1).number
                               : tile.origin.sequence;
      const Bounds bounds = clamped_bounds(params, raw_bounds(params, sequence));
      const IntermediateRows intermediate =
          intermediate_rows<kVariant>(params, sequence, bounds.begin, bounds.end - bounds.begin);
      if (inside) {
        store_intermediates(params, intermediate, tile.first - bounds.begin, tile.mask, channel,
                            nullptr, rows);
      }
      Tiles::Convolution::convolve(params, taps, tile.mask, rows, {});
      if (inside) {
        Tiles::Store::store(params, out_at<T>(params, tile.origin, tile.first, channel), tile.mask,
                            rows);
      }
    }
    if (tile.padding != 0 && inside) Tiles::Store::fill_padding(params, tile, channel);
  }

  /// Processes `length` tokens of a sequence. The rows of the first strip are loaded.
  __device__ static void convolve_chain(const KernelParams& params, const TileRows& tile,
                                        const IntermediateRows& intermediate, int length,
                                        int channel, const DraftTaps& taps, const History& history,
                                        Rows& rows, Gates& gates) {
    for (int base = 0; base < length; base += kTileTokens) {
      const int tokens = min(kTileTokens, length - base);
      TileRows strip = tile;
      strip.first += base;
      if (base > 0) {
        Tiles::Loader::load_tokens(params, x_at<T>(params, strip.origin, strip.first, channel),
                                   tokens, rows);
        Tiles::Gating::load_inputs(params, strip, channel, gates);
      }
      Tiles::Gating::apply(params, strip, channel, kHistory, gates, rows);
      const std::uint32_t mask = tile_rows_between(0, tokens);
      const StateWords* before = kHistoryInRows || base > 0 ? nullptr : history;
      store_intermediates(params, intermediate, base, mask, channel, before, rows);
      Words next[kHistory];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(rows[kTileTokens + k], next[k]);
      using Convolution = typename Tiles::Convolution;
      Convolution::template convolve_joined<!kHistoryInRows>(
          params, taps, mask, before != nullptr ? 0 : Convolution::kNoBoundaryRow, history, rows,
          gates);
      Tiles::Store::store(params, out_at<T>(params, strip.origin, strip.first, channel), mask,
                          rows);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(next[k], rows[k]);
    }
  }
};

template <typename Traits>
constexpr int draft_blocks_of() {
  constexpr std::size_t kBytes = Traits::kInputBytes;
  if (Traits::kVariant == Variant::kGated) return gated_draft_blocks(kBytes, Traits::kWidth);
  if (sizeof(typename Traits::State) > kBytes) return kF32StateDraftBlocks;
  return draft_blocks(kBytes, Traits::kWidth);
}

template <typename Traits>
__global__ void __launch_bounds__(kDraftThreads, resident(draft_blocks_of<Traits>()))
    convolve_drafts(const __grid_constant__ KernelParams params) {
  using Kernel = DraftKernel<Traits>;
  constexpr Variant kVariant = Traits::kVariant;
  pdl_wait_and_launch(params);
  const std::uint32_t unit = params.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * params.channel_blocks.divisor();
  const int channel = static_cast<int>(block * kDraftThreads + threadIdx.x) * kDraftGroup;
  const int last = params.channels - kDraftGroup;
  const bool has_tiles = kVariant == Variant::kExtended && params.start_blocks_take_all;
  if (has_tiles && unit >= params.tiles) {
    Kernel::convolve_tile(params, static_cast<int>(unit - params.tiles), min(channel, last),
                          channel <= last);
    return;
  }
  if (channel > last) return;
  if (unit >= params.tiles) {
    Kernel::fill_outside(params, channel);
    return;
  }
  const int sequence = static_cast<int>(unit);
  SequenceStart start;
  typename Kernel::Rows rows;
  typename Kernel::Gates gates;
  const TileRows tile = Kernel::first_strip(params, sequence, channel, start, rows, gates);
  if (start.state.skipped) {
    if (has_tiles) return;  // tiles pad its rows
    Kernel::fill_sequence(params, sequence, channel);
    return;
  }
  if (start.length == 0) return;
  typename Kernel::DraftTaps taps;
  typename Kernel::History history;
  Kernel::load_history(params, start, channel, history, rows);
  taps.load(params.weights(), channel);
  const IntermediateRows intermediate =
      intermediate_rows<kVariant>(params, sequence, start.first, start.length);
  const int chain_tokens = has_tiles ? min(start.length, kTileTokens) : start.length;
  // The engine may accept no draft token: a circular buffer then needs the whole history.
  // Intermediate states by slot may overwrite the history that the final state reads, so the final
  // state is written first. convolve_chain has the history in registers.
  if constexpr (kVariant == Variant::kExtended) {
    Kernel::Tiles::State::write_states(params, start, -Kernel::kHistory, true, channel, channel);
  }
  Kernel::convolve_chain(params, tile, intermediate, chain_tokens, channel, taps, history, rows,
                         gates);
  if constexpr (kVariant != Variant::kExtended) {
    Kernel::Tiles::State::write_states(params, start, -Kernel::kHistory, true, channel, channel);
  }
}

}  // namespace shortconv::cuda
