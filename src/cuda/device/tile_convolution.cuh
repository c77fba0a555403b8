// The inner loop of the tile kernels, in registers, and the stores of its results.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/epilogue.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/tile_rows.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename Shape>
struct TileConvolution {
  using T = typename Shape::T;
  using TState = typename Shape::TState;
  using StateWords = typename Shape::StateWords;
  using Rows = typename Shape::Rows;
  using Gates = typename Shape::Gates;
  using Taps = typename Shape::Taps;
  using Window = typename Shape::Window;
  static constexpr int kWidth = Shape::kWidth, kHistory = Shape::kHistory;

  /// Whether one pass convolves both the sequence that enters a tile and the one that starts in it,
  /// with both histories in registers. Wider windows take one pass for each.
  static constexpr bool kJoinsSequences = kWidth <= kMaxJoinedWidth;
  static constexpr int kNoBoundaryRow = -1;
  /// The last row at which a start may join a pass: kHistory of its tokens must be in the tile.
  static constexpr int kLastBoundaryRow = kJoinsSequences ? kTileTokens - kHistory : 0;

  __device__ static void convolve(const KernelParams& params, const Taps& taps, std::uint32_t mask,
                                  Rows& rows, const Gates& gates) {
    convolve_joined<false>(params, taps, mask, kNoBoundaryRow, nullptr, rows, gates);
  }

  /// From `boundary_row` on, the rows belong to a sequence that starts there after `history`.
  template <bool kMayJoin>
  __device__ static void convolve_joined(const KernelParams& params, const Taps& taps,
                                         std::uint32_t mask, int boundary_row,
                                         const StateWords* history, Rows& rows,
                                         const Gates& gates) {
    convolve_rows(params, taps, mask, rows, gates, [&](int t, int pair, Window& window) {
      if (kMayJoin && t <= kLastBoundaryRow && t == boundary_row) {
#pragma unroll
        for (int k = 0; k < kHistory; ++k) window[k] = unpack_pair<TState>(history[k], pair);
      }
    });
  }

  /// The main loop, in place: results replace rows that are no longer needed. It takes two channels
  /// at a time, so that the fp32 window needs few registers. exchange(row, pair, window) may
  /// replace the inputs before a row.
  template <typename Exchange>
  __device__ static void convolve_rows(const KernelParams& params, const Taps& taps,
                                       std::uint32_t mask, Rows& rows, const Gates& gates,
                                       const Exchange& exchange) {
#pragma unroll
    for (int pair = 0; pair < Shape::kGroup / 2; ++pair) {
      // Never taken, which the compiler cannot prove. Without the branch it interleaves the sums of
      // all pairs and spills some: 71 us instead of 66 for 8192 x 8192 with 16 bytes per thread.
      // The break after half of a strip has the same effect.
      if (pair > 0 && !__any_sync(kFullWarp, mask != 0)) break;
      Window window;
#pragma unroll
      for (int k = 0; k < kHistory; ++k) window[k] = unpack_pair<T>(rows[k], pair);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        if (t == kTileTokens / 2 && mask >> t == 0) break;  // a short sequence is done
        exchange(t, pair, window);
        window[kHistory] = unpack_pair<T>(rows[kHistory + t], pair);
        float2 sum = taps.bias(pair);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          sum.x = __fmaf_rn(taps.tap(k, pair).x, window[k].x, sum.x);
          sum.y = __fmaf_rn(taps.tap(k, pair).y, window[k].y, sum.y);
        }
        float2 operand = window[kHistory];
        if constexpr (Shape::kGated) operand = unpack_pair<T>(gates.output[t], pair);
        pack_pair<T>(rows[t], pair,
                     finish<Shape::kActivation, Shape::kVariant>(params, sum, operand));
#pragma unroll
        for (int k = 0; k < kHistory; ++k) window[k] = window[k + 1];
      }
    }
  }
};

/// Stores of results and padded rows.
template <typename Shape>
struct TileStore {
  using T = typename Shape::T;
  using Words = typename Shape::Words;
  using Rows = typename Shape::Rows;

  /// Stores the results of the rows of the mask.
  __device__ static void store(const KernelParams& params, T* out, std::uint32_t mask,
                               const Rows& rows) {
    if (mask == kAllTileRows) {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t)
        store_words(nth_row(out, params.out_stride_bytes, t), rows[t]);
    } else {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        if (mask >> t & 1u) store_words(nth_row(out, params.out_stride_bytes, t), rows[t]);
      }
    }
  }

  /// Writes a padded row. With a switch the machine code of all kernels changes.
  __device__ static void fill_row(const KernelParams& params, const RowOrigin& origin, int row,
                                  int channel) {
    if (params.padded_rows == PaddedRows::kUntouched) return;
    Words words;
    clear_words(words);
    if (params.padded_rows == PaddedRows::kCopy)
      load_words(x_at<T>(params, origin, row, channel), words);
    store_words(out_at<T>(params, origin, row, channel), words);
  }

  /// Writes the padded rows of a tile.
  __device__ static void fill_padding(const KernelParams& params, const TileRows& tile,
                                      int channel) {
    for (std::uint32_t left = tile.padding; left != 0; left &= left - 1) {
      fill_row(params, tile.origin, tile.first + __ffs(left) - 1, channel);
    }
  }
};

}  // namespace shortconv::cuda
