// The epilogue of the token-major kernels.
#pragma once

#include "cuda/device/activation.cuh"
#include "cuda/kernel_params.hpp"
#include "op/epilogue.hpp"

namespace shortconv::cuda {

/// The results of two channels from their fp32 sums. `operand` is the token's output gate in
/// variant kGated and its input, for the residual, in the others.
template <CompiledActivation kActivation, Variant kVariant>
__device__ inline float2 finish(const KernelParams& params, float2 sum, float2 operand) {
  const float2 y{activate<kActivation>(params.activation, sum.x),
                 activate<kActivation>(params.activation, sum.y)};
  if (kVariant == Variant::kGated && params.output_gate.data != nullptr) {
    return {rounded_product(y.x, operand.x), rounded_product(y.y, operand.y)};
  }
  if (kVariant != Variant::kExtended || !params.residual) return y;
  return {rounded_sum(y.x, operand.x), rounded_sum(y.y, operand.y)};
}

}  // namespace shortconv::cuda
