// ForwardArgs -> Problem.
#include "shortconv/problem.hpp"

#include "core/forward_checker.hpp"

namespace shortconv {

Status make_problem(const ForwardArgs& args, Problem& problem) {
  return make_checked_problem<ForwardChecker>(args, problem);
}

}  // namespace shortconv
