#include "shortconv/plan.hpp"

#include "core/backend.hpp"
#include "core/check.hpp"

namespace shortconv {
namespace {

void check_index_addresses(const Problem& problem, const Addresses& at, Checker& check) {
  check.require(!problem.has_query_start_loc || at.query_start_loc != nullptr, "query_start_loc",
                "is null, but the plan has one");
  if (problem.sequences == 0) return;
  check.require(!problem.has_read_slots || at.read_slots != nullptr, "read_slots",
                "is null, but the plan has one");
  check.require(!problem.has_write_slots || at.write_slots != nullptr, "write_slots",
                "is null, but the plan has one");
  check.require(!problem.has_read_offsets || at.read_offsets != nullptr, "read_offsets",
                "is null, but the plan has one");
  check.require(!problem.has_ring_positions || at.ring_positions != nullptr, "ring_positions",
                "is null, but the plan has them");
  check.require(problem.initial_state != InitialState::kByFlag || at.has_initial_state != nullptr,
                "has_initial_state", "is null, but the plan has one");
  check.require(problem.snapshots == 0 || at.snapshots != nullptr, "snapshots",
                "is null, but the plan has them");
  check.require(!problem.has_parents || problem.tokens == 0 || at.parents != nullptr, "parents",
                "is null, but the plan has them");
  check.require(!problem.has_window_slots || at.window_slots != nullptr, "window_slots",
                "is null, but the plan has them");
}

// The addresses must be those of the arguments the problem was made from, in kind if not in value.
Status check_addresses(const Problem& problem, const Addresses& at) {
  const bool empty = problem.tokens == 0 || problem.channels == 0;
  if (empty && !problem.has_violations) return {};
  Checker check;
  check.require(!problem.has_violations || at.violations != nullptr, "violations",
                "is null, but the plan has one");
  if (empty) {  // only the report is written, from index tensors alone
    check_index_addresses(problem, at, check);
    return check.status();
  }
  check.require(at.x != nullptr, "x", "is null");
  check.require(at.out != nullptr, "out", "is null");
  check.require(at.weight != nullptr, "weight", "is null");
  check.require(!problem.has_bias || at.bias != nullptr, "bias", "is null, but the plan has one");
  check.require(!problem.has_state || problem.slots == 0 || at.state != nullptr, "state",
                "is null, but the plan has one");
  check_index_addresses(problem, at, check);
  check.require(problem.blocks == 0 || (at.block_sequence != nullptr && at.block_offset != nullptr),
                "block_sequence", "or block_offset is null, but the plan has them");
  const bool no_window_slots =
      problem.has_window_slots && (problem.window_slots == 0 || problem.window_tokens == 0);
  check.require(!problem.has_windows || no_window_slots || at.windows != nullptr, "windows",
                "is null, but the plan has them");
  check.require(!problem.has_input_gate || at.input_gate != nullptr, "input_gate",
                "is null, but the plan has one");
  check.require(problem.epilogue != Epilogue::kOutputGate || at.output_gate != nullptr,
                "output_gate", "is null, but the plan has one");
  check.require(!problem.has_seq_idx || at.seq_idx != nullptr, "seq_idx",
                "is null, but the plan has one");
  check.require((at.x == at.out) == problem.in_place, "out",
                problem.in_place ? "is not x, but the plan works in place"
                                 : "is x, but the plan does not work in place");
  return check.status();
}

}  // namespace

Addresses addresses(const ForwardArgs& args) {
  return {
      .x = args.x.data,
      .out = args.out.data,
      .weight = args.weight.data,
      .bias = data_of(args.bias),
      .state = data_of(args.state),
      .read_slots = data_of(args.read_slots),
      .write_slots = data_of(args.write_slots),
      .read_offsets = data_of(args.read_offsets),
      .query_start_loc = data_of(args.query_start_loc),
      .has_initial_state = data_of(args.has_initial_state),
      .block_sequence = data_of(args.block_sequence),
      .block_offset = data_of(args.block_offset),
      .parents = data_of(args.parents),
      .windows = data_of(args.windows),
      .violations = data_of(args.violations),
      .ring_positions = data_of(args.ring_positions),
      .snapshots = data_of(args.snapshots),
      .window_slots = data_of(args.window_slots),
      .input_gate = data_of(args.input_gate),
      .output_gate = data_of(args.output_gate),
      .seq_idx = data_of(args.seq_idx),
  };
}

Status make_plan(const Problem& problem, Plan& plan) {
  const Backend* backend = nullptr;
  if (Status status = choose_backend(problem.backend, problem.device.type, "x", backend);
      !status.ok()) {
    return status;
  }
  PlanStorage choice{};
  if (Status status = backend->plan(problem, choice); !status.ok()) return status;
  plan.problem_ = problem;
  plan.backend_ = backend;
  plan.storage_ = choice;
  return {};
}

Status run(const Plan& plan, const Addresses& addresses, void* stream) {
  if (plan.backend_ == nullptr) return {Code::kInvalidArgument, "plan: was not made by make_plan"};
  if (Status status = check_addresses(plan.problem_, addresses); !status.ok()) return status;
  return plan.backend_->run(plan.problem_, plan.storage_, addresses, stream);
}

// Without a Plan, which would have to be copied together, and without a look at the addresses,
// which make_problem has just seen: a seventh of what the host does in a call besides the launch.
Status forward(const ForwardArgs& args, void* stream) {
  Problem problem;
  if (Status status = make_problem(args, problem); !status.ok()) return status;
  const Backend* backend = nullptr;
  if (Status status = choose_backend(problem.backend, problem.device.type, "x", backend);
      !status.ok()) {
    return status;
  }
  alignas(std::max_align_t) PlanStorage choice;
  if (Status status = backend->plan(problem, choice); !status.ok()) return status;
  return backend->run(problem, choice, addresses(args), stream);
}

std::string to_string(const Plan& plan) {
  if (plan.backend_ == nullptr) return "no plan";
  return concat(name(plan.backend_->id), ": ",
                plan.backend_->describe(plan.problem_, plan.storage_));
}

}  // namespace shortconv
