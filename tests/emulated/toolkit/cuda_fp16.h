// Replaces the header of the CUDA toolkit: the part that src/cuda/device/element.cuh uses.
#pragma once

#include "core/element.hpp"

struct __half {
  std::uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half value) { return shortconv::f32_from_f16(value.bits); }
inline __half __float2half_rn(float value) { return {shortconv::f16_from_f32(value)}; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
