// Compile-time properties of an instance of the token-major kernels.
#pragma once

#include <cstddef>

#include "cuda/device/activation.cuh"
#include "cuda/launch_params.hpp"

namespace shortconv::cuda {

template <typename InputType, typename WeightType, typename StateType, int kTaps,
          CompiledActivation kAct, Variant kKernelVariant>
struct KernelTraits {
  using Input = InputType;    // x, gates and out
  using Weight = WeightType;  // weights and bias
  using State = StateType;    // state and intermediate_states
  static constexpr int kWidth = kTaps;
  static constexpr int kHistory = kTaps - 1;
  static constexpr std::size_t kInputBytes = sizeof(InputType);
  static constexpr CompiledActivation kActivation = kAct;
  static constexpr Variant kVariant = kKernelVariant;
};

}  // namespace shortconv::cuda
