// Instantiates the kernel of backward.cuh for one element type: every width up to
// kMaxBackwardWidth, without an epilogue for each activation.
#pragma once

#include <array>
#include <utility>

#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward.cuh"

namespace shortconv::cuda {

inline constexpr int kMinBackwardWidth = 2;
inline constexpr int kBackwardWidths = kMaxBackwardWidth - kMinBackwardWidth + 1;

template <typename T, int kWidth, CompiledActivation kActivation, bool kHasEpilogue>
BackwardKernel backward_instance() {
  using Shape =
      BackwardShape<T, kWidth, kActivation, kHasEpilogue, backward_group(sizeof(T), kHasEpilogue),
                    backward_stages(sizeof(T), kHasEpilogue)>;
  return {reinterpret_cast<KernelFunction>(&backward_strips<Shape>), 32 * Shape::kGroup,
          RowRing<Shape>::kBytes};
}

/// By width, from kMinBackwardWidth on.
template <typename T, CompiledActivation kActivation, bool kHasEpilogue>
BackwardKernel backward_instance_of(int width) {
  static const auto kInstances = []<int... kOffsets>(std::integer_sequence<int, kOffsets...>) {
    return std::array{
        backward_instance<T, kMinBackwardWidth + kOffsets, kActivation, kHasEpilogue>()...};
  }(std::make_integer_sequence<int, kBackwardWidths>());
  if (width < kMinBackwardWidth || width > kMaxBackwardWidth) return {};
  return kInstances[static_cast<std::size_t>(width - kMinBackwardWidth)];
}

template <typename T>
BackwardKernel select_backward_instance(int width, Activation activation, bool has_epilogue) {
  if (has_epilogue) return backward_instance_of<T, CompiledActivation::kRuntime, true>(width);
  switch (compiled(activation)) {
    case CompiledActivation::kNone:
      return backward_instance_of<T, CompiledActivation::kNone, false>(width);
    case CompiledActivation::kSilu:
      return backward_instance_of<T, CompiledActivation::kSilu, false>(width);
    case CompiledActivation::kRuntime:
      break;
  }
  return {};
}

}  // namespace shortconv::cuda
