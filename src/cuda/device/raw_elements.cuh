// Loads and stores of several elements of one channel, of any dtype and `stride` apart.
//
// What differs between calls is looked up once for all of them, and all are loaded before the first
// is converted: a conversion waits for its load, and the branch to the conversion of a dtype would
// wait with it.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Whether vectors of 16 bytes may be loaded and stored here.
__device__ inline bool is_aligned_run(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

/// The bits of elements of any dtype.
template <int kCount>
struct RawElements {
  std::uint32_t bits[kCount];

  __device__ void load_one(int index, const void* from, int bytes) {
    if (bytes == 4) {
      bits[index] = *static_cast<const std::uint32_t*>(from);
    } else {
      bits[index] = *static_cast<const std::uint16_t*>(from);
    }
  }
  /// Loads the first `count`, `stride_bytes` apart.
  __device__ void load(const char* from, std::int64_t stride_bytes, int bytes, int count) {
    if (bytes == 4) {
      load_as<std::uint32_t>(from, stride_bytes, count);
    } else {
      load_as<std::uint16_t>(from, stride_bytes, count);
    }
  }
  template <typename T>
  __device__ void load_as(const char* from, std::int64_t stride_bytes, int count) {
    if (count == kCount) {
#pragma unroll
      for (int i = 0; i < kCount; ++i, from += stride_bytes) {
        bits[i] = *reinterpret_cast<const T*>(from);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i, from += stride_bytes) {
        if (i < count) bits[i] = *reinterpret_cast<const T*>(from);
      }
    }
  }

  /// Loads adjacent elements: is_aligned_run(from).
  __device__ void load_run(const char* from, int bytes) {
    static_assert(kCount % 8 == 0);
    const auto* vectors = reinterpret_cast<const uint4*>(from);
    if (bytes == 4) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const uint4 four = vectors[i / 4];
        bits[i] = four.x, bits[i + 1] = four.y, bits[i + 2] = four.z, bits[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 8) {
        const uint4 eight = vectors[i / 8];
        const std::uint32_t pairs[] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int k = 0; k < 8; ++k) bits[i + k] = pairs[k / 2] >> (k % 2 * 16) & 0xffffu;
      }
    }
  }
  /// Stores adjacent elements: is_aligned_run(to).
  __device__ void store_run(char* to, int bytes) const {
    auto* vectors = reinterpret_cast<uint4*>(to);
    if (bytes == 4) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        vectors[i / 4] = uint4{bits[i], bits[i + 1], bits[i + 2], bits[i + 3]};
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 8) {
        std::uint32_t pairs[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) pairs[k] = bits[i + 2 * k] | bits[i + 2 * k + 1] << 16;
        vectors[i / 8] = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
      }
    }
  }

  __device__ static float to_value(DType dtype, std::uint32_t bits) {
    switch (dtype) {
      case DType::kF16: {
        const auto half = static_cast<std::uint16_t>(bits);
        return to_f32(reinterpret_cast<const F16&>(half));
      }
      case DType::kBF16:
        return __uint_as_float(bits << 16);
      default:
        return __uint_as_float(bits);
    }
  }
  /// Writes the values of all elements to `values`.
  __device__ void convert(DType dtype, float* values) const {
    switch (dtype) {
      case DType::kF16:
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] = to_value(DType::kF16, bits[i]);
        return;
      case DType::kBF16:
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] = to_value(DType::kBF16, bits[i]);
        return;
      default:
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] = to_value(DType::kF32, bits[i]);
    }
  }
};

/// The bits of a value rounded to `dtype`.
__device__ inline std::uint32_t bits_of(DType dtype, float value) {
  const auto bits_of_half = [](const auto& half) {
    static_assert(sizeof(half) == sizeof(std::uint16_t));
    return std::uint32_t{reinterpret_cast<const std::uint16_t&>(half)};
  };
  switch (dtype) {
    case DType::kF16:
      return bits_of_half(from_f32<F16>(value));
    case DType::kBF16:
      return bits_of_half(from_f32<BF16>(value));
    default:
      return __float_as_uint(value);
  }
}

/// Stores an element of this many bytes.
__device__ inline void store_bits(std::uint32_t bits, int bytes, void* to) {
  if (bytes == 4) {
    *static_cast<std::uint32_t*>(to) = bits;
  } else {
    *static_cast<std::uint16_t*>(to) = static_cast<std::uint16_t>(bits);
  }
}

/// Stores elements [kFirst, count) as they are, `stride_bytes` apart; `to` is that of the first.
template <int kFirst, typename T, int kCount>
__device__ inline void store_raw_as(const RawElements<kCount>& raw, char* to,
                                    std::int64_t stride_bytes, int count) {
  if (count == kCount) {
#pragma unroll
    for (int i = kFirst; i < kCount; ++i, to += stride_bytes) {
      *reinterpret_cast<T*>(to) = static_cast<T>(raw.bits[i]);
    }
  } else {
#pragma unroll
    for (int i = kFirst; i < kCount; ++i, to += stride_bytes) {
      if (i < count) *reinterpret_cast<T*>(to) = static_cast<T>(raw.bits[i]);
    }
  }
}
template <int kFirst = 0, int kCount>
__device__ inline void store_raw(const RawElements<kCount>& raw, int bytes, char* to,
                                 std::int64_t stride_bytes, int count = kCount) {
  if (bytes == 4) {
    store_raw_as<kFirst, std::uint32_t>(raw, to, stride_bytes, count);
  } else {
    store_raw_as<kFirst, std::uint16_t>(raw, to, stride_bytes, count);
  }
}

/// Stores the first `count` values, `stride` elements apart.
template <typename T, int kCount>
__device__ inline void store_elements(const float (&values)[kCount], int count, void* to,
                                      std::int64_t stride) {
  T* address = static_cast<T*>(to);
  if (count == kCount) {
#pragma unroll
    for (int t = 0; t < kCount; ++t, address += stride) *address = from_f32<T>(values[t]);
  } else {
#pragma unroll
    for (int t = 0; t < kCount; ++t, address += stride) {
      if (t < count) *address = from_f32<T>(values[t]);
    }
  }
}

template <int kCount>
__device__ inline void store_elements(DType dtype, const float (&values)[kCount], int count,
                                      void* to, std::int64_t stride) {
  switch (dtype) {
    case DType::kF16:
      return store_elements<F16>(values, count, to, stride);
    case DType::kBF16:
      return store_elements<BF16>(values, count, to, stride);
    default:
      return store_elements<F32>(values, count, to, stride);
  }
}

}  // namespace shortconv::cuda
