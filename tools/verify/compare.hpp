// How far an output may lie from the exact result.
#pragma once

#include "shortconv/problem.hpp"

namespace shortconv::tools {

/// `reference` rounded once, to nearest even, to an output element, as a double.
[[nodiscard]] double rounded_to(DType out, double reference);

/// Largest distance between the fp32 result of a correct implementation, before its final rounding,
/// and the exact result `reference`.
///
/// An fp32 chain of `width` fused multiply-adds that starts from the bias computes a with
/// |error| <= g * S, where S = |bias| + sum |w||v| is `magnitude` and g = width * u / (1 - width *
/// u) with u = 2^-24 (each step rounds a partial sum that is at most S, up to second order). The
/// bound uses g = (width + 1) * 2^-24, which covers the second order for every width up to 64.
/// Results in the subnormal range of fp32 add at most 2^-150 a step.
///
/// SiLU passes that error on enlarged by at most max |silu'| < 1.1, and adds its own relative
/// error, which the specification limits to 1e-6 for |a| <= 80. Beyond, the first term alone, at
/// least 3 * 2^-24 * 80, is far more than any tail can differ by.
[[nodiscard]] double computing_error(int width, Activation activation, double reference,
                                     double magnitude);

/// What the epilogue makes of act(a)'s `error`: a gate enlarges it, and the sum or product adds a
/// rounding of its own. `reference` is the exact result.
[[nodiscard]] double epilogue_error(Epilogue epilogue, double error, double operand,
                                    double reference);

/// Half a unit in the last place of `out` at `value`.
[[nodiscard]] double half_ulp(DType out, double value);

/// computing_error plus half a unit in the last place of `out` at `reference`: what a message
/// prints as the allowed distance.
[[nodiscard]] double error_bound(DType out, int width, Activation activation, double reference,
                                 double magnitude);

/// Whether `got`, an element of type `out`, can be the rounding of a value within computing_error
/// of `reference`. Sharper than comparing with error_bound, and right where the rounding overflows.
/// NaN and infinity are accepted exactly where `reference` has them; `magnitude` does not matter
/// there.
[[nodiscard]] bool within_bound(DType out, int width, Activation activation, double got,
                                double reference, double magnitude);

/// The same for an error from elsewhere.
[[nodiscard]] bool within_error(DType out, double got, double reference, double error);

/// Whether `got` is `reference` rounded once (any NaN for NaN).
[[nodiscard]] bool correctly_rounded(DType out, double got, double reference);

}  // namespace shortconv::tools
