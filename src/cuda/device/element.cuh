// Element types on the device. Groups of adjacent elements are loaded and stored as 32-bit words,
// which preserves their bits, and computed with as fp32. Rounding is to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/capability.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv::cuda {

// In code for the device alone the compiler does not report a case that a switch lacks.
static_assert(kDTypes.size() == 3,
              "each switch over DType in src/cuda has all cases; default: f32");

using F32 = float;
using F16 = __half;
using BF16 = __nv_bfloat16;

template <typename T>
inline constexpr DType kDTypeOf = DType::kF32;
template <>
inline constexpr DType kDTypeOf<F16> = DType::kF16;
template <>
inline constexpr DType kDTypeOf<BF16> = DType::kBF16;

/// Number of words of `kElements` adjacent elements.
template <typename T, int kElements>
inline constexpr int kWordsOf = kElements * static_cast<int>(sizeof(T)) / 4;

__device__ inline float to_f32(float value) { return value; }
__device__ inline float to_f32(F16 value) { return __half2float(value); }
__device__ inline float to_f32(BF16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_f32(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (kDTypeOf<T> == DType::kF16) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

/// fp64 to fp32, so that a second rounding to a narrower type gives the same as one rounding would:
/// truncated, with the last bit set if the result is inexact.
__device__ inline float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (!(static_cast<double>(nearest) != value)) return nearest;
  if (value != value) return nearest;
  std::uint32_t bits = __float_as_uint(nearest);
  if (fabs(static_cast<double>(nearest)) > fabs(value)) --bits;
  return __uint_as_float(bits | 1u);
}

/// Elements 2 * pair and 2 * pair + 1 of a group.
template <typename T, int kWords>
__device__ inline float2 unpack_pair(const std::uint32_t (&words)[kWords], int pair) {
  if constexpr (sizeof(T) == 4) {
    return {__uint_as_float(words[2 * pair]), __uint_as_float(words[2 * pair + 1])};
  } else if constexpr (kDTypeOf<T> == DType::kF16) {
    return __half22float2(*reinterpret_cast<const __half2*>(&words[pair]));
  } else {  // a bf16 is the upper half of an fp32
    return {__uint_as_float(words[pair] << 16), __uint_as_float(words[pair] & 0xffff0000u)};
  }
}

template <typename T, int kWords>
__device__ inline void pack_pair(std::uint32_t (&words)[kWords], int pair, float2 values) {
  if constexpr (sizeof(T) == 4) {
    words[2 * pair] = __float_as_uint(values.x);
    words[2 * pair + 1] = __float_as_uint(values.y);
  } else if constexpr (kDTypeOf<T> == DType::kF16) {
    const __half2 packed = __floats2half2_rn(values.x, values.y);
    words[pair] = *reinterpret_cast<const std::uint32_t*>(&packed);
  } else {
    const __nv_bfloat162 packed = __floats2bfloat162_rn(values.x, values.y);
    words[pair] = *reinterpret_cast<const std::uint32_t*>(&packed);
  }
}

/// Transposes kElements * kColumns elements from [element][column], the order of a state pool with
/// columns innermost, to [column][element]. All indices are compile-time constants: one byte
/// permutation per word.
template <typename T, int kColumns, int kElements>
__device__ inline void split_columns(const std::uint32_t (&run)[kColumns * kWordsOf<T, kElements>],
                                     std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
#pragma unroll
    for (int word = 0; word < kWordsOf<T, kElements>; ++word) {
      if constexpr (sizeof(T) == 4) {
        columns[column][word] = run[word * kColumns + column];
      } else {
        const int low = 2 * word * kColumns + column;
        const int high = (2 * word + 1) * kColumns + column;
        columns[column][word] =
            __byte_perm(run[low / 2], run[high / 2],
                        (low % 2 ? 0x0032 : 0x0010) | (high % 2 ? 0x7600 : 0x5400));
      }
    }
  }
}

/// The inverse of split_columns.
template <typename T, int kColumns, int kElements>
__device__ inline void join_columns(
    const std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>],
    std::uint32_t (&run)[kColumns * kWordsOf<T, kElements>]) {
#pragma unroll
  for (int word = 0; word < kColumns * kWordsOf<T, kElements>; ++word) {
    if constexpr (sizeof(T) == 4) {
      run[word] = columns[word % kColumns][word / kColumns];
    } else {
      const int low = 2 * word, high = 2 * word + 1;  // element * kColumns + column
      const int low_element = low / kColumns, high_element = high / kColumns;
      run[word] = __byte_perm(
          columns[low % kColumns][low_element / 2], columns[high % kColumns][high_element / 2],
          (low_element % 2 ? 0x0032 : 0x0010) | (high_element % 2 ? 0x7600 : 0x5400));
    }
  }
}

}  // namespace shortconv::cuda
