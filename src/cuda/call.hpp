// What the fast kernels are told: of Problem, Addresses and Grid the part that they use, together.
// A parameter that is not in the constant cache yet stops a warp until it is. With the three
// structures as they are, 700 bytes, that was up to a quarter of a small call: on an H200 16
// sequences of 4 tokens x 8192 took 4.30 us and take 3.72, 64 of them 6.53 and 6.13, one decoded
// token 1.98 and 1.83. So what every block needs comes first, what few calls need last.
#pragma once

#include "cuda/grid.hpp"
#include "op/sequence.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Weights and bias, any strides in elements.
struct Weights {
  const void* weight = nullptr;
  const void* bias = nullptr;
  std::int64_t channel = 0, tap = 0, bias_channel = 0;
  bool packed = false;  // [channels, width] and [channels] without gaps, aligned to 16 bytes
};

/// Rows of the shape of x.
struct Gate {
  const void* data = nullptr;  // null: there is none
  std::int64_t sequence = 0;   // elements from one sequence of a dense batch to the next
  std::int32_t step = 0;       // bytes from one row to the next
};

struct Call {
  // 48 bytes to the first boundary of a cache line, for parameters begin at 0x210, then 64 each.
  FastDivisor channel_blocks;
  std::uint32_t head_blocks = 0;
  // Tokens are those of a stream: all packed ones, or one sequence of a dense batch.
  std::int32_t channels = 0, tokens = 0;
  const void* x = nullptr;
  std::int32_t x_step = 0;  // bytes from one row to the next, as all steps
  Overlap overlap = Overlap::kNone;
  bool has_query_start_loc = false, heads_begin = false;
  bool packed_taps = false, has_state = false, keeps_state = false;
  bool has_read_slots = false, has_write_slots = false, has_read_offsets = false;
  DType read_slots_dtype = DType::kI32;
  InitialState initial_state = InitialState::kNone;
  StateForm state_form = StateForm::kElements;
  bool early_state = false;

  FastDivisor head_channel_blocks;
  std::uint32_t head_rounds = 1;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* read_slots = nullptr;
  std::int32_t read_slot_bytes = 0;
  std::uint32_t slots = 0;      // a sequence may have those below,
  std::int32_t null_slot = -1;  // but not this one
  std::int32_t sequences = 0;
  const void* query_start_loc = nullptr;

  void* out = nullptr;
  std::int32_t out_step = 0, begin_bytes = 0;
  void* state = nullptr;
  std::int64_t x_sequence = 0, out_sequence = 0;
  std::int64_t state_slot = 0, state_column = 0;
  std::int32_t state_base = 0, flag_bytes = 0;
  const void* has_initial_state = nullptr;
  std::int64_t state_channel = 0;
  std::int32_t last_read_offset = 0;
  DType read_offsets_dtype = DType::kI32;

  // Drafts.
  std::uint32_t tiles = 0;
  bool has_windows = false, has_parents = false, has_window_slots = false;
  StateForm window_form = StateForm::kElements;
  DType parents_dtype = DType::kI32, window_slots_dtype = DType::kI32;
  std::int32_t parent_bytes = 0, window_slot_bytes = 0;
  void* windows = nullptr;
  std::int64_t window_token = 0, window_column = 0, window_channel = 0, window_sequence = 0;
  const void* parents = nullptr;
  std::int64_t parents_sequence = 0;

  // What few calls need.
  FastDivisor ring_columns;  // of a pool of rings,
  bool has_rings = false;    // which this says
  bool residual = false;
  PaddedRows padded_rows = PaddedRows::kZero;
  DType ring_positions_dtype = DType::kI32, snapshots_dtype = DType::kI32;
  std::int32_t history = 0, ring_position_bytes = 0, snapshots = 0;
  const void* ring_positions = nullptr;
  std::uint32_t snapshot_blocks = 0;
  FastDivisor snapshot_channel_blocks;
  const void* snapshot_list = nullptr;
  std::int64_t snapshots_row = 0, snapshots_column = 0;
  const void* window_slots_of = nullptr;
  std::int32_t window_slots = 0, window_tokens = 0;
  const void* write_slots = nullptr;
  const void* read_offsets = nullptr;
  std::int32_t write_slot_bytes = 0, read_offset_bytes = 0;
  DType write_slots_dtype = DType::kI32;
  bool keeps_older = false;  // decode: a column before the history
  Activation activation = Activation::kNone;
  FastDivisor sequence_tiles;
  std::int64_t weight_channel = 0, weight_tap = 0, bias_channel = 0;
  const void* seq_idx = nullptr;      // numbered tiles
  std::int64_t seq_idx_sequence = 0;  // bytes
  std::int32_t seq_idx_bytes = 0;
  DType seq_idx_dtype = DType::kI32;
  Gate input_gate, output_gate;

  SHORTCONV_HOST_DEVICE Weights weights() const {
    return {weight, bias, weight_channel, weight_tap, bias_channel, packed_taps};
  }
};

SHORTCONV_HOST_DEVICE inline Weights weights_of(const Problem& p, const Addresses& at,
                                                const Grid& grid) {
  return {at.weight, at.bias, p.weight_channel, p.weight_tap, p.bias_channel, grid.packed_taps};
}

/// Of a problem that the fast kernels can count in 31 bits.
inline Call call_of(const Problem& p, const Addresses& at, const Grid& grid) {
  const auto count = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  const auto step = [](std::int64_t stride, DType dtype) {
    return static_cast<std::int32_t>(stride * element_bytes(dtype));
  };
  Call call;
  call.channel_blocks = grid.channel_blocks;
  call.head_blocks = grid.head_blocks;
  call.channels = count(p.channels);
  call.tokens = count(p.has_query_start_loc ? p.tokens : p.sequence_tokens);
  call.x = at.x;
  call.x_step = step(p.x_token, p.x_dtype);
  call.overlap = grid.overlap;
  call.has_query_start_loc = p.has_query_start_loc;
  call.heads_begin = grid.heads_begin;
  call.packed_taps = grid.packed_taps;
  call.has_state = p.has_state;
  call.keeps_state = p.keeps_state;
  call.has_read_slots = p.has_read_slots;
  call.has_write_slots = p.has_write_slots;
  call.has_read_offsets = p.has_read_offsets;
  call.read_slots_dtype = p.read_slots_dtype;
  call.initial_state = p.initial_state;
  call.state_form = grid.state_form;
  call.early_state = grid.early_state && grid.overlap != Overlap::kNone;
  call.head_channel_blocks = grid.head_channel_blocks;
  call.head_rounds = grid.head_rounds;
  call.weight = at.weight;
  call.bias = at.bias;
  call.read_slots = at.read_slots;
  call.read_slot_bytes = step(p.read_slots_stride, p.read_slots_dtype);
  call.slots = p.has_state ? static_cast<std::uint32_t>(p.slots) : 0x80000000u;
  if (p.has_null_slot && p.null_slot >= 0 && p.null_slot <= 0x7fffffff) {
    call.null_slot = count(p.null_slot);
  }
  call.sequences = count(p.sequences);
  call.query_start_loc = at.query_start_loc;
  call.out = at.out;
  call.out_step = step(p.out_token, p.out_dtype);
  call.begin_bytes = step(p.query_start_loc_stride, p.query_start_loc_dtype);
  call.state = at.state;
  call.x_sequence = p.x_sequence;
  call.out_sequence = p.out_sequence;
  call.state_slot = p.state_slot;
  call.state_column = p.state_column;
  call.state_base = count(p.state_base);
  call.flag_bytes = step(p.flags_stride, DType::kBool);
  if (p.has_ring_positions) {
    call.has_rings = true;
    call.ring_columns = FastDivisor(static_cast<std::uint32_t>(p.state_columns));
    call.ring_position_bytes = step(p.ring_positions_stride, p.ring_positions_dtype);
  }
  call.ring_positions_dtype = p.ring_positions_dtype;
  call.has_window_slots = p.has_window_slots;
  call.residual = p.epilogue == Epilogue::kResidual;
  call.activation = p.activation;
  call.keeps_older = p.older_columns > 0;
  call.snapshots_dtype = p.snapshots_dtype;
  call.window_slots_dtype = p.window_slots_dtype;
  call.history = p.width - 1;
  call.snapshots = count(p.snapshots);
  call.snapshot_blocks = grid.snapshot_blocks;
  call.snapshot_channel_blocks = grid.snapshot_channel_blocks;
  call.ring_positions = at.ring_positions;
  call.snapshot_list = at.snapshots;
  call.window_slots_of = at.window_slots;
  call.window_slots = count(p.window_slots);
  call.window_tokens = count(p.window_tokens);
  call.window_slot_bytes = step(p.window_slots_stride, p.window_slots_dtype);
  call.snapshots_row = p.snapshots_row;
  call.snapshots_column = p.snapshots_column;
  call.has_initial_state = at.has_initial_state;
  call.write_slots = at.write_slots;
  call.state_channel = p.state_channel;
  call.sequence_tiles = grid.sequence_tiles;
  call.tiles = grid.tiles;
  call.read_offset_bytes = step(p.read_offsets_stride, p.read_offsets_dtype);
  call.write_slot_bytes = step(p.write_slots_stride, p.write_slots_dtype);
  call.parent_bytes = step(p.parents_token, p.parents_dtype);
  call.last_read_offset = count(last_read_offset(p));
  call.write_slots_dtype = p.write_slots_dtype;
  call.read_offsets_dtype = p.read_offsets_dtype;
  call.parents_dtype = p.parents_dtype;
  call.padded_rows = p.padded_rows;
  call.window_form = grid.window_form;
  call.has_parents = p.has_parents;
  call.has_windows = p.has_windows;
  call.weight_channel = p.weight_channel;
  call.weight_tap = p.weight_tap;
  call.bias_channel = p.bias_channel;
  call.read_offsets = at.read_offsets;
  call.parents = at.parents;
  call.windows = at.windows;
  call.parents_sequence = p.parents_sequence;
  call.window_sequence = p.window_sequence;
  call.window_token = p.window_token;
  call.window_column = p.window_column;
  call.window_channel = p.window_channel;
  call.seq_idx = at.seq_idx;
  call.seq_idx_sequence = p.seq_idx_sequence * element_bytes(p.seq_idx_dtype);
  call.seq_idx_bytes = step(p.seq_idx_token, p.seq_idx_dtype);
  call.seq_idx_dtype = p.seq_idx_dtype;
  if (p.has_input_gate) {
    call.input_gate = {at.input_gate, p.input_gate_sequence, step(p.input_gate_token, p.x_dtype)};
  }
  if (p.epilogue == Epilogue::kOutputGate) {
    call.output_gate = {at.output_gate, p.output_gate_sequence,
                        step(p.output_gate_token, p.x_dtype)};
  }
  return call;
}

}  // namespace shortconv::cuda
