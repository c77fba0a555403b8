// Replaces the header of the CUDA toolkit: the part that src/cuda/device/element.cuh uses.
#pragma once

#include "core/element.hpp"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) { return shortconv::f32_from_bf16(value.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {shortconv::bf16_from_f32(value)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
