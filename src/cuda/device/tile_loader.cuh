// Loads of the tile kernels: rows of x and gates, from global memory into the registers of a
// thread.
#pragma once

#include <cstdint>

#include "cuda/device/gates.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/tile_rows.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename Shape>
struct TileLoader {
  using T = typename Shape::T;
  using Rows = typename Shape::Rows;
  static constexpr int kHistory = Shape::kHistory, kRows = Shape::kRows;

  /// Loads the rows of a tile and the history before them. row_at(row) is the address of a row. The
  /// nearest existing row replaces one that does not exist; no row of the mask uses it.
  template <typename RowAt>
  __device__ static void load_strip(const KernelParams& params, int first,
                                    std::int32_t stride_bytes, const RowAt& row_at, Rows& rows) {
    if (first >= kHistory && first + kTileTokens <= params.tokens) {
      const T* from = row_at(first - kHistory);
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_words(nth_row(from, stride_bytes, i), rows[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        load_words(row_at(min(max(first - kHistory + i, 0), params.tokens - 1)), rows[i]);
      }
    }
  }

  __device__ static void load_tile(const KernelParams& params, const TileRows& tile, int channel,
                                   Rows& rows) {
    const auto row_at = [&](int row) { return x_at<T>(params, tile.origin, row, channel); };
    load_strip(params, tile.first, params.x_stride_bytes, row_at, rows);
  }

  /// Loads the rows of a tile to the place of its results, for a copy.
  __device__ static void load_rows(const KernelParams& params, const TileRows& tile, int channel,
                                   Rows& rows) {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      load_words(x_at<T>(params, tile.origin, min(tile.first + t, params.tokens - 1), channel),
                 rows[t]);
    }
  }

  /// Loads 1 to 8 rows from x on. The last one replaces the others.
  __device__ static void load_tokens(const KernelParams& params, const T* x, int tokens,
                                     Rows& rows) {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      if (t == kTileTokens / 2 && tokens <= t) break;
      load_words(rows_after(x, params.x_stride_bytes, min(t, tokens - 1)), rows[kHistory + t]);
    }
  }
};

/// Gates of a strip. The functions are empty in variants other than kGated.
template <typename Shape>
struct TileGates {
  using T = typename Shape::T;
  using Words = typename Shape::Words;
  using Rows = typename Shape::Rows;
  using Gates = typename Shape::Gates;

  __device__ static void load_inputs(const KernelParams& params, const TileRows& tile, int channel,
                                     Gates& gates) {
    if constexpr (Shape::kGated) {
      const Gate& gate = params.input_gate;
      if (gate.data == nullptr) return;
      const auto row_at = [&](int row) {
        return gate_at<T>(gate, tile.origin.sequence, row, channel);
      };
      TileLoader<Shape>::load_strip(params, tile.first, gate.stride_bytes, row_at, gates.input);
    }
  }

  /// Loads the output gates, then multiplies the rows of x by their input gates, from row `first`
  /// of the strip.
  __device__ static void apply(const KernelParams& params, const TileRows& tile, int channel,
                               int first, Gates& gates, Rows& rows) {
    if constexpr (Shape::kGated) {
      const Gate& gate = params.output_gate;
      if (gate.data != nullptr) {
#pragma unroll
        for (int t = 0; t < kTileTokens; ++t) {
          const int row = min(tile.first + t, params.tokens - 1);
          load_words(gate_at<T>(gate, tile.origin.sequence, row, channel), gates.output[t]);
        }
      }
      apply_inputs(params, first, gates, rows);
    }
  }

  /// Multiplies the rows of x by their input gates, from row `first` of the strip.
  __device__ static void apply_inputs(const KernelParams& params, int first, const Gates& gates,
                                      Rows& rows) {
    if constexpr (Shape::kGated) {
      if (params.input_gate.data == nullptr) return;
#pragma unroll
      for (int i = 0; i < Shape::kRows; ++i) {
        if (i >= first) apply_gate<T>(gates.input[i], rows[i]);
      }
    }
  }

  /// Multiplies rows of a sequence outside of the strip by their input gates, from `row` on.
  template <int kCount>
  __device__ static void apply_to_rows(const KernelParams& params, int sequence, int row,
                                       int channel, Words (&rows)[kCount]) {
    if constexpr (Shape::kGated) {
      if (params.input_gate.data == nullptr) return;
      const int batch_row = params.has_query_start_loc ? 0 : sequence;
      const T* from = gate_at<T>(params.input_gate, batch_row, row, channel);
      Words gates[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        load_words(nth_row(from, params.input_gate.stride_bytes, i), gates[i]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) apply_gate<T>(gates[i], rows[i]);
    }
  }
};

}  // namespace shortconv::cuda
