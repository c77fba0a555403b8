// Arguments of a backward call from Python, with groups or without.
#pragma once

#include <cstdint>
#include <string_view>

#include "arguments.hpp"
#include "device_guard.hpp"
#include "shortconv/arguments.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::python {

/// A backward call as it is read.
struct BackwardCall {
  BackwardArgs args;
  TVMFFIAny workspace{}, stream{};  // None

  /// The first arguments, in this order. Groups have gradients of their own.
  void read_frequent(Arguments& in, bool has_grad_out);
  /// The value of another argument, whose name has been read; false if it is none of this call.
  [[nodiscard]] bool read_named(std::string_view name, Arguments& in);

  /// Applies workspace, once all has been read.
  void apply_workspace();
};

/// Whether a call without a workspace needs one; refuses one that is too small.
[[nodiscard]] bool is_workspace_missing(std::int64_t needed, const BackwardArgs& given);

/// Without a workspace an operation that needs one does not run; the result is the bytes that are
/// missing.
template <typename Operation>
[[nodiscard]] Status run_backward(const typename Operation::Args& args, const BackwardCall& call,
                                  TVMFFIAny* result) {
  void* const queue = Arguments::stream_of("stream", call.stream, call.args.x);
  const DeviceGuard guard(call.args.x.device);
  typename Operation::Problem problem;
  if (Status status = make_problem(args, problem); !status.ok()) return status;
  OperationPlan<Operation> plan;
  if (Status status = make_plan(problem, plan); !status.ok()) return status;
  const std::int64_t needed = workspace_bytes(plan);
  const bool is_missing = is_workspace_missing(needed, call.args);
  result->type_index = kTVMFFIInt;
  result->v_int64 = is_missing ? needed : 0;
  return is_missing ? Status{} : run(plan, pointers(args), queue);
}

}  // namespace shortconv::python
