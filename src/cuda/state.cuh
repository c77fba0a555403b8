// Columns of a state slot for a group of adjacent channels: as vectors where the pool is
// channel-innermost, as one run of channels x window where it is window-innermost without gaps,
// element by element otherwise. Bits as they are. T is the type of the states.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/call.hpp"
#include "cuda/element.cuh"
#include "cuda/memory.cuh"
#include "cuda/sequence.cuh"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Of the states beside rows of T, which are of that type unless the kernel is for others.
template <typename T, Features kFeatures>
using StateOf = std::conditional_t<kFeatures == Features::kF32States, F32, T>;

/// Inputs as a state has them: exact, for it has their type or fp32.
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

template <typename T>
__device__ inline T* state_element(const Call& call, std::int64_t slot, std::int64_t column,
                                   std::int64_t channel) {
  return static_cast<T*>(call.state) + slot * call.state_slot + column * call.state_column +
         channel * call.state_channel;
}

/// One column for `kElements` channels; `from` is its element of the first of them, as in what
/// follows.
template <typename T, int kElements>
__device__ inline void load_state_column(const Call& call, const T* from,
                                         std::uint32_t (&words)[kWordsOf<T, kElements>]) {
  if (call.state_form == StateForm::kChannelVectors) {
    load_words(from, words);
    return;
  }
  T* elements = reinterpret_cast<T*>(words);
#pragma unroll
  for (int c = 0; c < kElements; ++c) elements[c] = from[c * call.state_channel];
}

/// Has the history of `channels` channels from `pool` on, column 0 of slot 0, brought into the L2
/// cache while the kernel in front is ending. That one may still write the slot and the state: what
/// is found decides what is brought and nothing else, both are read again after the wait.
template <typename T, int kHistory>
__device__ inline void prefetch_history(const Call& call, const T* pool, int sequence,
                                        int channels) {
  const std::uint32_t slot = call.has_read_slots
                                 ? load_early(rows_after(static_cast<const char*>(call.read_slots),
                                                         call.read_slot_bytes, sequence))
                                 : static_cast<std::uint32_t>(sequence);
  if (slot >= call.slots) return;
  const T* from = pool + slot * call.state_slot;
  const std::uint32_t column_bytes = static_cast<std::uint32_t>(channels) * sizeof(T);
  // Windows without gaps begin with the history.
  if (call.state_form == StateForm::kWindowVectors) return prefetch(from, kHistory * column_bytes);
  from += call.state_base * call.state_column;
#pragma unroll
  for (int k = 0; k < kHistory; ++k, from += call.state_column) prefetch(from, column_bytes);
}

/// kColumns columns from `column` on.
template <typename T, int kColumns, int kElements>
__device__ inline void load_state(const Call& call, std::int64_t slot, std::int64_t column,
                                  std::int64_t channel,
                                  std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
  const T* from = state_element<T>(call, slot, column, channel);
  if (call.state_form == StateForm::kChannelVectors) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k, from += call.state_column) load_words(from, columns[k]);
  } else if (call.state_form == StateForm::kWindowVectors) {
    std::uint32_t window[kColumns * kWordsOf<T, kElements>];
    load_words(from, window);  // [channel][column]
    split_columns<T, kColumns, kElements>(window, columns);
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      load_state_column<T, kElements>(call, state_element<T>(call, slot, column + k, channel),
                                      columns[k]);
    }
  }
}

/// The history of a sequence, oldest first.
template <typename T, int kHistory, int kElements, Features kFeatures>
__device__ inline void load_history(const Call& call, const SequenceState& state,
                                    std::int64_t channel,
                                    std::uint32_t (&columns)[kHistory][kWordsOf<T, kElements>]) {
  if (!is_ring<kFeatures>(call)) {
    load_state<T, kHistory, kElements>(call, state.read_slot, state.read_column, channel, columns);
    return;
  }
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {
    const int column = wrapped(call, state.read_column + k);
    load_state_column<T, kElements>(call, state_element<T>(call, state.read_slot, column, channel),
                                    columns[k]);
  }
}

/// Column k becomes what column (k + by) modulo kColumns was.
template <int kColumns, int kWords>
__device__ inline void rotate(std::uint32_t (&columns)[kColumns][kWords], int by) {
#pragma unroll
  for (int step = 1; step < kColumns; step *= 2) {
    const bool turn = (by & step) != 0;
    std::uint32_t turned[kColumns][kWords];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        turned[k][w] = turn ? columns[(k + step) % kColumns][w] : columns[k][w];
      }
    }
#pragma unroll
    for (int k = 0; k < kColumns; ++k) copy_words(turned[k], columns[k]);
  }
}

/// Columns to wherever `to` is, in the form that their strides have.
template <typename T, int kColumns, int kElements>
__device__ inline void store_columns(
    T* to, std::int64_t column_stride, std::int64_t channel_stride, StateForm form,
    const std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
  constexpr int kWords = kWordsOf<T, kElements>;
  if (form == StateForm::kChannelVectors) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k, to += column_stride) store_words(to, columns[k]);
  } else if (form == StateForm::kWindowVectors) {
    std::uint32_t window[kColumns * kWords];
    join_columns<T, kColumns, kElements>(columns, window);
    store_words(to, window);
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k, to += column_stride) {
      const T* elements = reinterpret_cast<const T*>(columns[k]);
#pragma unroll
      for (int c = 0; c < kElements; ++c) to[c * channel_stride] = elements[c];
    }
  }
}

/// One column for `kElements` channels.
template <typename T, int kElements>
__device__ inline void store_state_column(const Call& call, std::int64_t slot, std::int64_t column,
                                          std::int64_t channel,
                                          const std::uint32_t (&words)[kWordsOf<T, kElements>]) {
  T* to = state_element<T>(call, slot, column, channel);
  if (call.state_form == StateForm::kChannelVectors) {
    store_words(to, words);
    return;
  }
  const T* elements = reinterpret_cast<const T*>(words);
#pragma unroll
  for (int c = 0; c < kElements; ++c) to[c * call.state_channel] = elements[c];
}

/// The new window, always at the base column.
template <typename T, int kColumns, int kElements>
__device__ inline void store_state(
    const Call& call, std::int64_t slot, std::int64_t channel,
    const std::uint32_t (&columns)[kColumns][kWordsOf<T, kElements>]) {
  store_columns<T, kColumns, kElements>(state_element<T>(call, slot, call.state_base, channel),
                                        call.state_column, call.state_channel, call.state_form,
                                        columns);
}

}  // namespace shortconv::cuda
