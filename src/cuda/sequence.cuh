// The rules of op/sequence.hpp in 31 bits, for the kernels that count in them: same answers for a
// third of the instructions. select.cpp sees to it that everything fits. Of 64-bit bounds the lower
// half is read: a bad one may be taken for another, never for one outside of the tensor.
#pragma once

#include <cstdint>

#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
#include "op/sequence.hpp"

namespace shortconv::cuda {

/// The row at which a sequence begins as it stands in memory: good for comparisons, a bad value may
/// be anything.
__device__ inline int stated_begin(const Addresses& at, const Grid& grid, int sequence) {
  return load_kept_int(
      rows_after(static_cast<const char*>(at.query_start_loc), grid.begin_bytes, sequence));
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

__device__ inline int read_slot_of(const Problem& p, const Addresses& at, const Grid& grid,
                                   int sequence) {
  if (!p.has_read_slots) return sequence;
  return stated_index(at.read_slots, p.read_slots_dtype, grid.read_slot_bytes, sequence);
}

__device__ inline bool usable_slot(const Grid& grid, int slot) {
  return static_cast<std::uint32_t>(slot) < grid.slots && slot != grid.null_slot;
}

/// As Sequence of op/sequence.hpp, without its rows.
struct SequenceState {
  int read_slot = -1;
  int write_slot = -1;
  int read_column = 0;
  bool skipped = false;
};

__device__ inline SequenceState state_of(const Problem& p, const Addresses& at, const Grid& grid,
                                         int sequence) {
  // All loads first: none depends on another, and each is a long wait.
  const int read = read_slot_of(p, at, grid, sequence);
  const int write = p.has_write_slots ? stated_index(at.write_slots, p.write_slots_dtype,
                                                     grid.write_slot_bytes, sequence)
                                      : read;
  const std::int64_t offset = p.has_read_offsets ? load_index(p.read_offsets_dtype, at.read_offsets,
                                                              sequence * p.read_offsets_stride)
                                                 : 0;
  const bool resumed = p.initial_state == InitialState::kAll ||
                       (p.initial_state == InitialState::kByFlag &&
                        *rows_after(static_cast<const std::uint8_t*>(at.has_initial_state),
                                    grid.flag_bytes, sequence) != 0);
  SequenceState state;
  state.skipped = !usable_slot(grid, read);
  if (state.skipped || !p.has_state) return state;
  if (p.keeps_state && usable_slot(grid, write)) state.write_slot = write;
  if (!resumed) return state;
  state.read_slot = read;
  const std::int64_t last = p.state_columns - (p.width - 1) - p.state_base;
  state.read_column = static_cast<int>(p.state_base + clamped(offset, 0, last));
  return state;
}

}  // namespace shortconv::cuda
