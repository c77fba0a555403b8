// Calls with groups, norms and gates of the CUDA backend.
#pragma once

#include "core/backend.hpp"

namespace shortconv::cuda {

extern const OperationKernels<GroupedOperation> kGrouped;
[[nodiscard]] Status run_l2_norm(const L2NormCall& call, void* stream);
[[nodiscard]] Status run_delta_gates(const GatesCall& call, void* stream);

/// The checked mode of a forward call, in host/violations.cpp.
[[nodiscard]] Status plan_violations(const Problem& problem);
[[nodiscard]] Status run_violations(const Problem& problem, const TensorPointers& pointers,
                                    void* stream);

}  // namespace shortconv::cuda
