// Replaces src/cuda/device/arithmetic.cuh on the emulated device. More exact than the hardware; the
// results are compared with the same bounds.
#pragma once

#include <algorithm>
#include <cmath>

namespace shortconv::cuda {

inline float exp2_approximate(float value) { return std::exp2(value); }

inline float reciprocal_approximate(float value) { return 1.0f / value; }

/// NaN becomes 0.
inline float multiply_add_saturated(float a, float b, float c) {
  const float sum = std::fma(a, b, c);
  return sum > 0.0f ? std::min(sum, 1.0f) : 0.0f;
}

}  // namespace shortconv::cuda
