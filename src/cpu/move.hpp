// Single elements and strided runs of elements.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/element.hpp"
#include "op/epilogue.hpp"

namespace shortconv::cpu {

inline float load_f32(DType dtype, const char* address) {
  return static_cast<float>(load_element(dtype, address));
}

inline void store_f32(DType dtype, char* address, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(address, &value, sizeof value);
    return;
  }
  const std::uint16_t bits = dtype == DType::kBF16 ? bf16_from_f32(value) : f16_from_f32(value);
  std::memcpy(address, &bits, sizeof bits);
}

inline float canonical_nan(float value) {
  return std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
}

/// A gated input: the product, rounded to the dtype of the elements, as fp32.
inline float gated_f32(DType dtype, const char* x, const char* gate) {
  const float product = rounded_product(load_f32(dtype, x), load_f32(dtype, gate));
  char element[sizeof(double)];
  store_f32(dtype, element, product);
  return load_f32(dtype, element);
}

template <typename Bits>
inline void copy_strided(const char* from, std::int64_t from_stride, char* to,
                         std::int64_t to_stride, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * to_stride * std::int64_t{sizeof(Bits)},
                from + i * from_stride * std::int64_t{sizeof(Bits)}, sizeof(Bits));
  }
}

/// Copies a run of channels, with strides in elements. Equal dtypes keep all bits, NaN included.
inline void copy_run(const char* from, std::int64_t from_stride, DType from_dtype, char* to,
                     std::int64_t to_stride, DType to_dtype, std::int64_t count) {
  const std::int64_t from_bytes = element_bytes(from_dtype);
  const std::int64_t to_bytes = element_bytes(to_dtype);
  if (from_dtype != to_dtype) {
    for (std::int64_t i = 0; i < count; ++i) {
      store_f32(to_dtype, to + i * to_stride * to_bytes,
                load_f32(from_dtype, from + i * from_stride * from_bytes));
    }
  } else if (from_stride == 1 && to_stride == 1) {
    std::memcpy(to, from, static_cast<std::size_t>(count * from_bytes));
  } else if (from_bytes == 2) {
    copy_strided<std::uint16_t>(from, from_stride, to, to_stride, count);
  } else if (from_bytes == 4) {
    copy_strided<std::uint32_t>(from, from_stride, to, to_stride, count);
  } else {
    copy_strided<std::uint64_t>(from, from_stride, to, to_stride, count);
  }
}

}  // namespace shortconv::cpu
