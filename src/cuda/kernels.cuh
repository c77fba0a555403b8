// The table of one element type's kernels, instantiated from the list of widths.
#pragma once

#include <type_traits>

#include "core/dispatch.hpp"
#include "cuda/chunk.cuh"
#include "cuda/columns.cuh"
#include "cuda/decode.cuh"
#include "cuda/drafts.cuh"
#include "cuda/kernels.hpp"
#include "cuda/numbered.cuh"
#include "cuda/tile.cuh"
#include "cuda/trees.cuh"

namespace shortconv::cuda {

/// There are none with other weights: the kernel they stand for has none either.
template <typename T, typename TWeight, int kWidth, Activation kActivation>
Entry chunks_entry() {
  if constexpr (std::is_same_v<T, TWeight>) {
    return reinterpret_cast<Entry>(&convolve_chunks<T, kWidth, kActivation>);
  } else {
    return nullptr;
  }
}

template <typename T, typename TWeight, int kWidth, Activation kActivation>
inline const Kernels kTable{
    .tiles =
        reinterpret_cast<Entry>(&convolve_tiles<T, TWeight, kWidth, kActivation, Features::kPlain>),
    .full_tiles =
        reinterpret_cast<Entry>(&convolve_tiles<T, TWeight, kWidth, kActivation, Features::kAll>),
    .short_sequences = reinterpret_cast<Entry>(
        &convolve_short_sequences<T, TWeight, kWidth, kActivation, Features::kPlain>),
    .small_tiles = reinterpret_cast<Entry>(
        &convolve_small_tiles<T, TWeight, kWidth, kActivation, Features::kPlain>),
    .numbered_tiles =
        reinterpret_cast<Entry>(&convolve_numbered_tiles<T, TWeight, kWidth, kActivation>),
    .decode = reinterpret_cast<Entry>(
        &decode_tokens<T, TWeight, kWidth, kActivation, 16 / sizeof(T), Features::kPlain>),
    .full_decode = reinterpret_cast<Entry>(
        &decode_tokens<T, TWeight, kWidth, kActivation, 16 / sizeof(T), Features::kAll>),
    .ring_decode = reinterpret_cast<Entry>(
        &decode_tokens<T, TWeight, kWidth, kActivation, 16 / sizeof(T), Features::kRings>),
    .older_decode = reinterpret_cast<Entry>(
        &decode_tokens<T, TWeight, kWidth, kActivation, 16 / sizeof(T), Features::kOlder>),
    .small_decode = reinterpret_cast<Entry>(
        &decode_tokens<T, TWeight, kWidth, kActivation, kSmallDecodeGroup, Features::kPlain>),
    .small_older_decode = reinterpret_cast<Entry>(
        &decode_tokens<T, TWeight, kWidth, kActivation, kSmallDecodeGroup, Features::kOlder>),
    .drafts = reinterpret_cast<Entry>(
        &convolve_drafts<T, TWeight, kWidth, kActivation, Features::kPlain>),
    .full_drafts =
        reinterpret_cast<Entry>(&convolve_drafts<T, TWeight, kWidth, kActivation, Features::kAll>),
    .trees =
        reinterpret_cast<Entry>(&convolve_trees<T, TWeight, kWidth, kActivation, Features::kPlain>),
    .full_trees =
        reinterpret_cast<Entry>(&convolve_trees<T, TWeight, kWidth, kActivation, Features::kAll>),
    .columns = reinterpret_cast<Entry>(&convolve_columns<T, kWidth, kActivation>),
    .chunks = chunks_entry<T, TWeight, kWidth, kActivation>(),
};

template <typename T, typename TWeight>
const Kernels& select_kernels(int width, Activation activation) {
  const Kernels* kernels = nullptr;
  (void)dispatch(kWidths, width, [&](auto constant) {
    constexpr int kWidth = constant.value;
    kernels = activation == Activation::kSilu ? &kTable<T, TWeight, kWidth, Activation::kSilu>
                                              : &kTable<T, TWeight, kWidth, Activation::kNone>;
  });
  return *kernels;
}

template <typename T>
const Kernels& select_kernels(int width, Activation activation, bool f32_weights) {
  return f32_weights ? select_kernels<T, F32>(width, activation)
                     : select_kernels<T, T>(width, activation);
}

}  // namespace shortconv::cuda
