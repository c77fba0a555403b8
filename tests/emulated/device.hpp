// Built-in functions and types of device code, for the emulated device. Included before each device
// source file with -include.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <source_location>
#include <utility>

#include "block.hpp"

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __noinline__
#define __shared__ static  // one block runs at a time

inline shortconv::emulated::Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};

using std::max;
using std::min;

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __ffs(unsigned value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return static_cast<float>(1 / std::sqrt(static_cast<double>(x))); }

/// Rounds down. The product is exact in fp64.
inline float __fmul_rd(float a, float b) {
  const double exact = static_cast<double>(a) * static_cast<double>(b);
  const auto nearest = static_cast<float>(exact);
  return static_cast<double>(nearest) > exact ? std::nextafter(nearest, -INFINITY) : nearest;
}

/// Byte i of the result is the byte of y:x whose number is digit i of the selector.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned from = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * from) & 0xff) << (8 * i);
  }
  return result;
}

inline unsigned long long atomicAdd(unsigned long long* word, unsigned long long value) {
  return std::exchange(*word, *word + value);
}
inline unsigned long long atomicMin(unsigned long long* word, unsigned long long value) {
  return std::exchange(*word, min(*word, value));
}

// Warp operations, under the rules of block.hpp.
using shortconv::emulated::exchange;
using shortconv::emulated::WarpOperation;
using Place = std::source_location;

inline unsigned __ballot_sync(unsigned mask, bool value, Place place = Place::current()) {
  unsigned result = 0;
  const auto& values = exchange(WarpOperation::kBallot, mask, value, place).values;
  for (unsigned lane = 0; lane < values.size(); ++lane) result |= values[lane] << lane;
  return result;
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, Place place = Place::current()) {
  unsigned result = 0;
  for (const unsigned other : exchange(WarpOperation::kOr, mask, value, place).values)
    result |= other;
  return result;
}
inline int __any_sync(unsigned mask, bool value, Place place = Place::current()) {
  return __reduce_or_sync(mask, value, place) != 0;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, Place place = Place::current()) {
  static_assert(sizeof(T) == sizeof(unsigned));
  const auto& result =
      exchange(WarpOperation::kShuffle, mask, std::bit_cast<unsigned>(value), place);
  const unsigned lane = static_cast<unsigned>(from) % 32;
  if ((result.lanes >> lane & 1) == 0) {
    shortconv::emulated::fail("a shuffle from a lane that has ended");
  }
  return std::bit_cast<T>(result.values[lane]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, Place place = Place::current()) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ distance, place);
}
inline void __syncwarp(unsigned mask = ~0u, Place place = Place::current()) {
  (void)exchange(WarpOperation::kSync, mask, 0, place);
}
inline void __syncthreads(Place place = Place::current()) {
  shortconv::emulated::wait_for_block(place);
}
