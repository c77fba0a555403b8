#pragma once

#include "core/backend.hpp"

namespace shortconv::cpu {

Status plan_commit(const CommitProblem& problem, PlanStorage& choice);
Status run_commit(const CommitProblem& problem, const PlanStorage& choice,
                  const CommitAddresses& addresses, void* stream);

}  // namespace shortconv::cpu
