// Scalar conversions between the element types and fp32 or fp64, each with one rounding to nearest
// even. For the reference backend, tests, and strided elements in the CPU backend; none is
// performance critical.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/device.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

inline float f32_from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t bf16_from_f32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f32_from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  // Shifting the fields and multiplying by 2^112 rebiases both normal and subnormal numbers.
  float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00u) value = std::bit_cast<float>((magnitude << 13) | 0x7f800000u);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
}

inline std::uint16_t f16_from_f32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and above
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns and rounds the subnormal
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {  // rebias by 15 - 127 and round; a carry overflows to infinity
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

// Rounds to odd: truncates and sets the last bit if the result is inexact. A second rounding to a
// narrower type then gives the same result as one rounding from fp64.
inline float f32_round_to_odd(double value) {
  const auto rounded = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(rounded) == value) return rounded;
  auto bits = std::bit_cast<std::uint32_t>(rounded);
  if (std::fabs(static_cast<double>(rounded)) > std::fabs(value)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

inline double load_element(DType dtype, const void* address) {
  switch (dtype) {
    case DType::kF64: {
      double value;
      std::memcpy(&value, address, sizeof value);
      return value;
    }
    case DType::kF32: {
      float value;
      std::memcpy(&value, address, sizeof value);
      return value;
    }
    case DType::kF16: {
      std::uint16_t bits;
      std::memcpy(&bits, address, sizeof bits);
      return f32_from_f16(bits);
    }
    case DType::kBF16: {
      std::uint16_t bits;
      std::memcpy(&bits, address, sizeof bits);
      return f32_from_bf16(bits);
    }
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kBool:
      break;
  }
  return 0;
}

inline void store_element(DType dtype, void* address, double value) {
  switch (dtype) {
    case DType::kF64:
      std::memcpy(address, &value, sizeof value);
      return;
    case DType::kF32: {
      const auto narrow = static_cast<float>(value);
      std::memcpy(address, &narrow, sizeof narrow);
      return;
    }
    case DType::kF16: {
      const std::uint16_t bits = f16_from_f32(f32_round_to_odd(value));
      std::memcpy(address, &bits, sizeof bits);
      return;
    }
    case DType::kBF16: {
      const std::uint16_t bits = bf16_from_f32(f32_round_to_odd(value));
      std::memcpy(address, &bits, sizeof bits);
      return;
    }
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kBool:
      return;
  }
}

// Elements of index tensors, i32 or i64. The host accepts any alignment; the CUDA backend requires
// and checks the natural one.
SHORTCONV_HOST_DEVICE inline std::int64_t load_index(DType dtype, const void* base,
                                                     std::int64_t offset) {
#ifdef __CUDA_ARCH__
  if (dtype == DType::kI64) return static_cast<const std::int64_t*>(base)[offset];
  return static_cast<const std::int32_t*>(base)[offset];
#else
  const auto* address = static_cast<const char*>(base) + offset * element_bytes(dtype);
  if (dtype == DType::kI64) {
    std::int64_t value;
    std::memcpy(&value, address, sizeof value);
    return value;
  }
  std::int32_t value;
  std::memcpy(&value, address, sizeof value);
  return value;
#endif
}

SHORTCONV_HOST_DEVICE inline void store_index(DType dtype, void* base, std::int64_t offset,
                                              std::int64_t value) {
  const auto narrow = static_cast<std::int32_t>(value);
#ifdef __CUDA_ARCH__
  if (dtype == DType::kI64) {
    static_cast<std::int64_t*>(base)[offset] = value;
  } else {
    static_cast<std::int32_t*>(base)[offset] = narrow;
  }
#else
  auto* address = static_cast<char*>(base) + offset * element_bytes(dtype);
  if (dtype == DType::kI64) {
    std::memcpy(address, &value, sizeof value);
  } else {
    std::memcpy(address, &narrow, sizeof narrow);
  }
#endif
}

}  // namespace shortconv
