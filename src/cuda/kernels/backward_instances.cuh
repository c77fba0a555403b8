// Instantiates the kernel of backward.cuh for one element type: every width up to
// kMaxBackwardWidth, without an epilogue for each activation, SiLU without a bias as well. A bias
// takes registers and an addition: 8192 x 8192 bf16 1 us, on an H200.
#pragma once

#include <array>
#include <utility>

#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward.cuh"

namespace shortconv::cuda {

inline constexpr int kMinBackwardWidth = 2;
inline constexpr int kBackwardWidths = kMaxBackwardWidth - kMinBackwardWidth + 1;

template <typename T, int kWidth, CompiledActivation kActivation, bool kHasBias, bool kHasEpilogue>
BackwardKernel backward_instance() {
  using Shape = BackwardShape<T, kWidth, kActivation, kHasBias, kHasEpilogue,
                              backward_group(sizeof(T), kHasEpilogue),
                              backward_stages(sizeof(T), kHasEpilogue)>;
  return {reinterpret_cast<KernelFunction>(&backward_strips<Shape>), 32 * Shape::kGroup,
          RowRing<Shape>::kBytes};
}

/// By width, from kMinBackwardWidth on.
template <typename T, CompiledActivation kActivation, bool kHasBias, bool kHasEpilogue>
BackwardKernel backward_instance_of(int width) {
  static const auto kInstances = []<int... kOffsets>(std::integer_sequence<int, kOffsets...>) {
    return std::array{backward_instance<T, kMinBackwardWidth + kOffsets, kActivation, kHasBias,
                                        kHasEpilogue>()...};
  }(std::make_integer_sequence<int, kBackwardWidths>());
  if (width < kMinBackwardWidth || width > kMaxBackwardWidth) return {};
  return kInstances[static_cast<std::size_t>(width - kMinBackwardWidth)];
}

template <typename T>
BackwardKernel select_backward_instance(const BackwardFeatures& features) {
  const int width = features.width;
  if (features.has_epilogue) {
    return backward_instance_of<T, CompiledActivation::kRuntime, true, true>(width);
  }
  switch (compiled(features.activation)) {
    case CompiledActivation::kNone:
      return backward_instance_of<T, CompiledActivation::kNone, true, false>(width);
    case CompiledActivation::kSilu:
      return features.has_bias
                 ? backward_instance_of<T, CompiledActivation::kSilu, true, false>(width)
                 : backward_instance_of<T, CompiledActivation::kSilu, false, false>(width);
    case CompiledActivation::kRuntime:
      break;
  }
  return {};
}

}  // namespace shortconv::cuda
