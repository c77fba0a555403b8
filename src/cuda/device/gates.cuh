// Gates of groups of adjacent channels, in variant kGated. An input is x * input_gate, rounded to
// their dtype before every use. A result is act(a) * output_gate. A call may have one or both.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/kernel_params.hpp"
#include "op/epilogue.hpp"

namespace shortconv::cuda {

/// The thread's channels in a row of a sequence. Packed rows are numbered through, with sequence 0.
template <typename T>
__device__ inline const T* gate_at(const Gate& gate, int sequence, int row, int channel) {
  const T* first = static_cast<const T*>(gate.data) + sequence * gate.sequence_stride + channel;
  return rows_after(first, gate.stride_bytes, row);
}

/// Multiplies a group of channels by its input gate.
template <typename T, int kWords>
__device__ inline void apply_gate(const std::uint32_t (&gate)[kWords],
                                  std::uint32_t (&words)[kWords]) {
#pragma unroll
  for (int pair = 0; pair < kWords * 4 / static_cast<int>(2 * sizeof(T)); ++pair) {
    const float2 x = unpack_pair<T>(words, pair), g = unpack_pair<T>(gate, pair);
    pack_pair<T>(words, pair, {rounded_product(x.x, g.x), rounded_product(x.y, g.y)});
  }
}

}  // namespace shortconv::cuda
