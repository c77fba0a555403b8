// A Problem as one line, and as a hash.
#include <string>
#include <string_view>
#include <vector>

#include "core/check.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {
namespace {

// The one list of fields, for printing and hashing.
template <typename Visit>
void visit_fields(const Problem& p, Visit&& visit) {
  visit("op", p.op);
  visit("backend", p.backend);
  visit("device_type", p.device.type);
  visit("device", p.device.index);
  visit("x_dtype", p.x_dtype);
  visit("out_dtype", p.out_dtype);
  visit("weight_dtype", p.weight_dtype);
  visit("state_dtype", p.state_dtype);
  visit("query_start_loc_dtype", p.query_start_loc_dtype);
  visit("read_slots_dtype", p.read_slots_dtype);
  visit("write_slots_dtype", p.write_slots_dtype);
  visit("read_offsets_dtype", p.read_offsets_dtype);
  visit("parents_dtype", p.parents_dtype);
  visit("ring_positions_dtype", p.ring_positions_dtype);
  visit("snapshots_dtype", p.snapshots_dtype);
  visit("window_slots_dtype", p.window_slots_dtype);
  visit("seq_idx_dtype", p.seq_idx_dtype);
  visit("activation", p.activation);
  visit("epilogue", p.epilogue);
  visit("padded_rows", p.padded_rows);
  visit("initial_state", p.initial_state);
  visit("schedule", p.schedule);
  visit("has_bias", p.has_bias);
  visit("has_state", p.has_state);
  visit("has_query_start_loc", p.has_query_start_loc);
  visit("has_read_slots", p.has_read_slots);
  visit("has_write_slots", p.has_write_slots);
  visit("has_read_offsets", p.has_read_offsets);
  visit("has_null_slot", p.has_null_slot);
  visit("has_parents", p.has_parents);
  visit("has_windows", p.has_windows);
  visit("has_ring_positions", p.has_ring_positions);
  visit("has_window_slots", p.has_window_slots);
  visit("has_input_gate", p.has_input_gate);
  visit("has_seq_idx", p.has_seq_idx);
  visit("keeps_state", p.keeps_state);
  visit("has_violations", p.has_violations);
  visit("in_place", p.in_place);
  visit("programmatic_launch", p.programmatic_launch);
  visit("width", p.width);
  visit("dilation", p.dilation);
  visit("threads", p.threads);
  visit("tokens", p.tokens);
  visit("channels", p.channels);
  visit("sequences", p.sequences);
  visit("sequence_tokens", p.sequence_tokens);
  visit("slots", p.slots);
  visit("state_columns", p.state_columns);
  visit("state_base", p.state_base);
  visit("older_columns", p.older_columns);
  visit("null_slot", p.null_slot);
  visit("longest_sequence", p.longest_sequence);
  visit("blocks", p.blocks);
  visit("snapshots", p.snapshots);
  visit("window_slots", p.window_slots);
  visit("window_tokens", p.window_tokens);
  visit("x_sequence", p.x_sequence);
  visit("x_token", p.x_token);
  visit("x_channel", p.x_channel);
  visit("out_sequence", p.out_sequence);
  visit("out_token", p.out_token);
  visit("out_channel", p.out_channel);
  visit("input_gate_sequence", p.input_gate_sequence);
  visit("input_gate_token", p.input_gate_token);
  visit("input_gate_channel", p.input_gate_channel);
  visit("output_gate_sequence", p.output_gate_sequence);
  visit("output_gate_token", p.output_gate_token);
  visit("output_gate_channel", p.output_gate_channel);
  visit("weight_channel", p.weight_channel);
  visit("weight_tap", p.weight_tap);
  visit("bias_channel", p.bias_channel);
  visit("state_slot", p.state_slot);
  visit("state_column", p.state_column);
  visit("state_channel", p.state_channel);
  visit("query_start_loc_stride", p.query_start_loc_stride);
  visit("read_slots_stride", p.read_slots_stride);
  visit("write_slots_stride", p.write_slots_stride);
  visit("read_offsets_stride", p.read_offsets_stride);
  visit("flags_stride", p.flags_stride);
  visit("block_sequence_stride", p.block_sequence_stride);
  visit("block_offset_stride", p.block_offset_stride);
  visit("parents_sequence", p.parents_sequence);
  visit("parents_token", p.parents_token);
  visit("window_sequence", p.window_sequence);
  visit("window_token", p.window_token);
  visit("window_column", p.window_column);
  visit("window_channel", p.window_channel);
  visit("violations_row", p.violations_row);
  visit("violations_column", p.violations_column);
  visit("ring_positions_stride", p.ring_positions_stride);
  visit("snapshots_row", p.snapshots_row);
  visit("snapshots_column", p.snapshots_column);
  visit("window_slots_stride", p.window_slots_stride);
  visit("seq_idx_sequence", p.seq_idx_sequence);
  visit("seq_idx_token", p.seq_idx_token);
}

template <typename T>
concept HasName = requires(T value) { name(value); };

}  // namespace

std::size_t hash(const Problem& problem) {
  std::uint64_t mixed = 0xcbf29ce484222325ull;  // FNV-1a over whole fields, with a final shift
  visit_fields(problem, [&](std::string_view, auto field) {
    mixed = (mixed ^ static_cast<std::uint64_t>(field)) * 0x100000001b3ull;
    mixed ^= mixed >> 29;
  });
  return static_cast<std::size_t>(mixed);
}

std::string to_string(const Problem& problem) {
  std::string text;
  std::vector<std::int64_t> defaults;
  visit_fields(Problem{}, [&](std::string_view, auto field) {
    defaults.push_back(static_cast<std::int64_t>(field));
  });
  std::size_t index = 0;
  visit_fields(problem, [&](std::string_view label, auto field) {
    const auto value = static_cast<std::int64_t>(field);
    if (value == defaults[index++]) return;
    if (!text.empty()) text += ' ';
    if constexpr (HasName<decltype(field)>) {
      text += concat(label, "=", name(field));
    } else {
      text += concat(label, "=", value);
    }
  });
  return text;
}

}  // namespace shortconv
