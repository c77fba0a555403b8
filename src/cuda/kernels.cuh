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

template <typename Kernel>
Entry entry(Kernel* kernel) {
  return reinterpret_cast<Entry>(kernel);
}

/// Those of one width; which problems have one is in has_kernels of select.cpp. What an instance
/// knows makes it faster and the library larger. To ask for the activation takes small calls 0.2
/// to 0.5 us, for the type of the weights as well full tiles 30% longer, so only those for rare
/// Features ask, and for the activation alone: 0.5 to 1.2% of a call with snapshots.
template <typename T, typename TWeight, int kWidth, KnownActivation kActivation>
inline const Kernels kTable = [] {
  using enum Features;
  constexpr KnownActivation kAsk = KnownActivation::kAsk;
  constexpr bool kOfModels = is_listed(kModelWidths, kWidth);
  constexpr int kGroup = 16 / sizeof(T), kSmall = kSmallDecodeGroup;
  Kernels kernels{};
  if constexpr (kOfModels || std::is_same_v<T, TWeight>) {
    kernels.tiles = entry(&convolve_tiles<T, TWeight, kWidth, kActivation, kPlain>);
    kernels.decode = entry(&decode_tokens<T, TWeight, kWidth, kActivation, kGroup, kPlain>);
    kernels.small_decode = entry(&decode_tokens<T, TWeight, kWidth, kActivation, kSmall, kPlain>);
    kernels.drafts = entry(&convolve_drafts<T, TWeight, kWidth, kActivation, kPlain>);
  }
  if constexpr (kOfModels && std::is_same_v<T, TWeight>) {
    kernels.gated_tiles = entry(&convolve_tiles<T, TWeight, kWidth, kAsk, kGated>);
    kernels.gated_decode = entry(&decode_tokens<T, TWeight, kWidth, kAsk, kSmall, kGated>);
    kernels.gated_drafts = entry(&convolve_drafts<T, TWeight, kWidth, kAsk, kGated>);
  }
  if constexpr (is_listed(kF32StateWidths, kWidth) && std::is_same_v<T, TWeight> &&
                sizeof(T) == 2) {
    kernels.f32_state_tiles = entry(&convolve_tiles<T, TWeight, kWidth, kAsk, kF32States>);
    kernels.f32_state_decode = entry(&decode_tokens<T, TWeight, kWidth, kAsk, kSmall, kF32States>);
  }
  if constexpr (kOfModels) {
    kernels.full_tiles = entry(&convolve_tiles<T, TWeight, kWidth, kAsk, kAll>);
    kernels.short_sequences = entry(&convolve_short_sequences<T, TWeight, kWidth, kActivation>);
    kernels.small_tiles = entry(&convolve_small_tiles<T, TWeight, kWidth, kActivation>);
    kernels.numbered_tiles = entry(&convolve_numbered_tiles<T, TWeight, kWidth, kActivation>);
    kernels.full_decode = entry(&decode_tokens<T, TWeight, kWidth, kAsk, kGroup, kAll>);
    kernels.ring_decode = entry(&decode_tokens<T, TWeight, kWidth, kActivation, kGroup, kRings>);
    kernels.older_decode = entry(&decode_tokens<T, TWeight, kWidth, kActivation, kSmall, kOlder>);
    kernels.full_drafts = entry(&convolve_drafts<T, TWeight, kWidth, kAsk, kAll>);
    kernels.trees = entry(&convolve_trees<T, TWeight, kWidth, kActivation, kPlain>);
    kernels.full_trees = entry(&convolve_trees<T, TWeight, kWidth, kAsk, kAll>);
    kernels.columns = entry(&convolve_columns<T, kWidth, kActivation>);
    kernels.chunks = entry(&convolve_chunks<T, kWidth>);
  }
  return kernels;
}();

template <typename T, typename TWeight>
const Kernels& select_kernels(int width, Activation activation) {
  const Kernels* kernels = nullptr;
  (void)dispatch(kWidths, width, [&](auto constant) {
    constexpr int kWidth = constant.value;
    kernels = activation == Activation::kSilu ? &kTable<T, TWeight, kWidth, KnownActivation::kSilu>
                                              : &kTable<T, TWeight, kWidth, KnownActivation::kNone>;
  });
  return *kernels;
}

template <typename T>
const Kernels& select_kernels(int width, Activation activation, bool f32_weights) {
  return f32_weights ? select_kernels<T, F32>(width, activation)
                     : select_kernels<T, T>(width, activation);
}

}  // namespace shortconv::cuda
