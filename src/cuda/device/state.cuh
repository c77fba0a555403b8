// Loads and stores of the columns of a slot for a group of adjacent channels. By layout of the
// pool:
//   channels innermost              one vector per column
//   columns innermost without gaps  one run of [channel][column], transposed in registers
//   any other                       element by element
// Bits are preserved. T is the dtype of the states.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/sequence.cuh"
#include "cuda/kernel_params.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Converts inputs to the dtype of the states: exact, since that is theirs or fp32.
template <typename T, typename TState, int kWords, int kStateWords>
__device__ inline void to_state(const std::uint32_t (&input)[kWords],
                                std::uint32_t (&words)[kStateWords]) {
  if constexpr (std::is_same_v<T, TState>) {
    copy_words(input, words);
  } else {
#pragma unroll
    for (int pair = 0; pair < kStateWords / 2; ++pair) {
      pack_pair<TState>(words, pair, unpack_pair<T>(input, pair));
    }
  }
}

/// The reverse, for words that to_state made.
template <typename TState, typename T, int kStateWords, int kWords>
__device__ inline void from_state(const std::uint32_t (&words)[kStateWords],
                                  std::uint32_t (&input)[kWords]) {
  if constexpr (std::is_same_v<T, TState>) {
    copy_words(words, input);
  } else {
#pragma unroll
    for (int pair = 0; pair < kStateWords / 2; ++pair) {
      pack_pair<T>(input, pair, unpack_pair<TState>(words, pair));
    }
  }
}

template <typename T>
__device__ inline T* state_element(const KernelParams& params, std::int64_t slot,
                                   std::int64_t column, std::int64_t channel) {
  return static_cast<T*>(params.state) + slot * params.state_slot_stride +
         column * params.state_column_stride + channel * params.state_channel_stride;
}

/// One column of `kElements` channels. `from` is the element of the first channel.
template <typename T, int kElements>
__device__ inline void load_state_column(const KernelParams& params, const T* from,
                                         std::uint32_t (&words)[kWordsOf<T, kElements>]) {
  if (params.state_access == StateAccess::kChannelVectors) {
    load_words(from, words);
    return;
  }
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int c = 0; c < kElements; ++c) elements[c] = from[c * params.state_channel_stride];
}

/// Prefetches the history of `channels` channels into the L2 cache while the previous kernel ends.
/// `pool` is the first channel's element in column 0 of slot 0. The previous kernel may still write
/// the slot number and the state, so the slot number loaded here only selects what is prefetched.
/// Both are loaded again after the PDL wait.
template <typename T, int kHistory>
__device__ inline void prefetch_history(const KernelParams& params, const T* pool, int sequence,
                                        int channels) {
  const std::uint32_t slot =
      params.has_read_slots ? load_relaxed(rows_after(static_cast<const char*>(params.read_slots),
                                                      params.read_slots_stride_bytes, sequence))
                            : static_cast<std::uint32_t>(sequence);
  if (slot >= params.slots) return;
  const T* from = pool + slot * params.state_slot_stride;
  const std::uint32_t column_bytes = static_cast<std::uint32_t>(channels) * sizeof(T);
  // A run without gaps begins with the history.
  if (params.state_access == StateAccess::kWindowVectors)
    return prefetch_l2(from, kHistory * column_bytes);
  from += params.base_column * params.state_column_stride;
#pragma unroll
  for (int k = 0; k < kHistory; ++k, from += params.state_column_stride)
    prefetch_l2(from, column_bytes);
}

/// kColumns columns, from `column` on.
template <typename T, int kColumns, int kElements>
__device__ inline void load_state(const KernelParams& params, std::int64_t slot,
                                  std::int64_t column, std::int64_t channel,
                                  std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
  const T* from = state_element<T>(params, slot, column, channel);
  if (params.state_access == StateAccess::kChannelVectors) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k, from += params.state_column_stride)
      load_words(from, columns[k]);
  } else if (params.state_access == StateAccess::kWindowVectors) {
    std::uint32_t run[kColumns * kWordsOf<T, kElements>];
    load_words(from, run);  // [channel][column]
    split_columns<T, kColumns, kElements>(run, columns);
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      load_state_column<T, kElements>(params, state_element<T>(params, slot, column + k, channel),
                                      columns[k]);
    }
  }
}

/// The history of a sequence, oldest input first.
template <typename T, int kHistory, int kElements, Variant kVariant>
__device__ inline void load_history(const KernelParams& params, const SequenceState& state,
                                    std::int64_t channel,
                                    std::uint32_t (&columns)[kHistory][kWordsOf<T, kElements>]) {
  if (!is_circular<kVariant>(params)) {
    load_state<T, kHistory, kElements>(params, state.read_slot, state.read_column, channel,
                                       columns);
    return;
  }
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {
    const int column = wrap_column(params, state.read_column + k);
    load_state_column<T, kElements>(
        params, state_element<T>(params, state.read_slot, column, channel), columns[k]);
  }
}

/// Moves column (k + by) modulo kColumns to column k.
template <int kColumns, int kWords>
__device__ inline void rotate(std::uint32_t (&columns)[kColumns][kWords], int by) {
#pragma unroll
  for (int step = 1; step < kColumns; step *= 2) {
    const bool is_step = (by & step) != 0;
    std::uint32_t rotated[kColumns][kWords];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        rotated[k][w] = is_step ? columns[(k + step) % kColumns][w] : columns[k][w];
      }
    }
#pragma unroll
    for (int k = 0; k < kColumns; ++k) copy_words(rotated[k], columns[k]);
  }
}

/// Stores columns at `to`.
template <typename T, int kColumns, int kElements>
__device__ inline void store_columns(
    T* to, std::int64_t column_stride, std::int64_t channel_stride, StateAccess access,
    const std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
  constexpr int kWords = kWordsOf<T, kElements>;
  if (access == StateAccess::kChannelVectors) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k, to += column_stride) store_words(to, columns[k]);
  } else if (access == StateAccess::kWindowVectors) {
    std::uint32_t run[kColumns * kWords];
    join_columns<T, kColumns, kElements>(columns, run);
    store_words(to, run);
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k, to += column_stride) {
      const T* elements = reinterpret_cast<const T*>(columns[k]);
#pragma unroll
      for (int c = 0; c < kElements; ++c) to[c * channel_stride] = elements[c];
    }
  }
}

/// Stores one column of `kElements` channels.
template <typename T, int kElements>
__device__ inline void store_state_column(const KernelParams& params, std::int64_t slot,
                                          std::int64_t column, std::int64_t channel,
                                          const std::uint32_t (&words)[kWordsOf<T, kElements>]) {
  T* to = state_element<T>(params, slot, column, channel);
  if (params.state_access == StateAccess::kChannelVectors) {
    store_words(to, words);
    return;
  }
  const T* elements = reinterpret_cast<const T*>(words);
#pragma unroll
  for (int c = 0; c < kElements; ++c) to[c * params.state_channel_stride] = elements[c];
}

/// Stores a state, which always begins at the base column.
template <typename T, int kColumns, int kElements>
__device__ inline void store_state(
    const KernelParams& params, std::int64_t slot, std::int64_t channel,
    const std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
  store_columns<T, kColumns, kElements>(state_element<T>(params, slot, params.base_column, channel),
                                        params.state_column_stride, params.state_channel_stride,
                                        params.state_access, columns);
}

}  // namespace shortconv::cuda
