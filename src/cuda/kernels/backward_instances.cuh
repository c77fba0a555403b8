// Instantiates the kernel of backward.cuh for one element type. Adjacent channels: every width up
// to kMaxBackwardWidth, without an epilogue for each activation, SiLU without a bias as well. A
// bias takes registers and an addition: 8192 x 8192 bf16 1 us, on an H200. Calls with states or
// gaps between sequences have instances of their own, because one kernel with the code of both
// spills registers from width 7 on. Other strides: every width up to kMaxChannelStripWidth, without
// an epilogue.
#pragma once

#include <type_traits>
#include <utility>

#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward.cuh"

namespace shortconv::cuda {

inline constexpr int kMinBackwardWidth = 2;

template <typename Strip>
BackwardKernel backward_instance() {
  return {reinterpret_cast<KernelFunction>(&backward_strips<Strip>), 32 * Strip::Shape::kGroup,
          Strip::Rows::kBytes};
}

/// make(constant), with the width as a std::integral_constant, for widths from kMinBackwardWidth to
/// kMaxWidth.
template <int kMaxWidth, typename Make>
BackwardKernel backward_instance_of(int width, const Make& make) {
  BackwardKernel found;
  [&]<int... kOffsets>(std::integer_sequence<int, kOffsets...>) {
    ((width == kMinBackwardWidth + kOffsets
          ? void(found = make(std::integral_constant<int, kMinBackwardWidth + kOffsets>{}))
          : void()),
     ...);
  }(std::make_integer_sequence<int, kMaxWidth - kMinBackwardWidth + 1>());
  return found;
}

template <typename T, CompiledActivation kActivation, bool kHasBias, bool kHasEpilogue>
BackwardKernel row_instance(const BackwardFeatures& features) {
  return backward_instance_of<kMaxBackwardWidth>(features.width, [&](auto constant) {
    using Shape = BackwardShape<T, decltype(constant)::value, kActivation, kHasBias, kHasEpilogue,
                                backward_group(sizeof(T), kHasEpilogue)>;
    if constexpr (kHasBias) {
      if (!features.fits_packed_strips) return backward_instance<SegmentStrip<Shape>>();
    }
    return backward_instance<PackedStrip<Shape>>();
  });
}

template <typename T, CompiledActivation kActivation>
BackwardKernel channel_instance(int width) {
  return backward_instance_of<kMaxChannelStripWidth>(width, [](auto constant) {
    return backward_instance<
        ChannelStrip<BackwardShape<T, decltype(constant)::value, kActivation, true, false, 1>>>();
  });
}

template <typename T>
BackwardKernel select_backward_instance(const BackwardFeatures& features) {
  const int width = features.width;
  if (!features.has_adjacent_channels) {
    if (features.has_epilogue) return {};
    return features.activation == Activation::kSilu
               ? channel_instance<T, CompiledActivation::kSilu>(width)
               : channel_instance<T, CompiledActivation::kRuntime>(width);
  }
  if (features.has_epilogue) {
    return row_instance<T, CompiledActivation::kRuntime, true, true>(features);
  }
  switch (compiled(features.activation)) {
    case CompiledActivation::kNone:
      return row_instance<T, CompiledActivation::kNone, true, false>(features);
    case CompiledActivation::kSilu:
      return features.has_bias || !features.fits_packed_strips
                 ? row_instance<T, CompiledActivation::kSilu, true, false>(features)
                 : row_instance<T, CompiledActivation::kSilu, false, false>(features);
    case CompiledActivation::kRuntime:
      break;
  }
  return {};
}

}  // namespace shortconv::cuda
