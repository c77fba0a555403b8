// The rules of op/sequence.hpp in 31 bits, for the kernels that count in them: same answers for a
// third of the instructions. select.cpp sees to it that everything fits. Of 64-bit bounds the lower
// half is read: a bad one may be taken for another, never for one outside of the tensor.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/memory.cuh"

namespace shortconv::cuda {

template <Features kFeatures>
__device__ inline bool is_ring(const Call& call) {
  return kFeatures != Features::kPlain && call.has_rings;
}

/// The row at which a sequence begins as it stands in memory: good for comparisons, a bad value may
/// be anything.
__device__ inline int stated_begin(const Call& call, int sequence) {
  return load_kept_int(
      rows_after(static_cast<const char*>(call.query_start_loc), call.begin_bytes, sequence));
}

/// An entry of an index tensor, -1 for one beyond 31 bits.
__device__ inline int stated_index(const void* indices, DType dtype, std::int32_t bytes,
                                   int number) {
  const char* index = rows_after(static_cast<const char*>(indices), bytes, number);
  if (dtype != DType::kI64) {
    std::uint32_t value[1];
    load_words(index, value);
    return static_cast<int>(value[0]);
  }
  std::uint32_t halves[2];
  load_words(index, halves);
  return halves[1] == 0 ? static_cast<int>(halves[0]) : -1;
}

__device__ inline int read_slot_of(const Call& call, int sequence) {
  if (!call.has_read_slots) return sequence;
  return stated_index(call.read_slots, call.read_slots_dtype, call.read_slot_bytes, sequence);
}

__device__ inline bool usable_slot(const Call& call, int slot) {
  return static_cast<std::uint32_t>(slot) < call.slots && slot != call.null_slot;
}

/// The windows of a sequence that are captured: those after its first `tokens` tokens, from element
/// `first` on.
struct CapturedWindows {
  std::int64_t first = 0;
  int tokens = 0;
};

template <Features kFeatures>
__device__ inline CapturedWindows windows_of(const Call& call, int sequence, int begin,
                                             int length) {
  if (!call.has_windows) return {};
  if (kFeatures == Features::kAll && call.has_window_slots) {
    const int slot = stated_index(call.window_slots_of, call.window_slots_dtype,
                                  call.window_slot_bytes, sequence);
    if (slot < 0 || slot >= call.window_slots || slot == call.null_slot) return {};
    return {slot * call.window_sequence, min(length, call.window_tokens)};
  }
  return {call.has_query_start_loc ? begin * call.window_token : sequence * call.window_sequence,
          length};
}

/// As Sequence of op/sequence.hpp, without its rows.
struct SequenceState {
  int read_slot = -1;
  int write_slot = -1;
  int read_column = 0;  // oldest of the history
  int ring_column = 0;  // of a ring: where the first token goes; both by settle_ring
  std::uint32_t ring_position[2] = {0, 0};  // as it stands in memory, lower half first
  bool skipped = false;
};

/// The ring's column of input number `column` from its first one; any number not below -columns.
__device__ inline int wrapped(const Call& call, int column) {
  const int columns = static_cast<int>(call.ring_columns.divisor());
  if (column < 0) return column + columns;
  return column - static_cast<int>(call.ring_columns.divide(column)) * columns;
}

/// Waits for the position; what does not need it is better asked for before.
template <Features kFeatures>
__device__ inline void settle_ring(const Call& call, SequenceState& state) {
  if (!is_ring<kFeatures>(call)) return;
  const auto low = static_cast<int>(state.ring_position[0]);
  if (call.ring_positions_dtype != DType::kI64) {
    state.ring_column = low <= 0 ? 0 : wrapped(call, low);
  } else {
    const auto position = static_cast<std::int64_t>(std::uint64_t{state.ring_position[1]} << 32 |
                                                    state.ring_position[0]);
    const auto columns = static_cast<std::int64_t>(call.ring_columns.divisor());
    state.ring_column = position <= 0 ? 0 : static_cast<int>(position % columns);
  }
  state.read_column = wrapped(call, state.ring_column - call.history);
}

/// A ring's columns are settled later.
template <Features kFeatures>
__device__ inline SequenceState state_of(const Call& call, int sequence) {
  // All loads first: none depends on another, and each is a long wait.
  const int read = read_slot_of(call, sequence);
  const int write = call.has_write_slots ? stated_index(call.write_slots, call.write_slots_dtype,
                                                        call.write_slot_bytes, sequence)
                                         : read;
  const std::int64_t offset = call.has_read_offsets
                                  ? load_index(call.read_offsets_dtype, call.read_offsets,
                                               sequence * call.read_offsets_stride)
                                  : 0;
  const bool resumed = call.initial_state == InitialState::kAll ||
                       (call.initial_state == InitialState::kByFlag &&
                        *rows_after(static_cast<const std::uint8_t*>(call.has_initial_state),
                                    call.flag_bytes, sequence) != 0);
  SequenceState state;
  if (is_ring<kFeatures>(call)) {
    const char* position = rows_after(static_cast<const char*>(call.ring_positions),
                                      call.ring_position_bytes, sequence);
    load_word(position, state.ring_position[0]);
    if (call.ring_positions_dtype == DType::kI64) load_word(position + 4, state.ring_position[1]);
  }
  state.skipped = !usable_slot(call, read);
  if (state.skipped || !call.has_state) return state;
  if (call.keeps_state && usable_slot(call, write)) state.write_slot = write;
  if (!resumed) return state;
  state.read_slot = read;
  state.read_column = call.state_base + static_cast<int>(clamped(offset, 0, call.last_read_offset));
  return state;
}

}  // namespace shortconv::cuda
