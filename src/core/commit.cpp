// Commit: arguments -> CommitProblem -> CommitPlan -> run. Everything the host can know is checked
// here and only here.
#include "shortconv/commit.hpp"

#include <algorithm>

#include "core/backend.hpp"
#include "core/capability.hpp"
#include "core/check.hpp"

namespace shortconv {
namespace {

struct Sizes {
  Symbol layers{"layers"}, sequences{"sequences"}, rows{"rows"}, channels{"channels"};
  Symbol tokens{"tokens"}, window_rows{"width - 1"}, bounds{"sequences + 1"};
  Symbol slots{"slots"}, columns{"columns"};
};

void check_options(const CommitArgs& args, Checker& check) {
  check_listed(check, "backend", kBackends, args.backend);
  check.require(args.threads >= 0, "threads", "is ", std::int64_t{args.threads},
                "; expected 0 (all) or more");
  check.require(args.width >= kMinWidth && args.width <= kMaxWidth, "width", "is ",
                std::int64_t{args.width}, "; expected ", std::int64_t{kMinWidth}, " to ",
                std::int64_t{kMaxWidth});
  const std::int64_t rows = std::int64_t{args.width} - 1;
  if (args.query_start_loc) {
    check.require(args.token_rows == rows, "token_rows", "is ", std::int64_t{args.token_rows},
                  ", but packed windows lie one after the other; expected ", rows, " (width - 1)");
  } else {
    check.require(args.token_rows == rows || args.token_rows == 1, "token_rows", "is ",
                  std::int64_t{args.token_rows}, "; expected ", rows,
                  " (width - 1: windows lie one after the other) or 1 (they overlap)");
  }
}

void check_windows(const CommitArgs& args, Checker& check, Sizes& sizes, CommitProblem& problem) {
  const TensorRef& windows = args.windows;
  const std::int64_t window_rows = args.width - 1;
  if (!args.query_start_loc) {
    check.tensor("windows", windows,
                 {&sizes.layers, &sizes.sequences, &sizes.rows, &sizes.channels});
  } else if (windows.ndim == 4) {
    sizes.window_rows.value = window_rows;
    sizes.window_rows.owner = "width";
    check.tensor("windows", windows,
                 {&sizes.layers, &sizes.tokens, &sizes.window_rows, &sizes.channels});
  } else {
    check.tensor("windows", windows, {&sizes.layers, &sizes.rows, &sizes.channels});
  }
  check.dtype("windows", windows, kFloats);
  if (!check.ok()) return;

  problem.dtype = windows.dtype;
  problem.layers = sizes.layers.value;
  problem.channels = sizes.channels.value;
  problem.windows_layer = windows.strides[0];
  problem.windows_row = windows.strides[windows.ndim - 2];
  problem.windows_channel = windows.strides[windows.ndim - 1];
  if (sizes.tokens.value >= 0) {
    problem.tokens = sizes.tokens.value;
    problem.windows_token = windows.strides[1];
    return;
  }
  if (!args.query_start_loc) problem.windows_sequence = windows.strides[1];
  const std::int64_t rows = sizes.rows.value;
  problem.tokens = rows < window_rows ? 0 : (rows - window_rows) / args.token_rows + 1;
  // A product only where there is a second token: a stride may be anything if it is never taken.
  const bool empty = problem.layers == 0 || problem.channels == 0 || sizes.sequences.value == 0;
  const bool taken = problem.tokens > 1 && !empty;
  problem.windows_token = taken ? args.token_rows * problem.windows_row : 0;
}

void check_query_start_loc(const CommitArgs& args, Checker& check, Sizes& sizes,
                           CommitProblem& problem) {
  if (!args.query_start_loc) return;
  const TensorRef& bounds = *args.query_start_loc;
  check.tensor("query_start_loc", bounds, {&sizes.bounds});
  check.dtype("query_start_loc", bounds, kIndices)
      .device("query_start_loc", bounds, args.windows.device, "windows");
  check.require(sizes.bounds.value >= 1, "query_start_loc",
                "is empty; expected sequences + 1 entries");
  if (!check.ok()) return;
  sizes.sequences = {
      .name = "sequences", .value = sizes.bounds.value - 1, .owner = "query_start_loc"};
  problem.has_query_start_loc = true;
  problem.query_start_loc_dtype = bounds.dtype;
  problem.query_start_loc_stride = bounds.strides[0];
}

void check_indices(Checker& check, std::string_view argument, const TensorRef& tensor,
                   const CommitArgs& args, Symbol& sequences, DType& dtype, std::int64_t& stride) {
  check.tensor(argument, tensor, {&sequences})
      .dtype(argument, tensor, kIndices)
      .device(argument, tensor, args.windows.device, "windows");
  dtype = tensor.dtype;
  stride = tensor.strides[0];
}

void check_sequences(const CommitArgs& args, Checker& check, Sizes& sizes, CommitProblem& problem) {
  check_indices(check, "accepted", args.accepted, args, sizes.sequences, problem.accepted_dtype,
                problem.accepted_stride);
  problem.has_slots = args.slots.has_value();
  if (args.slots) {
    check_indices(check, "slots", *args.slots, args, sizes.sequences, problem.slots_dtype,
                  problem.slots_stride);
  }
  problem.has_second_slots = args.second_slots.has_value();
  if (args.second_slots) {
    check_indices(check, "second_slots", *args.second_slots, args, sizes.sequences,
                  problem.second_slots_dtype, problem.second_slots_stride);
  }
  problem.sequences = sizes.sequences.value;
  problem.has_null_slot = args.null_slot.has_value();
  problem.null_slot = args.null_slot.value_or(0);
}

void check_state(const CommitArgs& args, Checker& check, Sizes& sizes, CommitProblem& problem) {
  const TensorRef& state = args.state;
  check.tensor("state", state, {&sizes.layers, &sizes.slots, &sizes.columns, &sizes.channels});
  check.dtype("state", state, kFloats).device("state", state, args.windows.device, "windows");
  check.require(state.dtype == args.windows.dtype, "windows", "dtype is ", name(args.windows.dtype),
                ", but state has ", name(state.dtype),
                "; a commit moves bits and converts nothing");
  check_written(check, "state", state);
  const std::int64_t history = args.width - 1;
  check.require(args.state_base >= 0 && args.state_base <= sizes.columns.value - history, "state",
                "has ", sizes.columns.value, " columns, but width ", std::int64_t{args.width},
                " needs ", history, " from column ", args.state_base, " (state_base) on");
  check.require(args.slots.has_value() || sizes.slots.value >= sizes.sequences.value, "state",
                "has ", sizes.slots.value, " slots, but without slots each of the ",
                sizes.sequences.value, " sequences uses the slot of its number");
  if (!check.ok()) return;
  check.require(!ranges_overlap(args.windows, state), "state", "overlaps windows");
  problem.slots = sizes.slots.value;
  problem.state_columns = sizes.columns.value;
  problem.state_base = args.state_base;
  problem.state_layer = state.strides[0];
  problem.state_slot = state.strides[1];
  problem.state_column = state.strides[2];
  problem.state_channel = state.strides[3];
}

// Strides of zero allow sizes whose product no backend could count.
void check_count(Checker& check, const CommitProblem& p) {
  constexpr __int128 kMost = static_cast<__int128>(1) << 62;
  const __int128 windows = static_cast<__int128>(p.layers) * p.sequences;
  check.require(windows < kMost && windows * p.channels < kMost, "windows",
                "has more than 2^62 elements to commit");
}

bool empty(const CommitProblem& p) {
  return p.layers == 0 || p.sequences == 0 || p.tokens == 0 || p.channels == 0 || p.slots == 0;
}

// The addresses must be those of the arguments the problem was made from, in kind if not in value.
Status check_addresses(const CommitProblem& problem, const CommitAddresses& at) {
  Checker check;
  check.require(at.windows != nullptr, "windows", "is null");
  check.require(at.state != nullptr, "state", "is null");
  check.require(at.accepted != nullptr, "accepted", "is null");
  check.require(!problem.has_slots || at.slots != nullptr, "slots",
                "is null, but the plan has them");
  check.require(!problem.has_second_slots || at.second_slots != nullptr, "second_slots",
                "is null, but the plan has them");
  check.require(!problem.has_query_start_loc || at.query_start_loc != nullptr, "query_start_loc",
                "is null, but the plan has one");
  return check.status();
}

}  // namespace

Status make_commit_problem(const CommitArgs& args, CommitProblem& problem) {
  CommitProblem made{.backend = args.backend, .device = args.windows.device};
  made.width = args.width;
  made.threads = args.threads;
  Checker check;
  Sizes sizes;
  check_options(args, check);
  if (check.ok()) check_windows(args, check, sizes, made);
  if (check.ok()) check_query_start_loc(args, check, sizes, made);
  if (check.ok()) check_sequences(args, check, sizes, made);
  if (check.ok()) check_state(args, check, sizes, made);
  if (check.ok()) check_count(check, made);
  if (!check.ok()) return check.status();
  problem = made;
  return {};
}

CommitAddresses addresses(const CommitArgs& args) {
  return {
      .windows = args.windows.data,
      .state = args.state.data,
      .accepted = args.accepted.data,
      .slots = data_of(args.slots),
      .second_slots = data_of(args.second_slots),
      .query_start_loc = data_of(args.query_start_loc),
  };
}

Status make_commit_plan(const CommitProblem& problem, CommitPlan& plan) {
  CommitPlan made;
  if (Status status =
          choose_backend(problem.backend, problem.device.type, "windows", made.backend_);
      !status.ok()) {
    return status;
  }
  made.problem_ = problem;
  if (Status status = made.backend_->plan_commit(problem, made.storage_); !status.ok()) {
    return status;
  }
  plan = made;
  return {};
}

Status run(const CommitPlan& plan, const CommitAddresses& addresses, void* stream) {
  if (plan.backend_ == nullptr) {
    return {Code::kInvalidArgument, "plan: was not made by make_commit_plan"};
  }
  if (empty(plan.problem_)) return {};
  if (Status status = check_addresses(plan.problem_, addresses); !status.ok()) return status;
  return plan.backend_->run_commit(plan.problem_, plan.storage_, addresses, stream);
}

Status commit(const CommitArgs& args, void* stream) {
  CommitProblem problem;
  if (Status status = make_commit_problem(args, problem); !status.ok()) return status;
  CommitPlan plan;
  if (Status status = make_commit_plan(problem, plan); !status.ok()) return status;
  return run(plan, addresses(args), stream);
}

}  // namespace shortconv
