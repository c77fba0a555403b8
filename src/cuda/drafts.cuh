// Verify: draft tokens that follow a state, in a chain or a tree, and the windows they would leave
// behind.
//
// Who owns what: a thread owns 4 adjacent channels (8 or 16 bytes a row) of one sequence, and takes
// its tokens in strips of 8. The windows of a chain are in its registers. The ancestors in a tree
// are read again from the caches, to which the strip's own rows went first. The final state, where
// one is kept, is written last.
//
// Bytes moved: x and out once, the state once, and for each captured window width - 1 inputs (one
// where windows overlap). The ceiling is a copy of these bytes.
#pragma once

#include <cstdint>

#include "cuda/state.cuh"
#include "cuda/tile.cuh"

namespace shortconv::cuda {

template <typename T, typename TWeight, int kWidth, Activation kActivation, Features kFeatures>
struct DraftKernel {
  using Tiles = TileKernel<T, TWeight, kWidth, kActivation, kFeatures>;
  static constexpr int kHistory = kWidth - 1;
  static constexpr int kTogether = 2;  // tokens of a tree
  using Words = typename Tiles::Words;
  using Rows = typename Tiles::Rows;  // history, then tokens
  using DraftTaps = typename Tiles::TileTaps;

  // Not inlined, nor is the next: beside the way of a live sequence they cost 5% of a small call.
  __device__ __noinline__ static void fill_sequence(const Call& call, int sequence, int channel) {
    const Bounds rows = rows_of(call, sequence);
    const int stream = call.has_query_start_loc ? 0 : sequence;
    for (int row = rows.begin; row < rows.end; ++row) Tiles::fill_row(call, stream, row, channel);
  }

  /// Rows before the first sequence and after the last.
  __device__ __noinline__ static void fill_outside(const Call& call, int channel) {
    if (!call.has_query_start_loc) return;
    const int tokens = call.tokens;
    const int begin = call.sequences > 0 ? min(max(stated_begin(call, 0), 0), tokens) : tokens;
    const int end = max(call.sequences > 0 ? stated_begin(call, call.sequences) : tokens, begin);
    for (int row = 0; row < begin; ++row) Tiles::fill_row(call, 0, row, channel);
    for (int row = end; row < tokens; ++row) Tiles::fill_row(call, 0, row, channel);
  }

  /// Where windows overlap, all but the newest input are in the one before.
  __device__ static void store_window(const Call& call, const CapturedWindows& windows, int token,
                                      int channel, const Words (&window)[kHistory]) {
    if (token >= windows.tokens) return;
    T* to = static_cast<T*>(call.windows) + windows.first + token * call.window_token +
            channel * call.window_channel;
    if (token > 0 && call.window_token == call.window_column &&
        call.window_form == StateForm::kChannelVectors) {
      store_words(to + (kHistory - 1) * call.window_column, window[kHistory - 1]);
    } else {
      store_columns<T, kHistory, kTileGroup>(to, call.window_column, call.window_channel,
                                             call.window_form, window);
    }
  }

  __device__ static void chain(const Call& call, const TileRows& tile,
                               const CapturedWindows& windows, int length, int channel,
                               const DraftTaps& taps, Rows& rows) {
    for (int base = 0; base < length; base += kTileTokens) {
      const int tokens = min(kTileTokens, length - base);
      const T* x = x_at<T>(call, tile.stream, tile.first + base, channel);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        if (t == kTileTokens / 2 && tokens <= t) break;
        load_words(rows_after(x, call.x_step, min(t, tokens - 1)), rows[kHistory + t]);
      }
      if (windows.tokens > base) {
#pragma unroll
        for (int t = 0; t < kTileTokens; ++t) {
          if (t >= tokens) break;
          store_window(call, windows, base + t, channel,
                       reinterpret_cast<const Words(&)[kHistory]>(rows[t + 1]));
        }
      }
      Words next[kHistory];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(rows[kTileTokens + k], next[k]);
      const std::uint32_t mask = tile_rows_between(0, tokens);
      Tiles::convolve(call, taps, mask, rows);
      Tiles::store(call, tile, tile.first + base, mask, channel, rows);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(next[k], rows[k]);
    }
  }

  /// The rule of op/sequence.hpp; `parents` of the sequence.
  __device__ static int parent_of(const Call& call, const char* parents, int token) {
    const int parent = stated_index(parents, call.parents_dtype, call.parent_bytes, token);
    return static_cast<std::uint32_t>(parent) < static_cast<std::uint32_t>(token) ? parent : -1;
  }

  __device__ static void tree(const Call& call, const TileRows& tile,
                              const CapturedWindows& windows, int sequence, int length, int channel,
                              const DraftTaps& taps, Rows& rows) {
    const T* x = x_at<T>(call, tile.stream, tile.first, channel);
    T* out = out_at<T>(call, tile.stream, tile.first, channel);
    const char* parents =
        static_cast<const char*>(call.parents) +
        sequence * call.parents_sequence * static_cast<int>(element_bytes(call.parents_dtype));
    if (call.has_query_start_loc) parents = rows_after(parents, call.parent_bytes, tile.first);
    for (int base = 0; base < length; base += kTogether) {
      if (base % kTileTokens == 0) {  // all rows of the strip under way at once
#pragma unroll
        for (int t = 0; t < kTileTokens; ++t) {
          load_words(rows_after(x, call.x_step, min(base + t, length - 1)), rows[kHistory + t]);
        }
      }
      // Several tokens at a time, beyond the end the last one again: the way from a parent to its
      // row is long, and no token waits for another's.
      Words lines[kTogether][kWidth];
      int inputs[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) inputs[i] = min(base + i, length - 1);
#pragma unroll
      for (int k = kHistory; k >= 0; --k) {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (inputs[i] >= 0) {
            load_words(rows_after(x, call.x_step, inputs[i]), lines[i][k]);
          } else {
#pragma unroll
            for (int column = 0; column < kHistory; ++column) {
              if (inputs[i] == column - kHistory) copy_words(rows[column], lines[i][k]);
            }
          }
          if (k > 0) {
            inputs[i] = inputs[i] > 0 ? parent_of(call, parents, inputs[i]) : inputs[i] - 1;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = base + i;
        if (token >= length) break;
        store_window(call, windows, token, channel,
                     reinterpret_cast<const Words(&)[kHistory]>(lines[i][1]));
        Words result;
#pragma unroll
        for (int pair = 0; pair < kTileGroup / 2; ++pair) {
          float2 sum = taps.bias(pair);
#pragma unroll
          for (int k = 0; k < kWidth; ++k) {
            const float2 value = unpack_pair<T>(lines[i][k], pair);
            sum.x = __fmaf_rn(taps.tap(k, pair).x, value.x, sum.x);
            sum.y = __fmaf_rn(taps.tap(k, pair).y, value.y, sum.y);
          }
          const float2 input = unpack_pair<T>(lines[i][kHistory], pair);
          pack_pair<T>(result, pair, finish<kActivation, kFeatures>(call, sum, input));
        }
        store_words(rows_after(out, call.out_step, token), result);
      }
    }
  }
};

template <typename T, typename TWeight, int kWidth, Activation kActivation, Features kFeatures>
__global__ void __launch_bounds__(kDraftThreads,
                                  resident_tiles(sizeof(T), kWidth) * kTileThreads / kDraftThreads)
    convolve_drafts(const __grid_constant__ Call call) {
  using Kernel = DraftKernel<T, TWeight, kWidth, kActivation, kFeatures>;
  if (call.programmatic_launch) overlap_neighbours();
  const std::uint32_t unit = call.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * call.channel_blocks.divisor();
  const int channel = static_cast<int>(block * kDraftThreads + threadIdx.x) * kTileGroup;
  const int last = call.channels - kTileGroup;
  if (channel > last) return;
  if (unit >= call.tiles) {
    Kernel::fill_outside(call, channel);
    return;
  }
  const int sequence = static_cast<int>(unit);
  Beginning beginning;
  const TileRows tile = head_of<kFeatures>(call, sequence, beginning);
  if (beginning.state.skipped) {
    Kernel::fill_sequence(call, sequence, channel);
    return;
  }
  if (beginning.length == 0) return;
  const CapturedWindows windows =
      windows_of<kFeatures>(call, sequence, beginning.first, beginning.length);
  typename Kernel::DraftTaps taps;
  typename Kernel::Rows rows;
  Kernel::Tiles::load_history(call, beginning, channel, rows);
  taps.load(call.weights(), channel);
  if (call.has_parents) {
    Kernel::tree(call, tile, windows, sequence, beginning.length, channel, taps, rows);
  } else {
    Kernel::chain(call, tile, windows, beginning.length, channel, taps, rows);
  }
  // It may be that none of the tokens stay: then a ring needs all of the history.
  Kernel::Tiles::write_states(call, tile, beginning, -Kernel::kHistory, true, channel);
}

}  // namespace shortconv::cuda
