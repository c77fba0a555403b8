// Parts of the CPU backend besides the forward call.
#pragma once

#include "core/backend.hpp"
#include "cpu/backward_kernels.hpp"

namespace shortconv::cpu {

/// kUnavailable if SHORTCONV_CPU_TARGET asks for another instruction set than the chosen one.
Status check_target(std::string_view chosen);

/// Number of threads for a call that moves `bytes`: `wanted`, or for 0 what the size justifies.
int thread_limit(int wanted, double bytes);

Status plan_commit(const CommitProblem& problem, PlanStorage& storage);
Status run_commit(const CommitProblem& problem, const PlanStorage& storage,
                  const CommitPointers& pointers, void* stream);
std::string describe_commit(const CommitProblem& problem, const PlanStorage& storage);

/// For the widest instruction set of the machine, or the one that SHORTCONV_CPU_TARGET names.
const BackwardKernels* select(const BackwardProblem& problem);
Status plan_backward(const BackwardProblem& problem, PlanStorage& storage);
Status run_backward(const BackwardProblem& problem, const PlanStorage& storage,
                    const BackwardPointers& pointers, void* stream);
std::string describe_backward(const BackwardProblem& problem, const PlanStorage& storage);

/// Fills the report of the checked mode. Allocates nothing.
void report_violations(const Problem& p, const TensorPointers& at);

Status plan_grouped(const GroupedProblem& problem, PlanStorage& storage);
Status run_grouped(const GroupedProblem& problem, const PlanStorage& storage,
                   const GroupedPointers& pointers, void* stream);
std::string describe_grouped(const GroupedProblem& problem, const PlanStorage& storage);
Status l2_norm(const L2NormCall& call, void* stream);
Status delta_gates(const GatesCall& call, void* stream);

Status block_snapshots(const BlockSnapshots& call, void* stream);
Status tree_parents(const TreeParents& call, void* stream);

}  // namespace shortconv::cpu
