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
      weight_(options.dtype, layout_.weight_elements(), options.threads),
      bias_(options.dtype, layout_.bias_elements(), options.threads),
      state_(options.dtype_of_states(), layout_.state_elements(), options.threads),
      windows_(options.dtype_of_states(), layout_.window_elements(), options.threads),
      parents_(layout_.parents()),
      ring_positions_(layout_.cache_seqlens()),
      snapshots_(layout_.snapshots()),
      accepted_(layout_.accepted()),
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
                          .accepted = accepted_.data()};
  if (layout_.is_commit()) {
    commit_args_ = layout_.commit_arguments(memory, {});
  } else {
    args_ = layout_.arguments(memory, {});
  }
}

void CpuCall::prepare() {
  if (layout_.is_commit()) {
    CommitProblem problem;
    require(make_problem(commit_args_, problem));
    require(make_plan(problem, commit_plan_));
    return;
  }
  if (args_.options.schedule == Schedule::kBlockList) {
    BlockList list;
    require(plan_block_list(lengths_, list));
    block_sequence_ = std::move(list.sequence);
    block_offset_ = std::move(list.offset);
    args_.options.block_sequence =
        TensorRef::contiguous(block_sequence_.data(), DType::kI32, {std::ssize(block_sequence_)});
    args_.options.block_offset =
        TensorRef::contiguous(block_offset_.data(), DType::kI32, {std::ssize(block_offset_)});
  } else if (args_.options.schedule == Schedule::kSequenceGrid) {
    args_.options.max_seqlen = *std::max_element(lengths_.begin(), lengths_.end());
  }
  Problem problem;
  require(make_problem(args_, problem));
  require(make_plan(problem, plan_));
}

void CpuCall::run() const {
  require(layout_.is_commit() ? shortconv::run(commit_plan_, pointers(commit_args_))
                              : shortconv::run(plan_, pointers(args_)));
}

}  // namespace shortconv::tools::bench
