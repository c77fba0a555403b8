#include "bench/cpu_call.hpp"

#include <algorithm>
#include <utility>

#include "common/error.hpp"
#include "shortconv/schedule.hpp"
#include "shortconv/violation.hpp"

namespace shortconv::tools::bench {

CpuCall::CpuCall(const Shape& shape, const CallOptions& options)
    : layout_(shape, options),
      lengths_(shape.lengths),
      query_start_loc_(layout_.query_start_loc()),
      read_slots_(layout_.read_slots()),
      has_initial_state_(layout_.has_initial_state()),
      x_(options.dtype, layout_.x_elements(), options.threads),
      out_(options.dtype, layout_.out_elements(), options.threads),
      weight_(options.dtype_of_weights(), layout_.weight_elements(), options.threads),
      bias_(options.dtype_of_weights(), layout_.bias_elements(), options.threads),
      state_(options.dtype_of_states(), layout_.state_elements(), options.threads),
      windows_(options.dtype_of_states(), layout_.window_elements(), options.threads),
      grad_x_(options.dtype, layout_.grad_x_elements(), options.threads),
      grad_weight_(DType::kF32, layout_.weight_elements(), options.threads),
      grad_bias_(DType::kF32, layout_.bias_elements(), options.threads),
      grad_final_state_(options.dtype_of_states(), layout_.state_gradient_elements(),
                        options.threads),
      grad_initial_state_(options.dtype_of_states(), layout_.state_gradient_elements(),
                          options.threads),
      gate_rows_(options.dtype, layout_.gate_elements(), options.threads),
      gates_(DType::kF32, layout_.gate_elements(), options.threads),
      a_log_(DType::kF32, layout_.gate_heads(), options.threads),
      dt_bias_(DType::kF32, layout_.gate_heads(), options.threads),
      grad_gate_rows_(options.dtype, layout_.is_backward() ? layout_.gate_elements() : 0,
                      options.threads),
      grad_heads_(DType::kF32, 2 * layout_.gate_heads(), options.threads),
      parents_(layout_.parents()),
      ring_positions_(layout_.cache_seqlens()),
      snapshots_(layout_.snapshots()),
      accepted_(layout_.accepted()),
      seq_idx_(layout_.seq_idx()),
      violations_(2 * kViolations) {
  const CallMemory memory{.x = x_.data(),
                          .out = out_.data(),
                          .weight = weight_.data(),
                          .bias = bias_.data(),
                          .state = state_.data(),
                          .read_slots = read_slots_.data(),
                          .query_start_loc = query_start_loc_.data(),
                          .has_initial_state = has_initial_state_.data(),
                          .parents = parents_.data(),
                          .windows = windows_.data(),
                          .cache_seqlens = ring_positions_.data(),
                          .snapshots = snapshots_.data(),
                          .violations = violations_.data(),
                          .accepted = accepted_.data(),
                          .seq_idx = seq_idx_.data(),
                          .grad_x = grad_x_.data(),
                          .grad_weight = grad_weight_.data(),
                          .grad_bias = grad_bias_.data(),
                          .grad_final_state = grad_final_state_.data(),
                          .grad_initial_state = grad_initial_state_.data(),
                          .gate_rows = gate_rows_.data(),
                          .gates = gates_.data(),
                          .a_log = a_log_.data(),
                          .dt_bias = dt_bias_.data(),
                          .grad_gate_rows = grad_gate_rows_.data(),
                          .grad_heads = grad_heads_.data()};
  if (layout_.is_commit()) {
    commit_.add_set(layout_.commit_arguments(memory, {}));
  } else if (layout_.is_backward() && layout_.is_grouped()) {  // which prepare refuses
    grouped_backward_.add_set(layout_.grouped_backward_arguments(memory, {}, groups_));
  } else if (layout_.is_backward()) {
    backward_.add_set(layout_.backward_arguments(memory, {}));
  } else if (layout_.is_grouped()) {
    grouped_.add_set(layout_.grouped_arguments(memory, {}, groups_));
  } else {
    forward_.add_set(layout_.arguments(memory, {}));
  }
}

void CpuCall::prepare() {
  if (layout_.is_commit()) return commit_.prepare();
  if (layout_.is_backward() && layout_.is_grouped()) return grouped_backward_.prepare();
  if (layout_.is_backward()) return backward_.prepare();
  if (layout_.is_grouped()) return grouped_.prepare();
  Options& options = forward_.args.options;
  if (options.schedule == Schedule::kBlockList) {
    BlockList list;
    require(plan_block_list(lengths_, list));
    block_sequence_ = std::move(list.sequence);
    block_offset_ = std::move(list.offset);
    options.block_sequence =
        TensorRef::contiguous(block_sequence_.data(), DType::kI32, {std::ssize(block_sequence_)});
    options.block_offset =
        TensorRef::contiguous(block_offset_.data(), DType::kI32, {std::ssize(block_offset_)});
  } else if (options.schedule == Schedule::kSequenceGrid) {
    options.max_seqlen = *std::max_element(lengths_.begin(), lengths_.end());
  }
  forward_.prepare();
  forward_.addresses = {pointers(forward_.args)};
}

void CpuCall::run() const {
  if (layout_.is_commit()) return commit_.run(0, nullptr);
  if (layout_.is_backward() && layout_.is_grouped()) return grouped_backward_.run(0, nullptr);
  if (layout_.is_backward()) return backward_.run(0, nullptr);
  if (layout_.is_grouped()) return grouped_.run(0, nullptr);
  forward_.run(0, nullptr);
}

}  // namespace shortconv::tools::bench
