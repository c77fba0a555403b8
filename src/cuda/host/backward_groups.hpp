// GroupedBackwardProblem -> launches: one for each group, one for the gates, and the last sums.
#pragma once

#include <string_view>

#include "core/backend.hpp"
#include "core/check.hpp"
#include "cuda/host/backward.hpp"

namespace shortconv::cuda {

/// Widths of 2 to this one have kernels for groups.
inline constexpr int kMaxGroupWidth = 4;
/// Bytes to which rows and heads of convolved groups are aligned, at least.
inline constexpr std::int64_t kLeastGroupAlignment = 8;

/// An instance of backward_strips for one group; without a function where there is none.
BackwardKernel backward_group_kernel(DType dtype, const BackwardFeatures& features, bool has_norm);
KernelFunction copy_group_gradient_kernel();  // takes CopyGradientParams
KernelFunction gate_gradients_kernel();       // takes GateGradientParams

extern const OperationKernels<GroupedBackwardOperation> kGroupedBackward;

// backward_groups_select.cpp: pure functions of the problem.

[[nodiscard]] bool wants_gate_sums(const GroupedBackwardProblem& problem);
/// Whether some gradient of gates is wanted.
[[nodiscard]] bool wants_gates(const GroupedBackwardProblem& problem);
/// Whether some gradient of the convolution, or of the columns that it has, is wanted.
[[nodiscard]] bool is_wanted(const GroupedBackwardProblem& problem, const GroupLayout& group);

/// The call of one group by itself, whose x has the columns of all groups.
[[nodiscard]] BackwardProblem problem_of(const GroupedBackwardProblem& problem,
                                         const GroupLayout& group);
/// The partial sums of all groups. Where a short call without groups has one block on each
/// multiprocessor, the kernels of the groups, which run side by side, have two: 1024 tokens of a
/// front take 30 us instead of 33, and 8192 of a quarter of its heads 42 instead of 51 (H200).
[[nodiscard]] BackwardPartition group_partition(const GroupedBackwardProblem& problem);
/// Offset of the partial sums of a group in the workspace, or of the end of all, in bytes.
[[nodiscard]] std::int64_t sums_offset(const GroupedBackwardProblem& problem, std::size_t number);
/// Bytes, up to 16, that divide the offsets of all heads and rows of the group.
[[nodiscard]] std::int32_t group_alignment(const GroupedBackwardProblem& problem,
                                           const GroupLayout& group);
[[nodiscard]] BackwardKernel group_kernel_of(const GroupedBackwardProblem& problem,
                                             const GroupLayout& group);

/// kUnsupported unless a kernel supports the group.
[[nodiscard]] Status check_group(const GroupedBackwardProblem& problem, const GroupLayout& group);
/// The gates' rows and columns in 31 bits.
[[nodiscard]] bool has_countable_gates(const GroupedBackwardProblem& problem);

template <typename... Parts>
[[nodiscard]] Status refuse_groups(std::string_view argument, const Parts&... parts) {
  return {Code::kUnsupported,
          concat(argument, ": ", parts..., " for gradients of groups on the backend 'cuda'")};
}

}  // namespace shortconv::cuda
