// Problem -> Plan -> run, the same for every operation.
#include "shortconv/plan.hpp"

#include <algorithm>
#include <optional>

#include "core/backend.hpp"
#include "core/check.hpp"
#include "shortconv/argument_table.hpp"

namespace shortconv {

/// Functions that access private members of OperationPlan.
struct PlanAccess {
  template <typename Operation>
  static Status make(const typename Operation::Problem& problem, OperationPlan<Operation>& plan);
  template <typename Operation>
  static Status run(const OperationPlan<Operation>& plan,
                    const typename Operation::Pointers& pointers, void* stream);
  template <typename Operation>
  static std::int64_t workspace_bytes(const OperationPlan<Operation>& plan);
  template <typename Operation>
  static std::string text(const OperationPlan<Operation>& plan);
};

namespace {

std::string_view device_argument(const Problem&) { return "x"; }
std::string_view device_argument(const CommitProblem&) { return "intermediate_states"; }
std::string_view device_argument(const BackwardProblem&) { return "x"; }
std::string_view device_argument(const GroupedProblem&) { return "x"; }
std::string_view device_argument(const GroupedBackwardProblem&) { return "x"; }

// Every operation has a backend and a device, a grouped call those of the call without groups.
template <typename AnyProblem>
const AnyProblem& call_of(const AnyProblem& p) {
  return p;
}
const Problem& call_of(const GroupedProblem& p) { return p.forward; }
const BackwardProblem& call_of(const GroupedBackwardProblem& p) { return p.backward; }
const BackwardArgs& call_of(const GroupedBackwardArgs& args) { return args.backward; }
const BackwardPointers& call_of(const GroupedBackwardPointers& at) { return at.backward; }

bool is_empty(const Problem& p) { return p.tokens == 0 || p.channels == 0; }
bool is_empty(const CommitProblem& p) {
  return p.layers == 0 || p.sequences == 0 || p.tokens == 0 || p.channels == 0 || p.slot_count == 0;
}

// The checked mode reports on the index tensors of an empty call as well.
bool is_skipped(const Problem& p) { return is_empty(p) && !p.violations.present; }
bool is_skipped(const CommitProblem& p) { return is_empty(p); }
// Without tokens the gradients of weights are 0, and those of states pass through.
bool is_skipped(const BackwardProblem& p) { return p.channels == 0; }
// Groups of copies have no channels of a convolution.
bool is_empty(const GroupedProblem& p) {
  const auto has_elements = [](const GroupLayout& group) { return group.out.has_elements; };
  return std::ranges::none_of(p.used_groups(), has_elements) && !p.gates.g.has_elements;
}
bool is_skipped(const GroupedProblem& p) { return is_empty(p) && !p.forward.violations.present; }
bool is_skipped(const GroupedBackwardProblem& p) {
  const auto has_channels = [](const GroupLayout& group) { return group.channels() > 0; };
  return std::ranges::none_of(p.used_groups(), has_channels) && p.gates.heads == 0;
}

bool check_in_place(const Problem& p, const TensorPointers& at, Checker& check) {
  if (is_empty(p)) return check.ok();
  return check.require((at.x == at.out) == p.in_place, "out",
                       p.in_place ? "is not x, but the plan works in place"
                                  : "is x, but the plan does not work in place");
}
template <typename AnyProblem, typename Pointers>
bool check_in_place(const AnyProblem&, const Pointers&, Checker& check) {
  return check.ok();
}

/// `bytes`: of the workspace, if the caller says how many it has.
template <typename Pointers>
bool check_workspace(const Pointers& pointers, std::int64_t needed,
                     std::optional<std::int64_t> bytes, Checker& check) {
  if constexpr (requires { pointers.workspace; }) {
    constexpr std::uintptr_t kAlignment = 16;
    if (bytes) {
      check.require(*bytes >= needed, "workspace", "has ", *bytes, " bytes; expected ", needed);
    }
    if (needed > 0) {
      check.require(pointers.workspace != nullptr, "workspace", "is null; expected ", needed,
                    " bytes");
      check.require(reinterpret_cast<std::uintptr_t>(pointers.workspace) % kAlignment == 0,
                    "workspace", "address is not a multiple of 16");
    }
  }
  return check.ok();
}

template <typename Problem, typename Pointers>
Status check_pointers(const Problem& problem, const Pointers& pointers, std::int64_t workspace) {
  Checker check;
  visit_tensors(
      [&](const Argument& row, const auto& layout, const auto& pointer) {
        check.require(!layout.has_elements || pointer != nullptr, row.name,
                      "is null, but the plan has it");
      },
      problem, pointers);
  check_in_place(problem, pointers, check);
  check_workspace(call_of(pointers), workspace, std::nullopt, check);
  return check.status();
}

constexpr auto kTakeAddress = [](const Argument&, const auto& tensor, void*& pointer) {
  pointer = data_of(tensor);
};

template <typename Operation>
std::int64_t workspace_of(const OperationKernels<Operation>& kernels,
                          const typename Operation::Problem& problem, const PlanStorage& choice) {
  return kernels.workspace_bytes == nullptr ? 0 : kernels.workspace_bytes(problem, choice);
}

template <typename Operation>
Status run_once(const typename Operation::Args& args, void* stream) {
  typename Operation::Problem problem;
  if (Status status = make_problem(args, problem); !status.ok()) return status;
  const Backend* backend = nullptr;
  if (Status status = choose_backend(call_of(problem).backend, call_of(problem).device.type,
                                     device_argument(problem), backend);
      !status.ok()) {
    return status;
  }
  const OperationKernels<Operation>& kernels = backend->kernels<Operation>();
  // No Plan, which would be copied, and no check_pointers: make_problem checked the addresses. This
  // saves a seventh of the host time without the launch.
  alignas(std::max_align_t) PlanStorage choice;
  if (Status status = kernels.plan(problem, choice); !status.ok()) return status;
  if (is_skipped(problem)) return {};
  const typename Operation::Pointers at = pointers(args);
  if constexpr (requires { call_of(args).workspace; }) {
    Checker check;
    check_workspace(call_of(at), workspace_of(kernels, problem, choice),
                    call_of(args).workspace_bytes, check);
    if (!check.ok()) return check.status();
  }
  return kernels.run(problem, choice, at, stream);
}

}  // namespace

template <typename Operation>
Status PlanAccess::make(const typename Operation::Problem& problem,
                        OperationPlan<Operation>& plan) {
  const Backend* backend = nullptr;
  if (Status status = choose_backend(call_of(problem).backend, call_of(problem).device.type,
                                     device_argument(problem), backend);
      !status.ok()) {
    return status;
  }
  alignas(std::max_align_t) PlanStorage choice;
  if (Status status = backend->template kernels<Operation>().plan(problem, choice); !status.ok()) {
    return status;
  }
  plan.problem_ = problem;
  plan.backend_ = backend;
  plan.storage_ = choice;
  return {};
}

template <typename Operation>
Status PlanAccess::run(const OperationPlan<Operation>& plan,
                       const typename Operation::Pointers& pointers, void* stream) {
  if (plan.backend_ == nullptr) return {Code::kInvalidArgument, "plan: was not made by make_plan"};
  if (is_skipped(plan.problem_)) return {};
  const OperationKernels<Operation>& kernels = plan.backend_->template kernels<Operation>();
  if (Status status = check_pointers(plan.problem_, pointers,
                                     workspace_of(kernels, plan.problem_, plan.storage_));
      !status.ok()) {
    return status;
  }
  return kernels.run(plan.problem_, plan.storage_, pointers, stream);
}

template <typename Operation>
std::int64_t PlanAccess::workspace_bytes(const OperationPlan<Operation>& plan) {
  if (plan.backend_ == nullptr) return 0;
  return workspace_of(plan.backend_->template kernels<Operation>(), plan.problem_, plan.storage_);
}

template <typename Operation>
std::string PlanAccess::text(const OperationPlan<Operation>& plan) {
  if (plan.backend_ == nullptr) return "no plan";
  return concat(
      name(plan.backend_->id), ": ",
      plan.backend_->template kernels<Operation>().describe(plan.problem_, plan.storage_));
}

TensorPointers pointers(const ForwardArgs& args) {
  TensorPointers pointers;
  visit_forward_tensors(kTakeAddress, args, pointers);
  return pointers;
}
CommitPointers pointers(const CommitArgs& args) {
  CommitPointers pointers;
  visit_commit_tensors(kTakeAddress, args, pointers);
  return pointers;
}
BackwardPointers pointers(const BackwardArgs& args) {
  BackwardPointers pointers;
  visit_backward_tensors(kTakeAddress, args, pointers);
  pointers.workspace = args.workspace;
  return pointers;
}

Status make_plan(const Problem& problem, Plan& plan) { return PlanAccess::make(problem, plan); }
Status make_plan(const CommitProblem& problem, CommitPlan& plan) {
  return PlanAccess::make(problem, plan);
}

Status make_plan(const BackwardProblem& problem, BackwardPlan& plan) {
  return PlanAccess::make(problem, plan);
}
Status make_plan(const GroupedProblem& problem, GroupedPlan& plan) {
  return PlanAccess::make(problem, plan);
}

Status make_plan(const GroupedBackwardProblem& problem, GroupedBackwardPlan& plan) {
  return PlanAccess::make(problem, plan);
}

GroupedPointers pointers(const GroupedArgs& args) {
  GroupedPointers pointers;
  pointers.forward = shortconv::pointers(args.forward);
  pointers.forward.out = nullptr;
  for (std::size_t i = 0; i < args.groups.size(); ++i) {
    pointers.groups[i] = args.groups[i].out.data;
  }
  if (args.gates) visit_gate_tensors(kTakeAddress, *args.gates, pointers.gates);
  return pointers;
}

GroupedBackwardPointers pointers(const GroupedBackwardArgs& args) {
  GroupedBackwardPointers pointers;
  pointers.backward = shortconv::pointers(args.backward);
  pointers.backward.grad_out = nullptr;
  for (std::size_t i = 0; i < args.groups.size(); ++i) {
    pointers.groups[i] = args.groups[i].out.data;
  }
  if (args.gates) visit_gate_gradient_tensors(kTakeAddress, *args.gates, pointers.gates);
  return pointers;
}

std::int64_t workspace_bytes(const Plan& plan) { return PlanAccess::workspace_bytes(plan); }
std::int64_t workspace_bytes(const CommitPlan& plan) { return PlanAccess::workspace_bytes(plan); }
std::int64_t workspace_bytes(const BackwardPlan& plan) { return PlanAccess::workspace_bytes(plan); }
std::int64_t workspace_bytes(const GroupedPlan& plan) { return PlanAccess::workspace_bytes(plan); }
std::int64_t workspace_bytes(const GroupedBackwardPlan& plan) {
  return PlanAccess::workspace_bytes(plan);
}

Status run(const Plan& plan, const TensorPointers& pointers, void* stream) {
  return PlanAccess::run(plan, pointers, stream);
}
Status run(const CommitPlan& plan, const CommitPointers& pointers, void* stream) {
  return PlanAccess::run(plan, pointers, stream);
}

Status run(const BackwardPlan& plan, const BackwardPointers& pointers, void* stream) {
  return PlanAccess::run(plan, pointers, stream);
}
Status run(const GroupedPlan& plan, const GroupedPointers& pointers, void* stream) {
  return PlanAccess::run(plan, pointers, stream);
}
Status run(const GroupedBackwardPlan& plan, const GroupedBackwardPointers& pointers, void* stream) {
  return PlanAccess::run(plan, pointers, stream);
}

Status forward(const ForwardArgs& args, void* stream) {
  return run_once<ForwardOperation>(args, stream);
}
Status commit(const CommitArgs& args, void* stream) {
  return run_once<CommitOperation>(args, stream);
}

Status backward(const BackwardArgs& args, void* stream) {
  return run_once<BackwardOperation>(args, stream);
}
Status forward_groups(const GroupedArgs& args, void* stream) {
  return run_once<GroupedOperation>(args, stream);
}
Status backward_groups(const GroupedBackwardArgs& args, void* stream) {
  return run_once<GroupedBackwardOperation>(args, stream);
}

std::string to_string(const Plan& plan) { return PlanAccess::text(plan); }
std::string to_string(const GroupedPlan& plan) { return PlanAccess::text(plan); }
std::string to_string(const GroupedBackwardPlan& plan) { return PlanAccess::text(plan); }

}  // namespace shortconv
