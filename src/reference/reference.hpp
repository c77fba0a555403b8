// Operations of the reference backend: the specification in fp64, written for reading. One
// sequence, one channel, one token at a time. All other backends are tested against it, so it
// shares only the conversions of single elements with them.
#pragma once

#include <functional>

#include "core/backend.hpp"

namespace shortconv::reference {

struct TensorViews;

Status forward(const Problem& p, const PlanStorage&, const TensorPointers& at, void*);
/// The rows of a forward call. Then calls finish(row) for each row of a sequence, pad(row) for each
/// other one.
void forward_rows(const TensorViews& view, const std::function<void(std::int64_t)>& finish,
                  const std::function<void(std::int64_t)>& pad);
/// Fills the report of the checked mode.
void report_violations(const Problem& p, const TensorPointers& at);

Status commit(const CommitProblem& p, const PlanStorage&, const CommitPointers& at, void*);

Status backward(const BackwardProblem& p, const PlanStorage&, const BackwardPointers& at, void*);

Status grouped(const GroupedProblem& p, const PlanStorage&, const GroupedPointers& at, void*);
Status grouped_backward(const GroupedBackwardProblem& p, const PlanStorage&,
                        const GroupedBackwardPointers& at, void*);
Status l2_norm(const L2NormCall& call, void*);
Status delta_gates(const GatesCall& call, void*);

Status block_snapshots(const BlockSnapshots& p, void*);
Status tree_parents(const TreeParents& p, void*);

}  // namespace shortconv::reference
