// BackwardArgs -> BackwardProblem.
#include "core/backward_checker.hpp"

namespace shortconv {

Status make_problem(const BackwardArgs& args, BackwardProblem& problem) {
  return make_checked_problem<BackwardChecker>(args, problem);
}

}  // namespace shortconv
