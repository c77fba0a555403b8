// Verify of draft trees: a token comes after its ancestors, whichever rows they are.
//
// Who owns what: a thread owns 4 adjacent channels of one sequence, as in drafts.cuh. Its history
// and the first rows of its tree stand in shared memory, where it finds them by number; rows
// further on it reads again from the caches. Which rows a token's line consists of, all lanes of
// a warp find out at once, each for another token.
//
// Bytes moved: x and out once, the state once, width - 1 inputs for each captured window. The
// ceiling is a copy of these bytes.
#pragma once

#include <cstdint>

#include "cuda/drafts.cuh"

namespace shortconv::cuda {

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, Features kFeatures>
struct TreeKernel {
  using Drafts = DraftKernel<T, TWeight, kWidth, kActivation, kFeatures>;
  using Tiles = typename Drafts::Tiles;
  using Words = typename Drafts::Words;
  using Rows = typename Drafts::Rows;
  using DraftTaps = typename Drafts::DraftTaps;
  static constexpr int kHistory = kWidth - 1;
  static constexpr int kStrip = 32;  // tokens, one for each lane

  struct Shared {
    static constexpr int kRows = 16;
    Words rows[kRows][kDraftThreads];  // from the oldest of the history; each thread sees its own
    int line[kDraftThreads / 32][kStrip][kWidth];  // numbers of rows, for each warp
  };

  /// The rule of op/sequence.hpp; `parents` of the sequence.
  __device__ static int parent_of(const Call& call, const char* parents, int token) {
    const int parent = stated_index(parents, call.parents_dtype, call.parent_bytes, token).value();
    return static_cast<std::uint32_t>(parent) < static_cast<std::uint32_t>(token) ? parent : -1;
  }

  /// Lines of the tokens from `base` on.
  __device__ static void find_lines(const Call& call, const char* parents, int base, int length,
                                    int (&lines)[kStrip][kWidth]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    __syncwarp();
    if (base + lane < length) {
      int input = base + lane;
#pragma unroll
      for (int k = kHistory; k >= 0; --k) {
        lines[lane][k] = input + kHistory;
        if (k > 0) input = input > 0 ? parent_of(call, parents, input) : input - 1;
      }
    }
    __syncwarp();
  }

  __device__ static void convolve(const Call& call, const CapturedWindows& windows, int token,
                                  int channel, const DraftTaps& taps, const Words (&line)[kWidth],
                                  T* out) {
    if (windows.tokens > 0) {
      Drafts::store_window(call, windows, token, channel,
                           reinterpret_cast<const Words(&)[kHistory]>(line[1]));
    }
    Words result;
    convolve_window<T, kActivation, kFeatures>(call, taps, line, line[kHistory], result);
    store_words(rows_after(out, call.out_step, token), result);
  }

  /// The tokens from `base` on whose lines are known; kNear: all rows are in shared memory.
  template <bool kNear>
  __device__ static void convolve_strip(const Call& call, const CapturedWindows& windows, int base,
                                        int length, int channel, const DraftTaps& taps, const T* x,
                                        T* out, const Shared& shared) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    const int end = min(base + kStrip, length);
#pragma unroll(kNear ? 2 : 1)
    for (int token = base; token < end; ++token) {
      Words line[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const int row = shared.line[warp][token - base][k];
        if (kNear || row < Shared::kRows) {
          copy_words(shared.rows[row][thread], line[k]);
        } else {
          load_words(rows_after(x, call.x_step, row - kHistory), line[k]);
        }
      }
      convolve(call, windows, token, channel, taps, line, out);
    }
  }
};

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, Features kFeatures>
__global__ void __launch_bounds__(kDraftThreads, resident(draft_blocks(sizeof(T), kWidth)))
    convolve_trees(const __grid_constant__ Call call) {
  using Kernel = TreeKernel<T, TWeight, kWidth, kActivation, kFeatures>;
  constexpr int kHistory = kWidth - 1;
  overlap_neighbours(call);
  const std::uint32_t unit = call.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * call.channel_blocks.divisor();
  const int thread = static_cast<int>(threadIdx.x);
  const int wanted = (static_cast<int>(block) * kDraftThreads + thread) * kDraftGroup;
  const int channel = min(wanted, call.channels - kDraftGroup);
  const bool inside = wanted == channel;  // the other lanes help to find the lines
  if (unit >= call.tiles) {
    if (inside) Kernel::Drafts::fill_outside(call, channel);
    return;
  }
  const int sequence = static_cast<int>(unit);
  Beginning beginning;
  typename Kernel::Rows rows;
  typename Kernel::Drafts::Gates none;
  const TileRows tile = Kernel::Drafts::first_strip(call, sequence, channel, beginning, rows, none);
  const int length = beginning.length;
  if (beginning.state.skipped) {
    if (inside) Kernel::Drafts::fill_sequence(call, sequence, channel);
    return;
  }
  if (length == 0) return;
  typename Kernel::DraftTaps taps;
  Kernel::Tiles::load_history(call, beginning, channel,
                              reinterpret_cast<typename Kernel::Words(&)[kHistory]>(rows));
  const T* x = x_at<T>(call, tile.stream, tile.first, channel);
  taps.load(call.weights(), channel);
  const CapturedWindows windows = windows_of<kFeatures>(call, sequence, beginning.first, length);

  __shared__ typename Kernel::Shared shared;
  const char* parents =
      static_cast<const char*>(call.parents) +
      sequence * call.parents_sequence * static_cast<int>(element_bytes(call.parents_dtype));
  if (call.has_query_start_loc) parents = rows_after(parents, call.parent_bytes, tile.first);
  Kernel::find_lines(call, parents, 0, length, shared.line[thread / 32]);
#pragma unroll
  for (int row = 0; row < Kernel::Tiles::kRows && row < Kernel::Shared::kRows; ++row) {
    copy_words(rows[row], shared.rows[row][thread]);
  }
  T* out = out_at<T>(call, tile.stream, tile.first, channel);
  for (int t = kTileTokens; t < length && kHistory + t < Kernel::Shared::kRows; ++t) {
    load_words(rows_after(x, call.x_step, t), rows[0]);
    copy_words(rows[0], shared.rows[kHistory + t][thread]);
  }
  // As in drafts.cuh.
  if constexpr (kFeatures == Features::kAll) {
    Kernel::Tiles::write_states(call, beginning, -kHistory, inside, channel);
  }
  for (int base = 0; base < length; base += Kernel::kStrip) {
    if (base > 0) Kernel::find_lines(call, parents, base, length, shared.line[thread / 32]);
    if (!inside) continue;
    if (kHistory + length <= Kernel::Shared::kRows) {
      Kernel::template convolve_strip<true>(call, windows, base, length, channel, taps, x, out,
                                            shared);
    } else {
      Kernel::template convolve_strip<false>(call, windows, base, length, channel, taps, x, out,
                                             shared);
    }
  }
  if constexpr (kFeatures != Features::kAll) {
    Kernel::Tiles::write_states(call, beginning, -kHistory, inside, channel);
  }
}

}  // namespace shortconv::cuda
