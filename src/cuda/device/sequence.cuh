// The rules of op/sequence.hpp in 31 bits, for kernels with KernelParams: the same results with a
// third of the instructions. host/select.cpp ensures that all sizes fit. Only the lower half of
// 64-bit bounds is read: an invalid bound may be taken for another one, but never leads outside a
// tensor.
#pragma once

#include <cstdint>

#include "cuda/device/memory.cuh"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

/// Whether the states are circular buffers.
template <Variant kVariant>
__device__ inline bool is_circular(const KernelParams& params) {
  return (kVariant == Variant::kCircular || kVariant == Variant::kExtended) && params.is_circular;
}

/// Entry of query_start_loc, unchecked: only for comparisons.
__device__ inline int raw_begin(const KernelParams& params, int sequence) {
  return load_int_evict_last(rows_after(static_cast<const char*>(params.query_start_loc),
                                        params.query_start_loc_stride_bytes, sequence));
}

/// Entry of an index tensor, unchecked.
struct RawIndex {
  std::uint32_t low = 0;
  std::uint32_t high = 0;  // of 64 bits

  /// -1 for a value beyond 31 bits.
  __device__ int value() const { return high == 0 ? static_cast<int>(low) : -1; }
  __device__ std::int64_t wide(DType dtype) const {
    if (dtype != DType::kI64) return static_cast<int>(low);
    return static_cast<std::int64_t>(std::uint64_t{high} << 32 | low);
  }
};

/// Leaves `index` unchanged unless `wanted`.
__device__ inline void load_index_if(bool wanted, const void* indices, DType dtype,
                                     std::int32_t bytes, int number, RawIndex& index) {
  const char* from = rows_after(static_cast<const char*>(indices), bytes, number);
  load_word_if(wanted, from, index.low);
  load_word_if(wanted && dtype == DType::kI64, from + 4, index.high);
}

__device__ inline RawIndex raw_index(const void* indices, DType dtype, std::int32_t bytes,
                                     int number) {
  RawIndex index;
  load_index_if(true, indices, dtype, bytes, number, index);
  return index;
}

__device__ inline RawIndex read_slot_of(const KernelParams& params, int sequence) {
  RawIndex slot{static_cast<std::uint32_t>(sequence)};
  load_index_if(params.has_read_slots, params.read_slots, params.read_slots_dtype,
                params.read_slots_stride_bytes, sequence, slot);
  return slot;
}

__device__ inline bool usable_slot(const KernelParams& params, int slot) {
  return static_cast<std::uint32_t>(slot) < params.slots && slot != params.null_slot;
}

/// The intermediate states of a sequence that are written: those after its first `tokens` tokens.
struct IntermediateRows {
  std::int64_t first = 0;  // offset of the first one, in elements
  int tokens = 0;
};

template <Variant kVariant>
__device__ inline IntermediateRows intermediate_rows(const KernelParams& params, int sequence,
                                                     int begin, int length) {
  if (!params.has_intermediate_states) return {};
  if (kVariant == Variant::kExtended && params.has_intermediate_slots) {
    const int slot = raw_index(params.intermediate_slots, params.intermediate_slots_dtype,
                               params.intermediate_slots_stride_bytes, sequence)
                         .value();
    if (slot < 0 || slot >= params.intermediate_slot_count || slot == params.null_slot) return {};
    return {slot * params.intermediate_sequence_stride, min(length, params.intermediate_tokens)};
  }
  return {params.has_query_start_loc ? begin * params.intermediate_token_stride
                                     : sequence * params.intermediate_sequence_stride,
          length};
}

/// As Sequence of op/sequence.hpp, without its rows.
struct SequenceState {
  int read_slot = -1;
  int write_slot = -1;
  int read_column = 0;  // oldest column of the history; circular: set by resolve_circular_columns
  int next_column = 0;  // circular: column of the first token; set by resolve_circular_columns
  RawIndex cache_seqlen;
  bool skipped = false;
};

/// `column` modulo the columns of a circular buffer. Not below -columns.
__device__ inline int wrap_column(const KernelParams& params, int column) {
  const int columns = static_cast<int>(params.buffer_columns.divisor());
  if (column < 0) return column + columns;
  return column - static_cast<int>(params.buffer_columns.divide(column)) * columns;
}

/// Waits for the load of cache_seqlen. Callers issue independent loads before.
template <Variant kVariant>
__device__ inline void resolve_circular_columns(const KernelParams& params, SequenceState& state) {
  if (!is_circular<kVariant>(params)) return;
  if (params.cache_seqlens_dtype != DType::kI64) {
    const auto seqlen = static_cast<int>(state.cache_seqlen.low);
    state.next_column = seqlen <= 0 ? 0 : wrap_column(params, seqlen);
  } else {
    const std::int64_t seqlen = state.cache_seqlen.wide(DType::kI64);
    const auto columns = static_cast<std::int64_t>(params.buffer_columns.divisor());
    state.next_column = seqlen <= 0 ? 0 : static_cast<int>(seqlen % columns);
  }
  state.read_column = wrap_column(params, state.next_column - params.history);
}

/// The loads that determine a sequence's state. Each has a long latency and none depends on
/// another. The rare ones, which add branches, are issued first; nothing separates the others from
/// each other and from the bounds of the sequence, which the caller loads next. An addition between
/// the bounds and the slot cost 1.2 us of 18.7 (4096 x 4096 bf16 on an H200).
struct RawState {
  RawIndex read, write, offset, cache_seqlen;
  std::uint32_t continues = 0;  // not 0: the sequence continues from its state
};

/// The loads of tensors that few calls have.
template <Variant kVariant>
__device__ inline void load_rare_state(const KernelParams& params, int sequence, RawState& raw) {
  if (params.has_write_slots) {
    raw.write = raw_index(params.write_slots, params.write_slots_dtype,
                          params.write_slots_stride_bytes, sequence);
  }
  if (params.has_read_offsets) {
    raw.offset = raw_index(params.read_offsets, params.read_offsets_dtype,
                           params.read_offsets_stride_bytes, sequence);
  }
  if (is_circular<kVariant>(params)) {
    raw.cache_seqlen = raw_index(params.cache_seqlens, params.cache_seqlens_dtype,
                                 params.cache_seqlens_stride_bytes, sequence);
  }
}

template <Variant kVariant>
__device__ inline RawState raw_state(const KernelParams& params, int sequence) {
  RawState raw;
  load_rare_state<kVariant>(params, sequence, raw);
  raw.read = read_slot_of(params, sequence);
  // Comparisons instead of a switch: a branch would delay the load.
  raw.continues = params.initial_state == InitialState::kAll;
  load_byte_if(params.initial_state == InitialState::kByFlag,
               rows_after(static_cast<const char*>(params.has_initial_state),
                          params.has_initial_state_stride_bytes, sequence),
               raw.continues);
  return raw;
}

/// First column of a history that is not in a circular buffer.
__device__ inline int first_column(const KernelParams& params, const RawState& raw) {
  const std::int64_t offset = raw.offset.wide(params.read_offsets_dtype);
  return params.base_column + static_cast<int>(clamped(offset, 0, params.last_read_offset));
}

/// Columns of a circular buffer are left to resolve_circular_columns.
__device__ inline SequenceState state_of(const KernelParams& params, const RawState& raw) {
  const int read = raw.read.value();
  const int write = params.has_write_slots ? raw.write.value() : read;
  SequenceState state;
  state.cache_seqlen = raw.cache_seqlen;
  state.skipped = !usable_slot(params, read);
  if (state.skipped || !params.has_state) return state;
  if (params.writes_state && usable_slot(params, write)) state.write_slot = write;
  if (raw.continues == 0) return state;
  state.read_slot = read;
  state.read_column = first_column(params, raw);
  return state;
}

}  // namespace shortconv::cuda
