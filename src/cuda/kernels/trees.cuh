// Verify with trees: convolves each draft token after its ancestors and writes the intermediate
// states.
//
// Threads: a thread processes 4 adjacent channels of one sequence, as in drafts.cuh. Shared memory
// holds its history and the first rows of its tree, indexed by row; it reads later rows again from
// the caches. The lanes of a warp follow the parents together, each for one token.
//
// Bytes moved: x and out once, the state once, width - 1 inputs for each intermediate state.
// Ceiling: a copy of these bytes.
#pragma once

#include <cstdint>

#include "cuda/kernels/drafts.cuh"

namespace shortconv::cuda {

template <typename Traits>
struct TreeKernel {
  using T = typename Traits::Input;
  using Drafts = DraftKernel<Traits>;
  using Tiles = typename Drafts::Tiles;
  using TState = typename Drafts::TState;
  using Words = typename Drafts::Words;
  using StateWords = typename Drafts::StateWords;
  using Rows = typename Drafts::Rows;
  using DraftTaps = typename Drafts::DraftTaps;
  static constexpr int kWidth = Traits::kWidth, kHistory = Traits::kHistory;
  static constexpr int kStrip = 32;  // tokens, one per lane

  struct Shared {
    static constexpr int kRows = 16;
    // Oldest history first; a thread accesses only its column.
    StateWords rows[kRows][kDraftThreads];
    int window[kDraftThreads / 32][kStrip][kWidth];  // by warp: the row of each input of a window
  };

  /// parent_of of op/sequence.hpp; `parents` is the row of the sequence.
  __device__ static int parent_of(const KernelParams& params, const char* parents, int token) {
    const int parent =
        raw_index(parents, params.parents_dtype, params.parents_stride_bytes, token).value();
    return static_cast<std::uint32_t>(parent) < static_cast<std::uint32_t>(token) ? parent : -1;
  }

  /// Finds the rows of the windows of the tokens from `base` on.
  __device__ static void find_windows(const KernelParams& params, const char* parents, int base,
                                      int length, int (&windows)[kStrip][kWidth]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    __syncwarp();
    if (base + lane < length) {
      int input = base + lane;
#pragma unroll
      for (int k = kHistory; k >= 0; --k) {
        windows[lane][k] = input + kHistory;
        if (k > 0) input = input > 0 ? parent_of(params, parents, input) : input - 1;
      }
    }
    __syncwarp();
  }

  /// Loads the input of a token from x, its row of the sequence's first channels.
  __device__ static void load_input(const KernelParams& params, const TileRows& tile, int token,
                                    int channel, const T* x, StateWords& input) {
    Words words;
    load_words(rows_after(x, params.x_stride_bytes, token), words);
    if constexpr (Traits::kVariant == Variant::kGated) {
      if (params.input_gate.data != nullptr) {
        Words gate;
        load_words(gate_at<T>(params.input_gate, tile.origin.sequence, tile.first + token, channel),
                   gate);
        apply_gate<T>(gate, words);
      }
    }
    to_state<T, TState>(words, input);
  }

  __device__ static void convolve(const KernelParams& params, const TileRows& tile,
                                  const IntermediateRows& intermediate, int token, int channel,
                                  const DraftTaps& taps, const StateWords (&window)[kWidth],
                                  T* out) {
    if (intermediate.tokens > 0) {
      Drafts::store_intermediate(params, intermediate, token, channel,
                                 reinterpret_cast<const typename Drafts::History&>(window[1]));
    }
    Words result, operand;
    if (Traits::kVariant == Variant::kGated && params.output_gate.data != nullptr) {
      load_words(gate_at<T>(params.output_gate, tile.origin.sequence, tile.first + token, channel),
                 operand);
    } else {
      from_state<TState, T>(window[kHistory], operand);
    }
    convolve_window<T, Traits::kActivation, Traits::kVariant, TState>(params, taps, window, operand,
                                                                      result);
    store_words(rows_after(out, params.out_stride_bytes, token), result);
  }

  /// Processes the tokens from `base` on whose windows are in shared memory. kNear: so are all
  /// rows.
  template <bool kNear>
  __device__ static void convolve_strip(const KernelParams& params, const TileRows& tile,
                                        const IntermediateRows& intermediate, int base, int length,
                                        int channel, const DraftTaps& taps, const T* x, T* out,
                                        const Shared& shared) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    const int end = min(base + kStrip, length);
#pragma unroll(kNear ? 2 : 1)
    for (int token = base; token < end; ++token) {
      StateWords window[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const int row = shared.window[warp][token - base][k];
        if (kNear || row < Shared::kRows) {
          copy_words(shared.rows[row][thread], window[k]);
        } else {
          load_input(params, tile, row - kHistory, channel, x, window[k]);
        }
      }
      convolve(params, tile, intermediate, token, channel, taps, window, out);
    }
  }
};

template <typename Traits>
__global__ void __launch_bounds__(kDraftThreads, resident(draft_blocks_of<Traits>()))
    convolve_trees(const __grid_constant__ KernelParams params) {
  using Kernel = TreeKernel<Traits>;
  using T = typename Traits::Input;
  using TState = typename Traits::State;
  constexpr int kHistory = Traits::kHistory;
  constexpr Variant kVariant = Traits::kVariant;
  pdl_wait_and_launch(params);
  const std::uint32_t unit = params.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * params.channel_blocks.divisor();
  const int thread = static_cast<int>(threadIdx.x);
  const int unclamped = (static_cast<int>(block) * kDraftThreads + thread) * kDraftGroup;
  const int channel = min(unclamped, params.channels - kDraftGroup);
  const bool inside = unclamped == channel;  // the other lanes only follow parents
  if (unit >= params.tiles) {
    if (inside) Kernel::Drafts::fill_outside(params, channel);
    return;
  }
  const int sequence = static_cast<int>(unit);
  SequenceStart start;
  typename Kernel::Rows rows;
  typename Kernel::Drafts::Gates gates;
  const TileRows tile = Kernel::Drafts::first_strip(params, sequence, channel, start, rows, gates);
  const int length = start.length;
  if (start.state.skipped) {
    if (inside) Kernel::Drafts::fill_sequence(params, sequence, channel);
    return;
  }
  if (length == 0) return;
  typename Kernel::DraftTaps taps;
  typename Kernel::Drafts::History history;
  Kernel::Drafts::load_history(params, start, channel, history, rows);
  Kernel::Tiles::Gating::apply_inputs(params, kHistory, gates, rows);
  const T* x = x_at<T>(params, tile.origin, tile.first, channel);
  taps.load(params.weights(), channel);
  const IntermediateRows intermediate =
      intermediate_rows<kVariant>(params, sequence, start.first, length);

  __shared__ typename Kernel::Shared shared;
  const char* parents = static_cast<const char*>(params.parents) +
                        sequence * params.parents_sequence_stride *
                            static_cast<int>(element_bytes(params.parents_dtype));
  if (params.has_query_start_loc)
    parents = rows_after(parents, params.parents_stride_bytes, tile.first);
  Kernel::find_windows(params, parents, 0, length, shared.window[thread / 32]);
#pragma unroll
  for (int row = 0; row < Kernel::Tiles::Shape::kRows && row < Kernel::Shared::kRows; ++row) {
    if (!Kernel::Drafts::kHistoryInRows && row < kHistory) {
      copy_words(history[row], shared.rows[row][thread]);
    } else {
      to_state<T, TState>(rows[row], shared.rows[row][thread]);
    }
  }
  T* out = out_at<T>(params, tile.origin, tile.first, channel);
  for (int t = kTileTokens; t < length && kHistory + t < Kernel::Shared::kRows; ++t) {
    Kernel::load_input(params, tile, t, channel, x, shared.rows[kHistory + t][thread]);
  }
  // As in drafts.cuh.
  if constexpr (kVariant == Variant::kExtended) {
    Kernel::Tiles::State::write_states(params, start, -kHistory, inside, channel, channel);
  }
  for (int base = 0; base < length; base += Kernel::kStrip) {
    if (base > 0) Kernel::find_windows(params, parents, base, length, shared.window[thread / 32]);
    if (!inside) continue;
    if (kHistory + length <= Kernel::Shared::kRows) {
      Kernel::template convolve_strip<true>(params, tile, intermediate, base, length, channel, taps,
                                            x, out, shared);
    } else {
      Kernel::template convolve_strip<false>(params, tile, intermediate, base, length, channel,
                                             taps, x, out, shared);
    }
  }
  if constexpr (kVariant != Variant::kExtended) {
    Kernel::Tiles::State::write_states(params, start, -kHistory, inside, channel, channel);
  }
}

}  // namespace shortconv::cuda
