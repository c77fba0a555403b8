// Verify: draft tokens that follow a state one after the other, and the windows they would leave
// behind. Trees are in trees.cuh.
//
// Who owns what: a thread owns 4 adjacent channels (8 or 16 bytes a row) of one sequence, and takes
// its tokens in strips of 8, whose windows are in its registers. In a batch with prompts among the
// drafts what follows a sequence's first strip is left to tiles of packed rows, as in tile.cuh.
//
// Bytes moved: x and out once, the state once, and for each captured window width - 1 inputs (one
// where windows overlap). The ceiling is a copy of these bytes.
#pragma once

#include <cstdint>

#include "cuda/state.cuh"
#include "cuda/tile.cuh"

namespace shortconv::cuda {

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, Features kFeatures>
struct DraftKernel {
  using Tiles = TileKernel<T, TWeight, kWidth, kActivation, kFeatures, kDraftThreads, kDraftGroup>;
  static constexpr int kHistory = kWidth - 1;
  using Words = typename Tiles::Words;
  using Rows = typename Tiles::Rows;  // history, then tokens
  using Gates = typename Tiles::Gates;
  using DraftTaps = typename Tiles::TileTaps;

  /// A sequence and its first rows, which go out before it is known where its history lies.
  __device__ static TileRows first_strip(const Call& call, int sequence, int channel,
                                         Beginning& beginning, Rows& rows, Gates& gates) {
    TileRows tile;
    tile.stream = stream_of(call, sequence);
    beginning = beginning_of<kFeatures>(call, sequence, [&](const Bounds& bounds) {
      tile.first = bounds.begin;
      const int length = bounds.end - bounds.begin;  // 0: a row all the same, which nobody looks at
      const T* x = x_at<T>(call, tile.stream, min(bounds.begin, call.tokens - 1), channel);
      Tiles::load_tokens(call, x, min(max(length, 1), kTileTokens), rows);
      Tiles::load_input_gates(call, tile, channel, gates);
    });
    return tile;
  }

  // Not inlined, nor is the next: beside the way of a live sequence they cost 5% of a small call.
  __device__ __noinline__ static void fill_sequence(const Call& call, int sequence, int channel) {
    const Bounds rows = rows_of(call, stated_bounds(call, sequence));
    const Stream stream = stream_of(call, sequence);
    for (int row = rows.begin; row < rows.end; ++row) Tiles::fill_row(call, stream, row, channel);
  }

  /// Rows before the first sequence and after the last.
  __device__ __noinline__ static void fill_outside(const Call& call, int channel) {
    if (!call.has_query_start_loc) return;
    const int tokens = call.tokens;
    const int begin = call.sequences > 0 ? min(max(stated_begin(call, 0), 0), tokens) : tokens;
    const int end = max(call.sequences > 0 ? stated_begin(call, call.sequences) : tokens, begin);
    for (int row = 0; row < begin; ++row) Tiles::fill_row(call, {}, row, channel);
    for (int row = end; row < tokens; ++row) Tiles::fill_row(call, {}, row, channel);
  }

  /// Where windows overlap, all but the newest input are in the one before.
  __device__ static void store_window(const Call& call, const CapturedWindows& windows, int token,
                                      int channel, const Words (&window)[kHistory]) {
    if (kFeatures == Features::kAll && token >= windows.tokens) return;
    T* to = static_cast<T*>(call.windows) + windows.first + token * call.window_token +
            channel * call.window_channel;
    if (token > 0 && call.window_token == call.window_column &&
        call.window_form == StateForm::kChannelVectors) {
      store_words(to + (kHistory - 1) * call.window_column, window[kHistory - 1]);
    } else {
      store_columns<T, kHistory, kDraftGroup>(to, call.window_column, call.window_channel,
                                              call.window_form, window);
    }
  }

  /// The windows after those tokens of a strip whose bits are set; `token` is the number of the
  /// first in its sequence.
  __device__ static void store_windows(const Call& call, const CapturedWindows& windows, int token,
                                       std::uint32_t mask, int channel, const Rows& rows) {
    if (windows.tokens == 0) return;
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      if (mask >> t == 0) break;
      if (kFeatures == Features::kAll && (mask >> t & 1u) == 0) continue;
      store_window(call, windows, token + t, channel,
                   reinterpret_cast<const Words(&)[kHistory]>(rows[t + 1]));
    }
  }

  /// A tile of rows, of which those are left that lie behind the first strip of their sequence.
  __device__ static void convolve_tile(const Call& call, int number, int channel, bool inside) {
    TileRows tile = tile_of(call, number);
    Rows rows;
    DraftTaps taps;
    Tiles::load_tile(call, tile, channel, rows);
    taps.load(call.weights(), channel);
    classify_tile<kHistory>(call, tile);
    if (tile.mask != 0) {
      // They are of the sequence that comes into the tile from before.
      const int sequence = call.has_query_start_loc ? find_sequence(call, tile.first, 0, 1).number
                                                    : tile.stream.sequence;
      const Bounds bounds = rows_of(call, stated_bounds(call, sequence));
      const CapturedWindows windows =
          windows_of<kFeatures>(call, sequence, bounds.begin, bounds.end - bounds.begin);
      if (inside) {
        store_windows(call, windows, tile.first - bounds.begin, tile.mask, channel, rows);
      }
      Tiles::convolve(call, taps, tile.mask, rows, {});
      if (inside) {
        Tiles::store(call, out_at<T>(call, tile.stream, tile.first, channel), tile.mask, rows);
      }
    }
    if (tile.padding != 0 && inside) Tiles::fill_padding(call, tile, channel);
  }

  /// All tokens; the rows of the first strip are there.
  __device__ static void chain(const Call& call, const TileRows& tile,
                               const CapturedWindows& windows, int length, int channel,
                               const DraftTaps& taps, Rows& rows, Gates& gates) {
    for (int base = 0; base < length; base += kTileTokens) {
      const int tokens = min(kTileTokens, length - base);
      TileRows strip = tile;
      strip.first += base;
      if (base > 0) {
        Tiles::load_tokens(call, x_at<T>(call, strip.stream, strip.first, channel), tokens, rows);
        Tiles::load_input_gates(call, strip, channel, gates);
      }
      Tiles::pass_gates(call, strip, channel, kHistory, gates, rows);
      const std::uint32_t mask = tile_rows_between(0, tokens);
      store_windows(call, windows, base, mask, channel, rows);
      Words next[kHistory];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(rows[kTileTokens + k], next[k]);
      Tiles::convolve(call, taps, mask, rows, gates);
      Tiles::store(call, out_at<T>(call, strip.stream, strip.first, channel), mask, rows);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(next[k], rows[k]);
    }
  }
};

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, Features kFeatures>
__global__ void __launch_bounds__(kDraftThreads, resident(kFeatures == Features::kGated
                                                              ? gated_draft_blocks(sizeof(T))
                                                              : draft_blocks(sizeof(T), kWidth)))
    convolve_drafts(const __grid_constant__ Call call) {
  using Kernel = DraftKernel<T, TWeight, kWidth, kActivation, kFeatures>;
  overlap_neighbours(call);
  const std::uint32_t unit = call.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * call.channel_blocks.divisor();
  const int channel = static_cast<int>(block * kDraftThreads + threadIdx.x) * kDraftGroup;
  const int last = call.channels - kDraftGroup;
  const bool splits = kFeatures == Features::kAll && call.heads_begin;
  if (splits && unit >= call.tiles) {
    Kernel::convolve_tile(call, static_cast<int>(unit - call.tiles), min(channel, last),
                          channel <= last);
    return;
  }
  if (channel > last) return;
  if (unit >= call.tiles) {
    Kernel::fill_outside(call, channel);
    return;
  }
  const int sequence = static_cast<int>(unit);
  Beginning beginning;
  typename Kernel::Rows rows;
  typename Kernel::Gates gates;
  const TileRows tile = Kernel::first_strip(call, sequence, channel, beginning, rows, gates);
  if (beginning.state.skipped) {
    if (splits) return;  // tiles do that
    Kernel::fill_sequence(call, sequence, channel);
    return;
  }
  if (beginning.length == 0) return;
  typename Kernel::DraftTaps taps;
  Kernel::Tiles::load_history(call, beginning, channel,
                              reinterpret_cast<typename Kernel::Words(&)[Kernel::kHistory]>(rows));
  taps.load(call.weights(), channel);
  const CapturedWindows windows =
      windows_of<kFeatures>(call, sequence, beginning.first, beginning.length);
  const int chained = splits ? min(beginning.length, kTileTokens) : beginning.length;
  // It may be that none of the tokens stay: then a ring needs all of the history. Windows by slot
  // may lie where the final state finds its history, so that comes first; here it is in registers.
  if constexpr (kFeatures == Features::kAll) {
    Kernel::Tiles::write_states(call, beginning, -Kernel::kHistory, true, channel);
  }
  Kernel::chain(call, tile, windows, chained, channel, taps, rows, gates);
  if constexpr (kFeatures != Features::kAll) {
    Kernel::Tiles::write_states(call, beginning, -Kernel::kHistory, true, channel);
  }
}

}  // namespace shortconv::cuda
