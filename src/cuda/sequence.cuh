// The rules of op/sequence.hpp in 31 bits, for the kernels that count in them: same answers for a
// third of the instructions. select.cpp sees to it that everything fits. Of 64-bit bounds the lower
// half is read: a bad one may be taken for another, never for one outside of the tensor.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/memory.cuh"

namespace shortconv::cuda {

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

/// Where the window after a draft token begins, in elements of windows.
__device__ inline std::int64_t window_of(const Call& call, int sequence, int begin, int token) {
  return call.has_query_start_loc ? (begin + token) * call.window_token
                                  : sequence * call.window_sequence + token * call.window_token;
}

/// As Sequence of op/sequence.hpp, without its rows.
struct SequenceState {
  int read_slot = -1;
  int write_slot = -1;
  int read_column = 0;
  bool skipped = false;
};

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
  state.skipped = !usable_slot(call, read);
  if (state.skipped || !call.has_state) return state;
  if (call.keeps_state && usable_slot(call, write)) state.write_slot = write;
  if (!resumed) return state;
  state.read_slot = read;
  state.read_column = call.state_base + static_cast<int>(clamped(offset, 0, call.last_read_offset));
  return state;
}

}  // namespace shortconv::cuda
