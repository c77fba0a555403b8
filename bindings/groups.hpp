// Calls with groups, norms and gates from Python.
#pragma once

#include "arguments.hpp"
#include "shortconv/status.hpp"

namespace shortconv::python {

/// The frequent arguments of a forward call without out; the number of groups; for each group out,
/// the four numbers of its map, copy, l2_norm, eps, scale and input_scale; then pairs of name and
/// value, gates among them.
[[nodiscard]] Status forward_groups_call(Arguments in);

/// The frequent arguments of a backward call without grad_out; the groups, with the gradient of out
/// in its place; then pairs of name and value, the gates and their gradients among them. The result
/// is the bytes of workspace that are missing, in which case it did not run.
[[nodiscard]] Status backward_groups_call(Arguments in, TVMFFIAny* result);

/// x, out, eps, scale, backend, stream.
[[nodiscard]] Status l2_norm_call(Arguments in);

/// Pairs of name and value.
[[nodiscard]] Status delta_gates_call(Arguments in);

}  // namespace shortconv::python
