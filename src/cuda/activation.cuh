// The activation in fp32 on the device.
//
// silu(a) = a / (1 + exp(-a)) costs two operations of the special function unit, 2^t and 1/d, and
// five more. With t = -a * log2(e) rounded to fp32, 2^t alone would be off by up to |t| * 2^-24 *
// ln2 = 5e-6 at a = -80; c = -a - t * ln2 is what the rounding lost, and 2^t * (1 + c) makes it
// good. Rounding t down makes c positive where it matters, so that it may saturate at 0 and 1: that
// turns the NaN which an infinite a would leave in c into 0. Relative error below 1e-6 for |a| <=
// 80 (tests/gpu/silu_test.cu). In a prototype on an H200, 8192 x 8192 bf16, width 4: with a minimum
// against infinity instead of the saturation 69.3 us; without any correction, and too
// inexact, 68.9; the exponential as a polynomial 85.8; one reciprocal for two elements 77.5; no
// activation 67.5.
#pragma once

#include "cuda/arithmetic.cuh"
#include "cuda/sequence.cuh"
#include "op/epilogue.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::cuda {

__device__ inline float silu(float a) {
  constexpr float kMinusLog2e = -1.44269504f;
  constexpr float kMinusLn2 = -0.693147182f;
  const float t = __fmul_rd(a, kMinusLog2e);
  const float c = multiply_add_saturated(t, kMinusLn2, -a);
  const float d = __fmaf_rn(exp2_approximate(t), __fadd_rn(c, 1.0f), 1.0f);
  return a * reciprocal_approximate(d);
}

/// What an instance of a kernel knows of the activation. Plain tiles that ask spill 24 bytes of
/// their rows (bf16, width 4) and wait for them between the loads.
enum class KnownActivation : std::uint8_t { kNone, kSilu, kAsk };

template <KnownActivation kActivation>
__device__ inline float activate(Activation asked, float sum) {
  if constexpr (kActivation == KnownActivation::kAsk) {
    return asked == Activation::kSilu ? silu(sum) : sum;
  } else {
    return kActivation == KnownActivation::kSilu ? silu(sum) : sum;
  }
}

/// Of two channels: what becomes of their sums; `operand` is the token's output gate where there
/// are gates, and otherwise its input.
template <KnownActivation kActivation, Features kFeatures>
__device__ inline float2 finish(const Call& call, float2 sum, float2 operand) {
  const float2 y{activate<kActivation>(call.activation, sum.x),
                 activate<kActivation>(call.activation, sum.y)};
  if (kFeatures == Features::kGated && call.output_gate.data != nullptr) {
    return {rounded_product(y.x, operand.x), rounded_product(y.y, operand.y)};
  }
  if (kFeatures != Features::kAll || !call.residual) return y;
  return {rounded_sum(y.x, operand.x), rounded_sum(y.y, operand.y)};
}

}  // namespace shortconv::cuda
