// The C ABI over the C++ API: the only file that catches exceptions and turns structs into
// ForwardArgs.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <span>
#include <string_view>

#include "core/check.hpp"
#include "shortconv/commit.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/prepare.hpp"
#include "shortconv/schedule.hpp"
#include "shortconv/shortconv.h"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

static_assert(SHORTCONV_VIOLATIONS == kViolations);

constexpr std::size_t kErrorBytes = 1024;
thread_local char last_error[kErrorBytes] = "";

// The number in a shortconv_plan that says it was made by shortconv_plan_forward.
constexpr std::uint64_t kPlanMark = 0x73686f7274636f6eull;

struct MarkedPlan {
  std::uint64_t mark;
  Plan plan;
};
static_assert(sizeof(MarkedPlan) <= sizeof(shortconv_plan));
static_assert(alignof(MarkedPlan) <= 16);

int report(const Status& status) {
  if (!status.ok()) std::snprintf(last_error, kErrorBytes, "%s", status.message().c_str());
  return static_cast<int>(status.code());
}

template <typename Body>
int guarded(Body&& body) noexcept {
  try {
    return report(body());
  } catch (const std::exception& error) {
    std::snprintf(last_error, kErrorBytes, "internal: %s", error.what());
  } catch (...) {
    std::snprintf(last_error, kErrorBytes, "internal: unknown exception");
  }
  return static_cast<int>(Code::kInternal);
}

Status invalid(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }

// Fields that the caller's header does not have are zero; fields that ours does not have must be.
template <typename Args>
Status read_args(const Args* from, std::size_t first_version, Args& args) {
  constexpr std::size_t kLargestStruct = 4096;
  if (from == nullptr) return invalid("args: is null");
  const std::size_t size = from->struct_size;
  const bool whole_fields = size % alignof(Args) == 0;  // half a pointer is none
  if (size < first_version || size > kLargestStruct || !whole_fields) {
    return invalid(concat("args: struct_size is ", static_cast<std::int64_t>(size),
                          "; expected at least ", static_cast<std::int64_t>(first_version),
                          " and a multiple of ", static_cast<std::int64_t>(alignof(Args))));
  }
  args = {};
  std::memcpy(&args, from, std::min(size, sizeof args));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  if (std::any_of(bytes + std::min(size, sizeof args), bytes + size,
                  [](unsigned char b) { return b != 0; })) {
    return invalid("args: fields that this version does not know are not zero");
  }
  return {};
}

TensorRef tensor_of(const shortconv_tensor& from) {
  TensorRef tensor{
      .data = from.data,
      .dtype = static_cast<DType>(from.dtype & 0xffff),
      .device = {static_cast<DeviceType>(from.device_type), from.device_index},
      .ndim = from.ndim,
  };
  std::copy(std::begin(from.shape), std::end(from.shape), tensor.shape);
  std::copy(std::begin(from.strides), std::end(from.strides), tensor.strides);
  return tensor;
}

std::optional<TensorRef> optional_tensor(const shortconv_tensor* from) {
  if (from == nullptr) return std::nullopt;
  return tensor_of(*from);
}

// Which values there are, make_problem knows.
template <typename Enum>
Status narrow(std::string_view field, std::int32_t from, Enum& to) {
  if (from < 0 || from > 127)
    return invalid(concat(field, ": ", std::int64_t{from}, " is not known"));
  to = static_cast<Enum>(from);
  return {};
}

Status narrow(std::string_view field, std::int32_t from, bool& to) {
  if (from != 0 && from != 1) {
    return invalid(concat(field, ": is ", std::int64_t{from}, "; expected 0 or 1"));
  }
  to = from == 1;
  return {};
}

Status convert(const shortconv_forward_args* from, ForwardArgs& to) {
  shortconv_forward_args args;
  constexpr std::size_t kFirstVersion = offsetof(shortconv_forward_args, parents);
  if (Status status = read_args(from, kFirstVersion, args); !status.ok()) return status;
  if (args.x == nullptr) return invalid("x: is null");
  if (args.out == nullptr) return invalid("out: is null");
  if (args.weight == nullptr) return invalid("weight: is null");
  to.x = tensor_of(*args.x);
  to.out = tensor_of(*args.out);
  to.weight = tensor_of(*args.weight);
  to.bias = optional_tensor(args.bias);
  to.state = optional_tensor(args.state);
  to.read_slots = optional_tensor(args.read_slots);
  to.write_slots = optional_tensor(args.write_slots);
  to.read_offsets = optional_tensor(args.read_offsets);
  to.query_start_loc = optional_tensor(args.query_start_loc);
  to.has_initial_state = optional_tensor(args.has_initial_state);
  to.block_sequence = optional_tensor(args.block_sequence);
  to.block_offset = optional_tensor(args.block_offset);
  to.state_base = args.state_base;
  if (args.has_null_slot != 0) to.null_slot = args.null_slot;
  to.longest_sequence = args.longest_sequence;
  to.threads = args.threads;
  if (Status status =
          narrow("programmatic_launch", args.programmatic_launch, to.programmatic_launch);
      !status.ok())
    return status;
  to.parents = optional_tensor(args.parents);
  to.windows = optional_tensor(args.windows);
  to.violations = optional_tensor(args.violations);
  if (Status status = narrow("advance_state", args.advance_state, to.advance_state); !status.ok())
    return status;
  if (Status status = narrow("keeps_older", args.keeps_older, to.keeps_older); !status.ok())
    return status;
  to.ring_positions = optional_tensor(args.ring_positions);
  to.snapshots = optional_tensor(args.snapshots);
  to.window_slots = optional_tensor(args.window_slots);
  to.input_gate = optional_tensor(args.input_gate);
  to.output_gate = optional_tensor(args.output_gate);
  to.seq_idx = optional_tensor(args.seq_idx);
  if (Status status = narrow("residual", args.residual, to.residual); !status.ok()) return status;
  if (args.dilation != 0) to.dilation = args.dilation;
  if (Status status = narrow("op", args.op, to.op); !status.ok()) return status;
  if (Status status = narrow("initial_state", args.initial_state, to.initial_state); !status.ok())
    return status;
  if (Status status = narrow("activation", args.activation, to.activation); !status.ok())
    return status;
  if (Status status = narrow("padded_rows", args.padded_rows, to.padded_rows); !status.ok())
    return status;
  if (Status status = narrow("backend", args.backend, to.backend); !status.ok()) return status;
  if (Status status = narrow("schedule", args.schedule, to.schedule); !status.ok()) return status;
  return {};
}

Status convert(const shortconv_commit_args* from, CommitArgs& to) {
  shortconv_commit_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  if (args.windows == nullptr) return invalid("windows: is null");
  if (args.state == nullptr) return invalid("state: is null");
  if (args.accepted == nullptr) return invalid("accepted: is null");
  to.windows = tensor_of(*args.windows);
  to.state = tensor_of(*args.state);
  to.accepted = tensor_of(*args.accepted);
  to.slots = optional_tensor(args.slots);
  to.second_slots = optional_tensor(args.second_slots);
  to.query_start_loc = optional_tensor(args.query_start_loc);
  to.width = args.width;
  to.token_rows = args.token_rows;
  to.state_base = args.state_base;
  if (args.has_null_slot != 0) to.null_slot = args.null_slot;
  to.threads = args.threads;
  if (Status status = narrow("backend", args.backend, to.backend); !status.ok()) return status;
  return {};
}

Status convert(const shortconv_block_snapshots_args* from, BlockSnapshotsArgs& to) {
  shortconv_block_snapshots_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  if (args.query_start_loc == nullptr) return invalid("query_start_loc: is null");
  if (args.computed_tokens == nullptr) return invalid("computed_tokens: is null");
  if (args.block_slots == nullptr) return invalid("block_slots: is null");
  if (args.snapshots == nullptr) return invalid("snapshots: is null");
  to.query_start_loc = tensor_of(*args.query_start_loc);
  to.computed_tokens = tensor_of(*args.computed_tokens);
  to.block_slots = tensor_of(*args.block_slots);
  to.snapshots = tensor_of(*args.snapshots);
  to.tokens = args.tokens;
  to.block_tokens = args.block_tokens;
  return narrow("backend", args.backend, to.backend);
}

Status convert(const shortconv_tree_parents_args* from, TreeParentsArgs& to) {
  shortconv_tree_parents_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  if (args.first_child == nullptr) return invalid("first_child: is null");
  if (args.next_sibling == nullptr) return invalid("next_sibling: is null");
  if (args.parents == nullptr) return invalid("parents: is null");
  to.first_child = tensor_of(*args.first_child);
  to.next_sibling = tensor_of(*args.next_sibling);
  to.query_start_loc = optional_tensor(args.query_start_loc);
  to.parents = tensor_of(*args.parents);
  return narrow("backend", args.backend, to.backend);
}

Status make_plan(const ForwardArgs& args, Plan& plan) {
  Problem problem;
  if (Status status = make_problem(args, problem); !status.ok()) return status;
  return make_plan(problem, plan);
}

}  // namespace
}  // namespace shortconv

using namespace shortconv;

const char* shortconv_version(void) {
  static const std::string text =
      concat(std::int64_t{SHORTCONV_VERSION_MAJOR}, ".", std::int64_t{SHORTCONV_VERSION_MINOR}, ".",
             std::int64_t{SHORTCONV_VERSION_PATCH});
  return text.c_str();
}

const char* shortconv_last_error(void) { return last_error; }

int shortconv_plan_forward(const shortconv_forward_args* args, shortconv_plan* plan) {
  return guarded([&]() -> Status {
    if (plan == nullptr) return invalid("plan: is null");
    ForwardArgs converted;
    if (Status status = convert(args, converted); !status.ok()) return status;
    MarkedPlan made{.mark = kPlanMark, .plan = {}};
    if (Status status = make_plan(converted, made.plan); !status.ok()) return status;
    std::memcpy(plan, &made, sizeof made);
    return {};
  });
}

int shortconv_run(const shortconv_plan* plan, const shortconv_forward_args* args, void* stream) {
  return guarded([&]() -> Status {
    if (plan == nullptr) return invalid("plan: is null");
    if (plan->opaque[0] != kPlanMark)
      return invalid("plan: was not made by shortconv_plan_forward");
    ForwardArgs converted;
    if (Status status = convert(args, converted); !status.ok()) return status;
    MarkedPlan made;
    std::memcpy(static_cast<void*>(&made), plan, sizeof made);
    return run(made.plan, addresses(converted), stream);
  });
}

int shortconv_forward(const shortconv_forward_args* args, void* stream) {
  return guarded([&]() -> Status {
    ForwardArgs converted;
    if (Status status = convert(args, converted); !status.ok()) return status;
    return forward(converted, stream);
  });
}

int shortconv_commit(const shortconv_commit_args* args, void* stream) {
  return guarded([&]() -> Status {
    CommitArgs converted;
    if (Status status = convert(args, converted); !status.ok()) return status;
    return commit(converted, stream);
  });
}

int shortconv_block_snapshots(const shortconv_block_snapshots_args* args, void* stream) {
  return guarded([&]() -> Status {
    BlockSnapshotsArgs converted;
    if (Status status = convert(args, converted); !status.ok()) return status;
    return block_snapshots(converted, stream);
  });
}

int shortconv_tree_parents(const shortconv_tree_parents_args* args, void* stream) {
  return guarded([&]() -> Status {
    TreeParentsArgs converted;
    if (Status status = convert(args, converted); !status.ok()) return status;
    return tree_parents(converted, stream);
  });
}

int shortconv_plan_block_list(const int64_t* lengths, int64_t sequences, int32_t* block_sequence,
                              int32_t* block_offset, int64_t capacity, int64_t* count) {
  return guarded([&]() -> Status {
    if (sequences < 0)
      return invalid(concat("sequences: is ", sequences, "; sizes are not negative"));
    if (sequences > 0 && lengths == nullptr) return invalid("lengths: is null");
    if (count == nullptr) return invalid("count: is null");
    const BlockList list = plan_block_list(std::span(lengths, static_cast<std::size_t>(sequences)));
    *count = static_cast<std::int64_t>(list.sequence.size());
    if (*count > capacity) {
      return invalid(
          concat("capacity: is ", capacity, ", but the lengths need ", *count, " entries"));
    }
    if (*count > 0 && (block_sequence == nullptr || block_offset == nullptr)) {
      return invalid("block_sequence: or block_offset is null");
    }
    std::copy(list.sequence.begin(), list.sequence.end(), block_sequence);
    std::copy(list.offset.begin(), list.offset.end(), block_offset);
    return {};
  });
}
