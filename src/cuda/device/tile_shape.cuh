// Types and constants of a thread of the tile kernels: a strip of 8 rows of kGroup channels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/activation.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/taps.cuh"
#include "cuda/device/tile_rows.cuh"
#include "cuda/device/traits.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename Traits, int kThreads, int kChannelGroup>
struct TileShape {
  using T = typename Traits::Input;
  using TState = typename Traits::State;
  static constexpr CompiledActivation kActivation = Traits::kActivation;
  static constexpr Variant kVariant = Traits::kVariant;
  static constexpr bool kGated = kVariant == Variant::kGated;
  static constexpr int kGroup = kChannelGroup;
  static constexpr int kWidth = Traits::kWidth;
  static constexpr int kHistory = Traits::kHistory;
  static constexpr int kRows = kHistory + kTileTokens;
  static constexpr int kWords = kWordsOf<T, kGroup>;
  static_assert(kHistory <= kTileTokens, "a tile must find every window in x");

  using Channels = TileChannels<kThreads, kGroup>;
  using Words = std::uint32_t[kWords];
  using StateWords = std::uint32_t[kWordsOf<TState, kGroup>];
  using Rows = Words[kRows];  // oldest history first; the results replace the first rows
  using Window = float2[kWidth];
  using Taps = shortconv::cuda::Taps<typename Traits::Weight, kWidth, kGroup>;

  /// Gates of the strip. Input gates are loaded together with the rows of x. Output gates are
  /// loaded once the rows' sequences are known.
  struct SomeGates {
    Rows input;
    Words output[kTileTokens];
  };
  struct NoGates {};
  using Gates = std::conditional_t<kGated, SomeGates, NoGates>;
};

}  // namespace shortconv::cuda
