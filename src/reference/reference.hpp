// Operations of the reference backend: the specification in fp64, written for reading. One
// sequence, one channel, one token at a time. All other backends are tested against it, so it
// shares only the conversions of single elements with them.
#pragma once

#include "core/backend.hpp"

namespace shortconv::reference {

Status forward(const Problem& p, const PlanStorage&, const TensorPointers& at, void*);
/// Fills the report of the checked mode.
void report_violations(const Problem& p, const TensorPointers& at);

Status commit(const CommitProblem& p, const PlanStorage&, const CommitPointers& at, void*);

Status backward(const BackwardProblem& p, const PlanStorage&, const BackwardPointers& at, void*);

Status block_snapshots(const BlockSnapshots& p, void*);
Status tree_parents(const TreeParents& p, void*);

}  // namespace shortconv::reference
