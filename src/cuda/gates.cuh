// Gates of groups of adjacent channels, for the kernels that know Features::kGated: an input is
// x * input_gate, rounded to the type of both, wherever it goes; a result is act(a) * output_gate.
// A call may have one or both.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/element.cuh"
#include "cuda/memory.cuh"
#include "op/epilogue.hpp"

namespace shortconv::cuda {

/// The thread's channels in a row of a sequence, or of all packed rows, whose sequence is 0.
template <typename T>
__device__ inline const T* gate_at(const Gate& gate, int sequence, int row, int channel) {
  const T* first = static_cast<const T*>(gate.data) + sequence * gate.sequence + channel;
  return rows_after(first, gate.step, row);
}

template <typename T, int kWords>
__device__ inline void pass_gate(const std::uint32_t (&gate)[kWords],
                                 std::uint32_t (&words)[kWords]) {
#pragma unroll
  for (int pair = 0; pair < kWords * 4 / static_cast<int>(2 * sizeof(T)); ++pair) {
    const float2 x = unpack_pair<T>(words, pair), by = unpack_pair<T>(gate, pair);
    pack_pair<T>(words, pair, {rounded_product(x.x, by.x), rounded_product(x.y, by.y)});
  }
}

}  // namespace shortconv::cuda
