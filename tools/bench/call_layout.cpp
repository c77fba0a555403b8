#include "bench/call_layout.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "common/random.hpp"
#include "shortconv/violation.hpp"

namespace shortconv::tools::bench {

CallLayout::CallLayout(const Shape& shape, const CallOptions& options)
    : shape_(shape), options_(options) {
  const bool token_major = shape.layout == Layout::kTokenMajor;
  const std::int64_t channels = is_grouped() ? shape.front->columns : shape.channels;
  const std::int64_t row = token_major ? channels : shape.tokens();
  rows_ = token_major ? shape.tokens() : shape.channels;
  row_pitch_ = std::max<std::int64_t>(row, std::llround(static_cast<double>(row) * options.pitch));

  if (!options.slots_in_order) {
    read_slots_.resize(shape.lengths.size());
    std::iota(read_slots_.begin(), read_slots_.end(), 0);
    Random(1).shuffle(read_slots_);
  }
  query_start_loc_.push_back(0);
  for (std::int64_t s = 0; s < shape.sequences(); ++s) {
    const auto length = static_cast<std::int32_t>(shape.lengths[s]);
    query_start_loc_.push_back(query_start_loc_.back() + length);
    has_initial_state_.push_back(shape.resumed(s) ? 1 : 0);
    parents_.insert(parents_.end(), shape.parents.begin(), shape.parents.end());
    if (is_commit()) accepted_.push_back(static_cast<std::int32_t>(s % length));
    if (shape.seq_idx) seq_idx_.insert(seq_idx_.end(), length, static_cast<std::int32_t>(s));
    if (shape.rings) ring_positions_.push_back(static_cast<std::int32_t>(1000 + 7 * s));
    if (shape.snapshot_tokens == 0) continue;
    for (std::int64_t token = shape.snapshot_tokens; token <= length;
         token += shape.snapshot_tokens) {
      const auto number = static_cast<std::int32_t>(snapshots_.size() / 3);
      snapshots_.insert(snapshots_.end(),
                        {static_cast<std::int32_t>(s), static_cast<std::int32_t>(token),
                         static_cast<std::int32_t>(shape.sequences()) + number});
    }
  }
}

std::int64_t CallLayout::out_elements() const {
  if (is_commit()) return 0;
  if (!is_grouped()) return options_.row_offset + rows_ * row_pitch_;
  return rows_ * (shape_.front->convolved_channels() + shape_.front->copied_channels());
}

std::int64_t CallLayout::row_elements() const {
  if (is_grouped()) return 2 * out_elements();
  return (parts_of_x() + 1) * shape_.tokens() * shape_.channels;
}

std::int64_t CallLayout::moved_bytes() const {
  const std::int64_t state_bytes = element_bytes(options_.dtype_of_states());
  if (is_commit()) return 2 * state_elements() * state_bytes;
  if (is_backward()) return backward_bytes();
  const std::int64_t resumed = shape_.seq_idx ? 0 : std::ranges::count(has_initial_state_, 1);
  const bool has_final = shape_.op != Op::kVerify && !shape_.seq_idx;
  const std::int64_t final_states = has_final ? shape_.sequences() : 0;
  const std::int64_t written =
      shape_.rings ? final_states * shape_.channels : final_states * slot_elements();
  const std::int64_t read = resumed * history() * shape_.channels;
  return row_elements() * element_bytes(options_.dtype) + gate_bytes() +
         (written + read + 2 * shape_.snapshots() * slot_elements() + window_elements()) *
             state_bytes;
}

std::int64_t CallLayout::backward_bytes() const {
  const std::int64_t bytes = element_bytes(options_.dtype);
  if (is_grouped()) {
    const Front& front = *shape_.front;
    const std::int64_t row = 3 * front.convolved_channels() + 2 * front.copied_channels();
    return rows_ * row * bytes + gate_elements() * (2 * bytes + element_bytes(DType::kF32));
  }
  return (2 * parts_of_x() + 1) * shape_.tokens() * shape_.channels * bytes +
         3 * state_elements() * element_bytes(options_.dtype_of_states());
}

std::int64_t CallLayout::touched_bytes() const {
  if (is_commit() || is_backward()) return moved_bytes();
  return row_elements() * element_bytes(options_.dtype) + gate_bytes() +
         (state_elements() + window_elements()) * element_bytes(options_.dtype_of_states());
}

TensorRef CallLayout::rows(void* data, Device device, std::int64_t part, std::int64_t parts) const {
  const std::int64_t before = options_.row_offset + part * row_pitch_;
  void* first = static_cast<std::byte*>(data) + before * element_bytes(options_.dtype);
  TensorRef view =
      TensorRef::contiguous(first, options_.dtype, {rows_, parts * row_pitch_}, device);
  view.shape[1] = shape_.layout == Layout::kTokenMajor ? shape_.channels : shape_.tokens();
  return shape_.layout == Layout::kTokenMajor ? view : view.transposed(0, 1);
}

ForwardArgs CallLayout::arguments(const CallMemory& memory, Device device) const {
  const DType state_dtype = options_.dtype_of_states();
  const std::int64_t sequences = shape_.sequences();
  const std::int64_t channels = shape_.channels;
  const std::int64_t slots = sequences + shape_.snapshots();
  ForwardArgs args;
  args.op = shape_.op;
  args.x = rows(memory.x, device, 0, parts_of_x());
  args.out = rows(shape_.in_place ? memory.x : memory.out, device, 0, 1);
  if (shape_.gated) {
    args.input_gate = rows(memory.x, device, 1, parts_of_x());
    args.epilogue.output_gate = rows(memory.x, device, 2, parts_of_x());
  }
  args.weight = TensorRef::contiguous(memory.weight, options_.dtype_of_weights(),
                                      {channels, options_.width}, device);
  if (options_.has_bias) {
    args.bias = TensorRef::contiguous(memory.bias, options_.dtype_of_weights(), {channels}, device);
  }
  args.epilogue.activation = options_.activation;
  args.epilogue.residual = shape_.residual;
  args.dilation = options_.dilation;
  args.options.backend = options_.backend;
  args.options.threads = options_.threads;
  args.options.programmatic_launch = options_.programmatic_launch;
  if (shape_.checked) {
    args.options.violations =
        TensorRef::contiguous(memory.violations, DType::kI64, {kViolations, 2}, device);
  }
  if (shape_.seq_idx) {
    args.sequences.seq_idx =
        TensorRef::contiguous(memory.seq_idx, DType::kI32, {shape_.tokens()}, device);
    return args;
  }
  args.pool.state =
      shape_.state_layout == StateLayout::kChannelInnermost
          ? TensorRef::contiguous(memory.state, state_dtype, {slots, columns(), channels}, device)
          : TensorRef::contiguous(memory.state, state_dtype, {slots, channels, columns()}, device)
                .transposed(1, 2);
  args.pool.shift_full_state = shape_.older;
  args.pool.base_column = shape_.older ? 1 : 0;
  if (!read_slots_.empty()) {
    args.pool.read_slots =
        TensorRef::contiguous(memory.read_slots, DType::kI32, {sequences}, device);
  }
  if (shape_.rings) {
    args.pool.cache_seqlens =
        TensorRef::contiguous(memory.cache_seqlens, DType::kI32, {sequences}, device);
  }
  if (shape_.snapshots() > 0) {
    args.pool.snapshots =
        TensorRef::contiguous(memory.snapshots, DType::kI32, {shape_.snapshots(), 3}, device);
  }
  if (shape_.op == Op::kDecode) return args;

  if (shape_.op == Op::kForward) args.options.schedule = options_.schedule;  // verify: flat
  args.sequences.query_start_loc =
      TensorRef::contiguous(memory.query_start_loc, DType::kI32, {sequences + 1}, device);
  args.sequences.has_initial_state =
      TensorRef::contiguous(memory.has_initial_state, DType::kBool, {sequences}, device);
  if (shape_.op == Op::kVerify) add_drafts(memory, device, args);
  return args;
}

void CallLayout::add_drafts(const CallMemory& memory, Device device, ForwardArgs& args) const {
  const DType dtype = options_.dtype_of_states();
  const std::int64_t tokens = shape_.tokens(), sequences = shape_.sequences();
  if (shape_.window_slots) {
    args.drafts.intermediate_slots = args.pool.read_slots;
    args.drafts.intermediate_states = TensorRef::contiguous(
        memory.windows, dtype, {sequences, tokens / sequences, history(), shape_.channels}, device);
  } else {
    args.drafts.intermediate_states =
        TensorRef::contiguous(memory.windows, dtype, {tokens, history(), shape_.channels}, device);
  }
  if (!parents_.empty()) {
    args.drafts.parents = TensorRef::contiguous(memory.parents, DType::kI32, {tokens}, device);
  }
}

GroupedArgs CallLayout::grouped_arguments(const CallMemory& memory, Device device,
                                          std::vector<ChannelGroup>& groups) const {
  const Front& front = *shape_.front;
  GroupedArgs args{.forward = arguments(memory, device), .groups = {}, .gates = {}};
  args.forward.x = TensorRef::contiguous(memory.x, options_.dtype, {rows_, row_pitch_}, device);
  args.forward.x.shape[1] = front.columns;
  args.forward.out = {};
  add_groups(memory.out, device, groups);
  args.groups = groups;
  if (front.gate_heads > 0) args.gates = gate_arguments(memory, device);
  return args;
}

void CallLayout::add_groups(void* first, Device device, std::vector<ChannelGroup>& groups) const {
  const Front& front = *shape_.front;
  const std::int64_t bytes = element_bytes(options_.dtype), packed = front.convolved_channels();
  auto* out = static_cast<std::byte*>(first);
  auto* copies = out + rows_ * packed * bytes;
  for (const FrontGroup& group : front.groups) {
    auto*& place = group.copy ? copies : out;
    const bool is_column = front.is_packed && !group.copy;
    TensorRef to =
        TensorRef::contiguous(place, options_.dtype, {rows_, group.heads, group.head_dim}, device);
    if (is_column) to.strides[0] = packed;
    place += group.channels() * bytes * (is_column ? 1 : rows_);
    ChannelGroup& added =
        groups.emplace_back(ChannelGroup{.out = to, .input = group.input, .copy = group.copy});
    if (group.normalize) added.l2_norm.emplace();
  }
}

GateArgs CallLayout::gate_arguments(const CallMemory& memory, Device device) const {
  const std::int64_t heads = shape_.front->gate_heads, in_block = shape_.front->gate_block_heads;
  const auto gates = [&](std::int64_t number) {
    void* first = static_cast<float*>(memory.gates) + number * rows_ * heads;
    return TensorRef::contiguous(first, DType::kF32, {rows_, heads}, device);
  };
  const HeadMap map{.block_heads = in_block, .block_stride = 2 * in_block};
  GateArgs args;
  args.a = args.b =
      TensorRef::contiguous(memory.gate_rows, options_.dtype, {rows_, 2 * heads}, device);
  args.a_log = TensorRef::contiguous(memory.a_log, DType::kF32, {heads}, device);
  args.dt_bias = TensorRef::contiguous(memory.dt_bias, DType::kF32, {heads}, device);
  args.g = gates(0);
  args.beta = gates(1);
  args.a_map = args.b_map = map;
  args.a_map.offset = in_block;
  return args;
}

GateGradientArgs CallLayout::gate_gradient_arguments(const CallMemory& memory,
                                                     Device device) const {
  const std::int64_t heads = shape_.front->gate_heads;
  const auto part = [&](void* first, DType dtype, std::int64_t number) {
    auto* data = static_cast<std::byte*>(first) + number * rows_ * heads * element_bytes(dtype);
    return TensorRef::contiguous(data, dtype, {rows_, heads}, device);
  };
  const auto head_values = [&](void* data) {
    return TensorRef::contiguous(data, DType::kF32, {heads}, device);
  };
  GateGradientArgs args;
  args.a = part(memory.gate_rows, options_.dtype, 0);
  args.b = part(memory.gate_rows, options_.dtype, 1);
  args.a_log = head_values(memory.a_log);
  args.dt_bias = head_values(memory.dt_bias);
  args.grad_g = part(memory.gates, DType::kF32, 0);
  args.grad_beta = part(memory.gates, DType::kF32, 1);
  args.grad_a = part(memory.grad_gate_rows, options_.dtype, 0);
  args.grad_b = part(memory.grad_gate_rows, options_.dtype, 1);
  args.grad_a_log = head_values(memory.grad_heads);
  args.grad_dt_bias = head_values(static_cast<float*>(memory.grad_heads) + heads);
  return args;
}

CommitArgs CallLayout::commit_arguments(const CallMemory& memory, Device device) const {
  const std::int64_t sequences = shape_.sequences(), channels = shape_.channels;
  const std::int64_t history = options_.width - 1;
  const std::int64_t rows = shape_.tokens() / sequences * history;
  CommitArgs args;
  args.intermediate_states = TensorRef::contiguous(memory.windows, options_.dtype_of_states(),
                                                   {layers(), sequences, rows, channels}, device);
  args.state = TensorRef::contiguous(memory.state, options_.dtype_of_states(),
                                     {layers(), sequences, history, channels}, device);
  args.accepted = TensorRef::contiguous(memory.accepted, DType::kI32, {sequences}, device);
  args.width = options_.width;
  args.rows_per_token = static_cast<std::int32_t>(history);
  args.backend = options_.backend;
  args.threads = options_.threads;
  return args;
}

BackwardArgs CallLayout::backward_arguments(const CallMemory& memory, Device device) const {
  const std::int64_t sequences = shape_.sequences(), channels = shape_.channels;
  const std::int64_t parts = parts_of_x();
  BackwardArgs args;
  args.x = rows(memory.x, device, 0, parts);
  args.grad_out = rows(memory.out, device, 0, 1);
  // One after the other: tensors that are written may not lie between each other's rows.
  const auto row_gradient = [&](std::int64_t number) {
    const std::int64_t offset = number * out_elements() * element_bytes(options_.dtype);
    return rows(static_cast<std::byte*>(memory.grad_x) + offset, device, 0, 1);
  };
  args.grad_x = row_gradient(0);
  if (shape_.gated) {
    args.input_gate = rows(memory.x, device, 1, parts);
    args.output_gate = rows(memory.x, device, 2, parts);
    args.grad_input_gate = row_gradient(1);
    args.grad_output_gate = row_gradient(2);
  }
  const DType weight_dtype = options_.dtype_of_weights();
  args.weight =
      TensorRef::contiguous(memory.weight, weight_dtype, {channels, options_.width}, device);
  args.grad_weight =
      TensorRef::contiguous(memory.grad_weight, DType::kF32, {channels, options_.width}, device);
  if (options_.has_bias) {
    args.bias = TensorRef::contiguous(memory.bias, weight_dtype, {channels}, device);
    args.grad_bias = TensorRef::contiguous(memory.grad_bias, DType::kF32, {channels}, device);
  }
  if (shape_.seq_idx) {
    args.seq_idx = TensorRef::contiguous(memory.seq_idx, DType::kI32, {shape_.tokens()}, device);
  } else if (sequences > 1) {
    args.query_start_loc =
        TensorRef::contiguous(memory.query_start_loc, DType::kI32, {sequences + 1}, device);
  }
  if (shape_.states) {
    const auto states = [&](void* data) {
      return TensorRef::contiguous(data, options_.dtype_of_states(),
                                   {sequences, options_.width - 1, channels}, device);
    };
    args.initial_state = states(memory.state);
    args.grad_final_state = states(memory.grad_final_state);
    args.grad_initial_state = states(memory.grad_initial_state);
  }
  args.activation = options_.activation;
  args.backend = options_.backend;
  args.threads = options_.threads;
  return args;
}

GroupedBackwardArgs CallLayout::grouped_backward_arguments(
    const CallMemory& memory, Device device, std::vector<ChannelGroup>& groups) const {
  GroupedBackwardArgs args{
      .backward = backward_arguments(memory, device), .groups = {}, .gates = {}};
  const auto columns = [&](void* data) {
    TensorRef rows = TensorRef::contiguous(data, options_.dtype, {rows_, row_pitch_}, device);
    rows.shape[1] = shape_.front->columns;
    return rows;
  };
  args.backward.x = columns(memory.x);
  args.backward.grad_x = columns(memory.grad_x);
  args.backward.grad_out = {};
  add_groups(memory.out, device, groups);
  args.groups = groups;
  if (gate_heads() > 0) args.gates = gate_gradient_arguments(memory, device);
  return args;
}

}  // namespace shortconv::tools::bench
