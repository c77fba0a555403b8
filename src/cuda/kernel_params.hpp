// The parameter structs of the kernels. Each kernel takes one, by value.
#pragma once

#include "cuda/launch_params.hpp"
#include "op/sequence.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Weights and bias, strides in elements.
struct Weights {
  const void* weight = nullptr;
  const void* bias = nullptr;
  std::int64_t channel_stride = 0, tap_stride = 0, bias_channel_stride = 0;
  bool packed = false;  // [channels, width] and [channels] without gaps, aligned to 16 bytes
};

/// A tensor with the shape of x.
struct Gate {
  const void* data = nullptr;  // null: absent
  std::int64_t sequence_stride = 0;
  std::int32_t stride_bytes = 0;  // from one row to the next
};

/// Parameters of the token-major kernels, packed. A parameter that is not in the constant cache yet
/// stalls a warp: with Problem, TensorPointers and LaunchParams as they are (700 bytes) a small
/// call was up to a quarter slower. On an H200 16 sequences of 4 tokens x 8192 took 4.30 us and
/// take 3.72, 64 of them 6.53 and 6.13, one decoded token 1.98 and 1.83. So the parameters of every
/// block come first and the rare ones last.
struct KernelParams {
  // Parameters begin at 0x210: 48 bytes to the first boundary of a cache line, then 64 each.
  FastDivisor channel_blocks;
  std::uint32_t start_blocks = 0;
  std::int32_t channels = 0, tokens = 0;  // tokens: all packed ones, or those of a dense sequence
  const void* x = nullptr;
  std::int32_t x_stride_bytes = 0;  // from one row to the next, as all *_stride_bytes
  PdlMode pdl = PdlMode::kOff;
  bool has_query_start_loc = false, start_blocks_take_all = false;
  bool packed_taps = false, has_state = false, writes_state = false;
  bool has_read_slots = false, has_write_slots = false, has_read_offsets = false;
  DType read_slots_dtype = DType::kI32;
  InitialState initial_state = InitialState::kNone;
  StateAccess state_access = StateAccess::kElements;
  bool prefetch_state = false;

  FastDivisor start_channel_blocks;
  std::uint32_t start_rounds = 1;
  std::uint32_t pdl_launch_from = 0xffffffff;  // first block that lets the next kernel start
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* read_slots = nullptr;
  std::int32_t read_slots_stride_bytes = 0;
  std::uint32_t slots = 0;
  std::int32_t null_slot = -1;
  std::int32_t sequences = 0;
  const void* query_start_loc = nullptr;

  void* out = nullptr;
  std::int32_t out_stride_bytes = 0, query_start_loc_stride_bytes = 0;
  void* state = nullptr;
  std::int64_t x_sequence_stride = 0, out_sequence_stride = 0;
  std::int64_t state_slot_stride = 0, state_column_stride = 0;
  std::int32_t base_column = 0, has_initial_state_stride_bytes = 0;
  const void* has_initial_state = nullptr;
  std::int64_t state_channel_stride = 0;
  std::int32_t last_read_offset = 0;
  DType read_offsets_dtype = DType::kI32;

  // Drafts.
  std::uint32_t tiles = 0;
  bool has_intermediate_states = false, has_parents = false, has_intermediate_slots = false;
  StateAccess intermediate_access = StateAccess::kElements;
  DType parents_dtype = DType::kI32, intermediate_slots_dtype = DType::kI32;
  std::int32_t parents_stride_bytes = 0, intermediate_slots_stride_bytes = 0;
  void* intermediate_states = nullptr;
  std::int64_t intermediate_token_stride = 0, intermediate_column_stride = 0;
  std::int64_t intermediate_channel_stride = 0, intermediate_sequence_stride = 0;
  const void* parents = nullptr;
  std::int64_t parents_sequence_stride = 0;

  // Rare features.
  FastDivisor buffer_columns;  // of a circular buffer
  bool is_circular = false;
  bool residual = false;
  PaddedRows padded_rows = PaddedRows::kZero;
  DType cache_seqlens_dtype = DType::kI32, snapshots_dtype = DType::kI32;
  std::int32_t history = 0, cache_seqlens_stride_bytes = 0, snapshot_count = 0;
  const void* cache_seqlens = nullptr;
  std::uint32_t snapshot_blocks = 0;
  FastDivisor snapshot_channel_blocks;
  const void* snapshots = nullptr;
  std::int64_t snapshots_entry_stride = 0, snapshots_column_stride = 0;
  const void* intermediate_slots = nullptr;
  std::int32_t intermediate_slot_count = 0, intermediate_tokens = 0;
  const void* write_slots = nullptr;
  const void* read_offsets = nullptr;
  std::int32_t write_slots_stride_bytes = 0, read_offsets_stride_bytes = 0;
  DType write_slots_dtype = DType::kI32;
  bool shift_full_state = false;  // decode: one column before the history
  Activation activation = Activation::kNone;
  FastDivisor sequence_tiles;
  std::int64_t weight_channel_stride = 0, weight_tap_stride = 0, bias_channel_stride = 0;
  const void* seq_idx = nullptr;
  std::int64_t seq_idx_sequence_stride_bytes = 0;
  std::int32_t seq_idx_stride_bytes = 0;
  DType seq_idx_dtype = DType::kI32;
  Gate input_gate, output_gate;

  SHORTCONV_HOST_DEVICE Weights weights() const {
    return {weight,     bias, weight_channel_stride, weight_tap_stride, bias_channel_stride,
            packed_taps};
  }
};

/// For a problem whose sizes fit into 31 bits: is_countable of host/select.cpp.
[[nodiscard]] KernelParams make_kernel_params(const Problem& problem,
                                              const TensorPointers& pointers,
                                              const LaunchParams& launch);

/// Parameters of the kernels that take any problem, in 64 bits.
struct GeneralParams {
  Problem problem;
  TensorPointers pointers;
  LaunchParams launch;
};

SHORTCONV_HOST_DEVICE inline Weights weights_of(const GeneralParams& params) {
  const Problem& p = params.problem;
  return {params.pointers.weight, params.pointers.bias,  p.weight.channel_stride,
          p.weight.tap_stride,    p.bias.channel_stride, params.launch.packed_taps};
}

}  // namespace shortconv::cuda
