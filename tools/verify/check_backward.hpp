// A backward call on one backend: against fp64, and the same bits on every path.
#pragma once

#include <optional>
#include <string>

#include "shortconv/problem.hpp"
#include "verify/backward_case.hpp"
#include "verify/check.hpp"

namespace shortconv::tools::verify {

/// Gradients within the bounds of gradient_bounds.hpp, in which those of the reference backend have
/// to be as well; rows without a sequence 0; no other byte written, guard bands included.
[[nodiscard]] Verdict check_backward(const BackwardCase& problem, BackendId backend);

/// The same for a call that was made already: `before` it, `after` it.
[[nodiscard]] std::optional<std::string> check_gradients(const BackwardCase& problem,
                                                         const BackwardBuffers& before,
                                                         const BackwardBuffers& after);

/// Other layouts and threads, and some gradients fewer, give the same bits. So does a cut of every
/// sequence in two calls that carry the gradient of the state in fp32 (the reference: in fp64); of
/// gradients of weights that is not promised.
[[nodiscard]] std::optional<std::string> check_backward_paths(const BackwardCase& problem,
                                                              BackendId backend);

/// Runs the case with bounds that contradict each other or lead nowhere, and other numbers. The
/// results mean nothing, but nothing outside the tensors may be written.
[[nodiscard]] std::optional<std::string> check_bad_values(const BackwardCase& problem,
                                                          BackendId backend);

}  // namespace shortconv::tools::verify
