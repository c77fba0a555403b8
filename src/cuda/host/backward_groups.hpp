// GroupedBackwardProblem -> launches: one for each group, one for the gates, and the last sums.
#pragma once

#include "core/backend.hpp"
#include "cuda/host/backward.hpp"

namespace shortconv::cuda {

/// Widths of 2 to this one have kernels for groups.
inline constexpr int kMaxGroupWidth = 4;

/// An instance of backward_strips for one group; without a function where there is none.
BackwardKernel backward_group_kernel(DType dtype, const BackwardFeatures& features, bool has_norm);
KernelFunction copy_group_gradient_kernel();  // takes CopyGradientParams
KernelFunction gate_gradients_kernel();       // takes GateGradientParams

extern const OperationKernels<GroupedBackwardOperation> kGroupedBackward;

}  // namespace shortconv::cuda
