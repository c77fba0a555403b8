#include "cuda/kernel_params.hpp"

#include "cuda/host/numbers.hpp"

namespace shortconv::cuda {
namespace {

/// Bytes from one entry of an index list to the next.
std::int32_t stride_bytes(const TensorLayout<Axis::kSequence>& layout) {
  return narrow(layout.sequence_stride * element_bytes(layout.dtype));
}
/// Bytes from one token to the next.
template <Axis... kAxes>
std::int32_t stride_bytes(const TensorLayout<kAxes...>& layout) {
  return narrow(layout.token_stride * element_bytes(layout.dtype));
}

void set_rows(const Problem& p, const TensorPointers& at, KernelParams& params) {
  params.channels = narrow(p.channels);
  params.tokens = narrow(p.query_start_loc.present ? p.tokens : p.sequence_tokens);
  params.sequences = narrow(p.sequences);
  params.x = at.x;
  params.x_stride_bytes = stride_bytes(p.x);
  params.x_sequence_stride = p.x.sequence_stride;
  params.out = at.out;
  params.out_stride_bytes = stride_bytes(p.out);
  params.out_sequence_stride = p.out.sequence_stride;
  params.weight = at.weight;
  params.weight_channel_stride = p.weight.channel_stride;
  params.weight_tap_stride = p.weight.tap_stride;
  params.bias = at.bias;
  params.bias_channel_stride = p.bias.channel_stride;
  params.padded_rows = p.padded_rows;
  params.activation = p.activation;
  params.residual = p.epilogue == Epilogue::kResidual;
  params.history = p.width - 1;
  if (p.input_gate.present) {
    params.input_gate = {at.input_gate, p.input_gate.sequence_stride, stride_bytes(p.input_gate)};
  }
  if (p.output_gate.present) {
    params.output_gate = {at.output_gate, p.output_gate.sequence_stride,
                          stride_bytes(p.output_gate)};
  }
}

void set_sequences(const Problem& p, const TensorPointers& at, KernelParams& params) {
  params.has_query_start_loc = p.query_start_loc.present;
  params.query_start_loc = at.query_start_loc;
  params.query_start_loc_stride_bytes = stride_bytes(p.query_start_loc);
  params.initial_state = p.initial_state;
  params.has_initial_state = at.has_initial_state;
  params.has_initial_state_stride_bytes = narrow(p.has_initial_state.sequence_stride);
  params.seq_idx = at.seq_idx;
  params.seq_idx_dtype = p.seq_idx.dtype;
  params.seq_idx_stride_bytes = stride_bytes(p.seq_idx);
  params.seq_idx_sequence_stride_bytes = p.seq_idx.sequence_stride * element_bytes(p.seq_idx.dtype);
}

void set_pool(const Problem& p, const TensorPointers& at, KernelParams& params) {
  params.has_state = p.state.present;
  params.writes_state = p.writes_state;
  params.state = at.state;
  params.state_slot_stride = p.state.slot_stride;
  params.state_column_stride = p.state.column_stride;
  params.state_channel_stride = p.state.channel_stride;
  params.base_column = narrow(p.base_column);
  params.shift_full_state = p.shifted_columns > 0;
  params.slots = p.state.present ? static_cast<std::uint32_t>(p.slots) : 0x80000000u;
  if (p.has_null_slot && p.null_slot >= 0 && p.null_slot <= 0x7fffffff) {
    params.null_slot = narrow(p.null_slot);
  }
  params.has_read_slots = p.read_slots.present;
  params.read_slots = at.read_slots;
  params.read_slots_dtype = p.read_slots.dtype;
  params.read_slots_stride_bytes = stride_bytes(p.read_slots);
  params.has_write_slots = p.write_slots.present;
  params.write_slots = at.write_slots;
  params.write_slots_dtype = p.write_slots.dtype;
  params.write_slots_stride_bytes = stride_bytes(p.write_slots);
  params.has_read_offsets = p.read_offsets.present;
  params.read_offsets = at.read_offsets;
  params.read_offsets_dtype = p.read_offsets.dtype;
  params.read_offsets_stride_bytes = stride_bytes(p.read_offsets);
  params.last_read_offset = narrow(last_read_offset(p));
  if (p.cache_seqlens.present) {
    params.is_circular = true;
    params.buffer_columns = FastDivisor(static_cast<std::uint32_t>(p.state_columns));
  }
  params.cache_seqlens = at.cache_seqlens;
  params.cache_seqlens_dtype = p.cache_seqlens.dtype;
  params.cache_seqlens_stride_bytes = stride_bytes(p.cache_seqlens);
  params.snapshots = at.snapshots;
  params.snapshots_dtype = p.snapshots.dtype;
  params.snapshot_count = narrow(p.snapshot_count);
  params.snapshots_entry_stride = p.snapshots.entry_stride;
  params.snapshots_column_stride = p.snapshots.column_stride;
}

void set_drafts(const Problem& p, const TensorPointers& at, KernelParams& params) {
  params.has_parents = p.parents.present;
  params.parents = at.parents;
  params.parents_dtype = p.parents.dtype;
  params.parents_stride_bytes = stride_bytes(p.parents);
  params.parents_sequence_stride = p.parents.sequence_stride;
  params.has_intermediate_states = p.intermediate_states.present;
  params.intermediate_states = at.intermediate_states;
  params.intermediate_sequence_stride = p.intermediate_states.sequence_stride;
  params.intermediate_token_stride = p.intermediate_states.token_stride;
  params.intermediate_column_stride = p.intermediate_states.column_stride;
  params.intermediate_channel_stride = p.intermediate_states.channel_stride;
  params.has_intermediate_slots = p.intermediate_slots.present;
  params.intermediate_slots = at.intermediate_slots;
  params.intermediate_slots_dtype = p.intermediate_slots.dtype;
  params.intermediate_slots_stride_bytes = stride_bytes(p.intermediate_slots);
  params.intermediate_slot_count = narrow(p.intermediate_slot_count);
  params.intermediate_tokens = narrow(p.intermediate_tokens);
}

void set_launch(const LaunchParams& launch, KernelParams& params) {
  params.channel_blocks = launch.channel_blocks;
  params.start_blocks = launch.start_blocks;
  params.start_blocks_take_all = launch.start_blocks_take_all;
  params.start_channel_blocks = launch.start_channel_blocks;
  params.start_rounds = launch.start_rounds;
  params.sequence_tiles = launch.sequence_tiles;
  params.tiles = launch.tiles;
  params.snapshot_blocks = launch.snapshot_blocks;
  params.snapshot_channel_blocks = launch.snapshot_channel_blocks;
  params.pdl = launch.pdl;
  if (launch.pdl == PdlMode::kWaitAndLaunch) params.pdl_launch_from = launch.pdl_launch_from;
  params.packed_taps = launch.packed_taps;
  params.state_access = launch.state_access;
  params.intermediate_access = launch.intermediate_access;
  params.prefetch_state = launch.prefetch_state && launch.pdl != PdlMode::kOff;
}

}  // namespace

KernelParams make_kernel_params(const Problem& problem, const TensorPointers& pointers,
                                const LaunchParams& launch) {
  KernelParams params;
  set_rows(problem, pointers, params);
  set_sequences(problem, pointers, params);
  set_pool(problem, pointers, params);
  set_drafts(problem, pointers, params);
  set_launch(launch, params);
  return params;
}

}  // namespace shortconv::cuda
