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
  return (kFeatures == Features::kRings || kFeatures == Features::kAll) && call.has_rings;
}

/// The row at which a sequence begins as it stands in memory: good for comparisons, a bad value may
/// be anything.
__device__ inline int stated_begin(const Call& call, int sequence) {
  return load_kept_int(
      rows_after(static_cast<const char*>(call.query_start_loc), call.begin_bytes, sequence));
}

/// An entry of an index tensor as it stands in memory.
struct StatedIndex {
  std::uint32_t low = 0;
  std::uint32_t high = 0;  // of 64 bits

  /// -1 for one beyond 31 bits.
  __device__ int value() const { return high == 0 ? static_cast<int>(low) : -1; }
  __device__ std::int64_t wide(DType dtype) const {
    if (dtype != DType::kI64) return static_cast<int>(low);
    return static_cast<std::int64_t>(std::uint64_t{high} << 32 | low);
  }
};

/// What is not wanted stays as it is.
__device__ inline void load_index_if(bool wanted, const void* indices, DType dtype,
                                     std::int32_t bytes, int number, StatedIndex& index) {
  const char* from = rows_after(static_cast<const char*>(indices), bytes, number);
  load_word_if(wanted, from, index.low);
  load_word_if(wanted && dtype == DType::kI64, from + 4, index.high);
}

__device__ inline StatedIndex stated_index(const void* indices, DType dtype, std::int32_t bytes,
                                           int number) {
  StatedIndex index;
  load_index_if(true, indices, dtype, bytes, number, index);
  return index;
}

__device__ inline StatedIndex read_slot_of(const Call& call, int sequence) {
  StatedIndex slot{static_cast<std::uint32_t>(sequence)};
  load_index_if(call.has_read_slots, call.read_slots, call.read_slots_dtype, call.read_slot_bytes,
                sequence, slot);
  return slot;
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
                                  call.window_slot_bytes, sequence)
                         .value();
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
  StatedIndex ring_position;
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
  if (call.ring_positions_dtype != DType::kI64) {
    const auto position = static_cast<int>(state.ring_position.low);
    state.ring_column = position <= 0 ? 0 : wrapped(call, position);
  } else {
    const std::int64_t position = state.ring_position.wide(DType::kI64);
    const auto columns = static_cast<std::int64_t>(call.ring_columns.divisor());
    state.ring_column = position <= 0 ? 0 : static_cast<int>(position % columns);
  }
  state.read_column = wrapped(call, state.ring_column - call.history);
}

/// What has to be loaded to know a sequence's state. Each of these is a long wait and none depends
/// on another: the rare ones, which bring branches, go out first, then nothing stands between the
/// others, nor between them and the bounds of the sequence that the caller loads next. An addition
/// between the bounds and the slot cost 1.2 us of 18.7 (4096 x 4096 bf16 on an H200).
struct StatedState {
  StatedIndex read, write, offset, ring_position;
  std::uint32_t resumed = 0;
};

/// Those of them that few calls have.
template <Features kFeatures>
__device__ inline void load_rare_state(const Call& call, int sequence, StatedState& stated) {
  if (call.has_write_slots) {
    stated.write =
        stated_index(call.write_slots, call.write_slots_dtype, call.write_slot_bytes, sequence);
  }
  if (call.has_read_offsets) {
    stated.offset =
        stated_index(call.read_offsets, call.read_offsets_dtype, call.read_offset_bytes, sequence);
  }
  if (is_ring<kFeatures>(call)) {
    stated.ring_position = stated_index(call.ring_positions, call.ring_positions_dtype,
                                        call.ring_position_bytes, sequence);
  }
}

template <Features kFeatures>
__device__ inline StatedState stated_state(const Call& call, int sequence) {
  StatedState stated;
  load_rare_state<kFeatures>(call, sequence, stated);
  stated.read = read_slot_of(call, sequence);
  stated.resumed = call.initial_state == InitialState::kAll;
  load_byte_if(
      call.initial_state == InitialState::kByFlag,
      rows_after(static_cast<const char*>(call.has_initial_state), call.flag_bytes, sequence),
      stated.resumed);
  return stated;
}

/// The column in which an ordered history begins.
__device__ inline int first_column(const Call& call, const StatedState& stated) {
  const std::int64_t offset = stated.offset.wide(call.read_offsets_dtype);
  return call.state_base + static_cast<int>(clamped(offset, 0, call.last_read_offset));
}

/// A ring's columns are settled later.
__device__ inline SequenceState state_of(const Call& call, const StatedState& stated) {
  const int read = stated.read.value();
  const int write = call.has_write_slots ? stated.write.value() : read;
  SequenceState state;
  state.ring_position = stated.ring_position;
  state.skipped = !usable_slot(call, read);
  if (state.skipped || !call.has_state) return state;
  if (call.keeps_state && usable_slot(call, write)) state.write_slot = write;
  if (stated.resumed == 0) return state;
  state.read_slot = read;
  state.read_column = first_column(call, stated);
  return state;
}

}  // namespace shortconv::cuda
