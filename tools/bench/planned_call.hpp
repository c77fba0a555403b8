// A call of one operation, with what it keeps from one run to the next.
#pragma once

#include <cstddef>
#include <vector>

#include "common/error.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::tools::bench {

template <typename Operation>
struct PlannedCall {
  typename Operation::Args args;  // with the first set of tensors
  OperationPlan<Operation> plan;
  std::vector<typename Operation::Pointers> addresses;  // of each set

  void add_set(const typename Operation::Args& set) {
    if (addresses.empty()) args = set;
    addresses.push_back(pointers(set));
  }
  void prepare() {
    typename Operation::Problem problem;
    require(make_problem(args, problem));
    require(make_plan(problem, plan));
  }
  void run(std::size_t set, void* stream) const {
    require(shortconv::run(plan, addresses[set], stream));
  }
};

}  // namespace shortconv::tools::bench
