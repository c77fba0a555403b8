// What a backward call has to compute, in fp64, and how far a correct implementation may be from
// it.
#pragma once

#include "verify/backward_case.hpp"

namespace shortconv::tools::verify {

/// Dense fp64 tensors with the shapes of the gradients of a case.
struct GradientBounds {
  BackwardBuffers values;  // exact, but for fp64's own rounding
  BackwardBuffers errors;  // of a result in fp32, before it is rounded to its type
};

/// Follows the sums of the specification with a running error analysis. u = 2^-24 is the unit
/// roundoff of fp32; what fp64 rounds is 2^29 times smaller and not counted.
///
/// - An operation on a and b, known to within ea and eb, rounds its result once:
///   error(a * b) <= |a| eb + |b| ea + ea eb, and u times the largest possible result;
///   error(a + b) the same with ea + eb. Below the normal numbers, 2^-150 is added.
/// - The sum a and act(a): computing_error of compare.hpp. act'(a) of SiLU is s (1 + a (1 - s)),
///   with the relative error 5e-7 of each of its two terms (tests of the CPU and CUDA backends hold
///   it to that); an error of a passes through enlarged by max |silu''| = 1/2.
/// - A chain of W fused multiply-adds of w and g that starts from c: sum |w| eg of the g's errors,
///   and (W + 1) u (|c| + sum |w| (|g| + eg)) of its roundings, as computing_error has it.
/// - A sum of n products g v over tokens, whose order is not specified, and whose products are
///   rounded or fused: sum |v| eg, and (n + 3) u sum |v| (|g| + eg). Each term is rounded as a
///   product and in at most n sums, accumulate being one. (1 + u)^(n + 1) - 1 <= (n + 3) u up to
///   n = 5000, more than a case has.
///
/// `grad_out_errors`: how far grad_out may be from its values, in the same layout; null: it is
/// exact.
[[nodiscard]] GradientBounds bound_gradients(const BackwardCase& problem,
                                             const BackwardBuffers& inputs,
                                             const TensorBuffer* grad_out_errors = nullptr);

}  // namespace shortconv::tools::verify
