// The activation in fp32.
//
// silu(a) = a / (1 + exp(-a)) takes two operations of the special function unit, 2^t and 1/d, and
// five others. With t = -a * log2(e) rounded to fp32, 2^t alone has an error of up to |t| * 2^-24 *
// ln2 = 5e-6 at a = -80. c = -a - t * ln2 is the rounding error of t, and the factor 1 + c corrects
// it. t is rounded down, so c is positive where it matters and can saturate to [0, 1]: saturation
// turns the NaN that an infinite a produces in c into 0. The relative error is below 1e-6 for |a|
// <= 80 (tests/gpu/silu_test.cu).
//
// A prototype on an H200, 8192 x 8192 bf16, width 4, in us:
//   minimum against infinity instead of the saturation  69.3
//   no correction, which is too inexact                 68.9
//   exponential as a polynomial                         85.8
//   one reciprocal for two elements                     77.5
//   no activation                                       67.5
//
// The derivative takes the same two and seven others.
#pragma once

#include "core/capability.hpp"
#include "cuda/device/arithmetic.cuh"
#include "shortconv/problem.hpp"

namespace shortconv::cuda {

// In code for the device alone the compiler does not report a case that a switch lacks.
static_assert(kActivations.size() == 2, "each switch over Activation in src/cuda has all cases");

__device__ inline float silu(float a) {
  constexpr float kMinusLog2e = -1.44269504f;
  constexpr float kMinusLn2 = -0.693147182f;
  const float t = __fmul_rd(a, kMinusLog2e);
  const float c = multiply_add_saturated(t, kMinusLn2, -a);
  const float d = __fmaf_rn(exp2_approximate(t), __fadd_rn(c, 1.0f), 1.0f);
  return a * reciprocal_approximate(d);
}

/// An activation and its derivative.
struct Activated {
  float value, slope;
};

/// a * s and s * (1 + a * (1 - s)), with s = 1 / (1 + e) and e = exp(-a), computed as in silu.
/// 1 - s would cancel, so it is e * s. Below -88.7 e is infinite and s is 0: saturation turns the
/// NaN of their product into 0, and the slope is 0, as from -87.4 on down.
__device__ inline Activated silu_slope(float a) {
  constexpr float kMinusLog2e = -1.44269504f;
  constexpr float kMinusLn2 = -0.693147182f;
  const float t = __fmul_rd(a, kMinusLog2e);
  const float c = multiply_add_saturated(t, kMinusLn2, -a);
  const float power = exp2_approximate(t);
  const float e = __fmaf_rn(power, c, power);
  const float s = reciprocal_approximate(__fadd_rn(e, 1.0f));
  const float rest = multiply_add_saturated(e, s, 0.0f);
  return {__fmul_rn(a, s), __fmaf_rn(a, __fmul_rn(rest, s), s)};
}

__device__ inline Activated activate_with_slope(Activation activation, float sum) {
  switch (activation) {
    case Activation::kNone:
      return {sum, 1.0f};
    case Activation::kSilu:
      return silu_slope(sum);
  }
  return {sum, 1.0f};
}

__device__ inline float activate(Activation activation, float sum) {
  switch (activation) {
    case Activation::kNone:
      return sum;
    case Activation::kSilu:
      return silu(sum);
  }
  return sum;
}

/// The activation of an instance: a constant or a parameter. With kRuntime, base tiles spill 24
/// bytes of their rows (bf16, width 4) and wait for them between the loads.
enum class CompiledActivation : std::uint8_t { kNone, kSilu, kRuntime };

constexpr CompiledActivation compiled(Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return CompiledActivation::kNone;
    case Activation::kSilu:
      return CompiledActivation::kSilu;
  }
  return CompiledActivation::kRuntime;
}

/// The activation that an instance computes.
template <CompiledActivation kActivation>
__device__ constexpr Activation activation_of(Activation runtime) {
  if (kActivation == CompiledActivation::kRuntime) return runtime;
  for (const auto& [activation, name] : kActivations) {
    if (compiled(activation) == kActivation) return activation;
  }
  return Activation::kNone;
}

template <CompiledActivation kActivation>
__device__ inline float activate(Activation runtime, float sum) {
  if constexpr (kActivation == CompiledActivation::kRuntime) {
    return activate(runtime, sum);
  } else {
    constexpr Activation kKnown = activation_of<kActivation>(Activation::kNone);
    return activate(kKnown, sum);
  }
}

template <CompiledActivation kActivation>
__device__ inline Activated activate_with_slope(Activation runtime, float sum) {
  if constexpr (kActivation == CompiledActivation::kRuntime) {
    return activate_with_slope(runtime, sum);
  } else {
    constexpr Activation kKnown = activation_of<kActivation>(Activation::kNone);
    return activate_with_slope(kKnown, sum);
  }
}

}  // namespace shortconv::cuda
