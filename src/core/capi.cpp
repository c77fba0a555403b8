// The C ABI on top of the C++ API: converts the structs and catches exceptions.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string>
#include <string_view>

#include "core/c_arguments.hpp"
#include "core/check.hpp"
#include "core/schedule.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/prepare.hpp"
#include "shortconv/schedule.hpp"
#include "shortconv/shortconv.h"

namespace shortconv {
namespace {

constexpr std::size_t kErrorBytes = 1024;
thread_local char last_error[kErrorBytes] = "";

/// What the C ABI names a plan, the tensors of its arguments, and the mark of plans that it made.
struct ForwardPlanKind {
  using Args = ForwardArgs;
  using Problem = shortconv::Problem;
  using Plan = shortconv::Plan;
  static constexpr std::uint64_t kMark = 0x73686f7274636f6eull;
  static constexpr std::string_view kMadeBy = "shortconv_plan_forward";
  template <typename Visit, typename... Tensors>
  static void visit(const Visit& visit, Tensors&... tensors) {
    visit_forward_tensors(visit, tensors...);
  }
};
struct BackwardPlanKind {
  using Args = BackwardArgs;
  using Problem = BackwardProblem;
  using Plan = BackwardPlan;
  static constexpr std::uint64_t kMark = 0x6261636b77617264ull;
  static constexpr std::string_view kMadeBy = "shortconv_plan_backward";
  template <typename Visit, typename... Tensors>
  static void visit(const Visit& visit, Tensors&... tensors) {
    visit_backward_tensors(visit, tensors...);
  }
};

struct GroupedPlanKind {
  using Args = GroupedArgs;
  using Problem = GroupedProblem;
  using Plan = GroupedPlan;
  static constexpr std::uint64_t kMark = 0x67726f757065643aull;
  static constexpr std::string_view kMadeBy = "shortconv_plan_groups";
};
struct GroupedBackwardPlanKind {
  using Args = GroupedBackwardArgs;
  using Problem = GroupedBackwardProblem;
  using Plan = GroupedBackwardPlan;
  static constexpr std::uint64_t kMark = 0x67726f7570736261ull;
  static constexpr std::string_view kMadeBy = "shortconv_plan_backward_groups";
};

/// The content of a shortconv_plan and its like.
template <typename Kind>
struct MarkedPlan {
  std::uint64_t mark = 0;
  std::uint64_t layouts = 0;  // layouts_hash of the arguments
  typename Kind::Plan plan;
};
static_assert(sizeof(MarkedPlan<ForwardPlanKind>) <= sizeof(shortconv_plan));
static_assert(sizeof(MarkedPlan<BackwardPlanKind>) <= sizeof(shortconv_backward_plan));
static_assert(sizeof(MarkedPlan<GroupedPlanKind>) <= sizeof(shortconv_grouped_plan));
static_assert(sizeof(MarkedPlan<GroupedBackwardPlanKind>) <=
              sizeof(shortconv_grouped_backward_plan));
static_assert(alignof(MarkedPlan<ForwardPlanKind>) <= 16);
static_assert(alignof(MarkedPlan<BackwardPlanKind>) <= 16);

int report(const Status& status) {
  if (!status.ok()) std::snprintf(last_error, kErrorBytes, "%s", status.message().c_str());
  return static_cast<int>(status.code());
}

template <typename Body>
int guarded(Body&& body) noexcept {
  try {
    return report(body());
  } catch (const std::bad_alloc&) {
    std::snprintf(last_error, kErrorBytes, "out of host memory");
    return static_cast<int>(Code::kOutOfMemory);
  } catch (const std::exception& error) {
    std::snprintf(last_error, kErrorBytes, "internal: %s", error.what());
  } catch (...) {
    std::snprintf(last_error, kErrorBytes, "internal: unknown exception");
  }
  return static_cast<int>(Code::kInternal);
}

/// Converts a struct and passes the arguments to `use`.
template <typename Args, typename From, typename Use>
Status with_args(const From* from, Use&& use) {
  Args args;
  if (Status status = convert(from, args); !status.ok()) return status;
  return use(args);
}

/// Factors of layouts_hash: the first numbers of SplitMix64, made odd. With related factors, such
/// as multiples of one number, different shapes could have equal sums of products.
constexpr auto kFactors = [] {
  std::array<std::uint64_t, 3 + 2 * SHORTCONV_MAX_DIMS> factors{};
  std::uint64_t state = 0;
  for (std::uint64_t& factor : factors) {
    state += 0x9e3779b97f4a7c15ull;
    std::uint64_t mixed = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
    factor = (mixed ^ (mixed >> 31)) | 1;
  }
  return factors;
}();

/// Hash of dtype, device, shape and strides of all tensors. It replaces the checks of make_problem
/// for arguments like those of the plan.
template <typename Kind, typename CArgs>
std::uint64_t layouts_hash(const CArgs& args) {
  std::uint64_t hash = 0, row = 0;
  Kind::visit(
      [&](const Argument&, const shortconv_tensor* tensor) {
        ++row;
        if (tensor == nullptr) return;
        const auto word = [](auto value) { return static_cast<std::uint64_t>(value); };
        const int axes = std::clamp<int>(tensor->ndim, 0, SHORTCONV_MAX_DIMS);
        std::uint64_t sum =
            row * kFactors[0] +
            (word(tensor->dtype) << 32 | word(tensor->ndim & 0xff)) * kFactors[1] +
            (word(tensor->device_type) << 32 ^ word(tensor->device_index)) * kFactors[2];
        for (int axis = 0; axis < axes; ++axis) {
          sum += word(tensor->shape[axis]) * kFactors[3 + 2 * axis];
          sum += word(tensor->strides[axis]) * kFactors[4 + 2 * axis];
        }
        hash += (sum ^ (sum >> 32)) * kFactors[0];
      },
      args);
  return hash;
}

/// Refuses arguments whose tensors differ from those that the plan was made for.
template <typename Kind, typename CArgs>
Status check_same_layouts(const CArgs& args, const typename Kind::Plan& plan) {
  typename Kind::Args converted;
  if (Status status = convert(&args, converted); !status.ok()) return status;
  typename Kind::Problem problem;
  if (Status status = make_problem(converted, problem); !status.ok()) return status;
  if (problem == plan.problem()) return {};
  return invalid(concat("args: are '", to_string(problem), "', but the plan was made for '",
                        to_string(plan.problem()), "'"));
}

template <typename Kind, typename CArgs, typename CPlan>
Status make_c_plan(const CArgs* args, CPlan* plan) {
  if (plan == nullptr) return invalid("plan: is null");
  CArgs own;
  if (Status status = read_args(args, sizeof own, own); !status.ok()) return status;
  return with_args<typename Kind::Args>(&own, [&](const auto& converted) -> Status {
    typename Kind::Problem problem;
    if (Status status = make_problem(converted, problem); !status.ok()) return status;
    MarkedPlan<Kind> made{.mark = Kind::kMark, .layouts = layouts_hash<Kind>(own), .plan = {}};
    if (Status status = make_plan(problem, made.plan); !status.ok()) return status;
    std::memcpy(plan, &made, sizeof made);
    return {};
  });
}

template <typename Kind, typename CPlan>
Status read_plan(const CPlan* plan, MarkedPlan<Kind>& made) {
  if (plan == nullptr) return invalid("plan: is null");
  if (plan->opaque[0] != Kind::kMark) {
    return invalid(concat("plan: was not made by ", Kind::kMadeBy));
  }
  std::memcpy(static_cast<void*>(&made), plan, sizeof made);
  return {};
}

/// Reads plan and arguments, and the addresses of the arguments' tensors.
template <typename Kind, typename CPlan, typename CArgs, typename Pointers>
Status read_run(const CPlan* plan, const CArgs* args, MarkedPlan<Kind>& made, CArgs& own,
                Pointers& pointers) {
  if (Status status = read_plan(plan, made); !status.ok()) return status;
  if (Status status = read_args(args, sizeof own, own); !status.ok()) return status;
  if (layouts_hash<Kind>(own) != made.layouts) {
    if (Status status = check_same_layouts<Kind>(own, made.plan); !status.ok()) return status;
  }
  Kind::visit([](const Argument&, const shortconv_tensor* tensor,
                 void*& pointer) { pointer = tensor == nullptr ? nullptr : tensor->data; },
              own, pointers);
  return {};
}

template <typename Plan>
Status check_workspace(std::int64_t bytes, const Plan& plan) {
  const std::int64_t needed = workspace_bytes(plan);
  if (bytes >= needed) return {};
  return invalid(concat("workspace: has ", bytes, " bytes; expected ", needed));
}

template <typename Kind, typename CPlan>
Status read_workspace_bytes(const CPlan* plan, std::int64_t* bytes) {
  if (bytes == nullptr) return invalid("bytes: is null");
  MarkedPlan<Kind> made;
  if (Status status = read_plan(plan, made); !status.ok()) return status;
  *bytes = workspace_bytes(made.plan);
  return {};
}

/// make_c_plan of a call with groups.
template <typename Kind, typename CArgs, typename CPlan>
Status make_grouped_plan(const CArgs* args, CPlan* plan) {
  if (plan == nullptr) return invalid("plan: is null");
  return with_args<OwnedGroups<typename Kind::Args>>(args, [&](const auto& own) -> Status {
    typename Kind::Problem problem;
    if (Status status = make_problem(own.args, problem); !status.ok()) return status;
    MarkedPlan<Kind> made{.mark = Kind::kMark, .layouts = 0, .plan = {}};
    if (Status status = make_plan(problem, made.plan); !status.ok()) return status;
    std::memcpy(plan, &made, sizeof made);
    return {};
  });
}

template <typename Kind, typename CArgs, typename CPlan>
Status run_grouped_plan(const CPlan* plan, const CArgs* args, void* stream) {
  MarkedPlan<Kind> made;
  if (Status status = read_plan(plan, made); !status.ok()) return status;
  return with_args<OwnedGroups<typename Kind::Args>>(args, [&](const auto& own) -> Status {
    typename Kind::Problem problem;
    if (Status status = make_problem(own.args, problem); !status.ok()) return status;
    if (problem != made.plan.problem()) return invalid("args: are not those of the plan");
    if constexpr (requires { own.args.backward; }) {
      Status status = check_workspace(own.args.backward.workspace_bytes, made.plan);
      if (!status.ok()) return status;
    }
    return run(made.plan, pointers(own.args), stream);
  });
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
  return guarded([&] { return make_c_plan<ForwardPlanKind>(args, plan); });
}

int shortconv_run(const shortconv_plan* plan, const shortconv_forward_args* args, void* stream) {
  return guarded([&]() -> Status {
    MarkedPlan<ForwardPlanKind> made;
    shortconv_forward_args own;
    TensorPointers pointers;
    if (Status status = read_run(plan, args, made, own, pointers); !status.ok()) return status;
    return run(made.plan, pointers, stream);
  });
}

int shortconv_forward(const shortconv_forward_args* args, void* stream) {
  return guarded([&] {
    return with_args<ForwardArgs>(args, [&](const auto& a) { return forward(a, stream); });
  });
}

int shortconv_plan_backward(const shortconv_backward_args* args, shortconv_backward_plan* plan) {
  return guarded([&] { return make_c_plan<BackwardPlanKind>(args, plan); });
}

int shortconv_backward_workspace_bytes(const shortconv_backward_plan* plan, int64_t* bytes) {
  return guarded([&] { return read_workspace_bytes<BackwardPlanKind>(plan, bytes); });
}

int shortconv_run_backward(const shortconv_backward_plan* plan, const shortconv_backward_args* args,
                           void* stream) {
  return guarded([&]() -> Status {
    MarkedPlan<BackwardPlanKind> made;
    shortconv_backward_args own;
    BackwardPointers pointers;
    if (Status status = read_run(plan, args, made, own, pointers); !status.ok()) return status;
    if (Status status = check_workspace(own.workspace_bytes, made.plan); !status.ok())
      return status;
    pointers.workspace = own.workspace;
    return run(made.plan, pointers, stream);
  });
}

int shortconv_backward(const shortconv_backward_args* args, void* stream) {
  return guarded([&] {
    return with_args<BackwardArgs>(args, [&](const auto& a) { return backward(a, stream); });
  });
}

int shortconv_plan_groups(const shortconv_grouped_args* args, shortconv_grouped_plan* plan) {
  return guarded([&] { return make_grouped_plan<GroupedPlanKind>(args, plan); });
}

int shortconv_run_groups(const shortconv_grouped_plan* plan, const shortconv_grouped_args* args,
                         void* stream) {
  return guarded([&] { return run_grouped_plan<GroupedPlanKind>(plan, args, stream); });
}

int shortconv_forward_groups(const shortconv_grouped_args* args, void* stream) {
  return guarded([&] {
    return with_args<OwnedGroups<GroupedArgs>>(
        args, [&](const auto& own) { return forward_groups(own.args, stream); });
  });
}

int shortconv_plan_backward_groups(const shortconv_grouped_backward_args* args,
                                   shortconv_grouped_backward_plan* plan) {
  return guarded([&] { return make_grouped_plan<GroupedBackwardPlanKind>(args, plan); });
}

int shortconv_backward_groups_workspace_bytes(const shortconv_grouped_backward_plan* plan,
                                              int64_t* bytes) {
  return guarded([&] { return read_workspace_bytes<GroupedBackwardPlanKind>(plan, bytes); });
}

int shortconv_run_backward_groups(const shortconv_grouped_backward_plan* plan,
                                  const shortconv_grouped_backward_args* args, void* stream) {
  return guarded([&] { return run_grouped_plan<GroupedBackwardPlanKind>(plan, args, stream); });
}

int shortconv_backward_groups(const shortconv_grouped_backward_args* args, void* stream) {
  return guarded([&] {
    return with_args<OwnedGroups<GroupedBackwardArgs>>(
        args, [&](const auto& own) { return backward_groups(own.args, stream); });
  });
}

int shortconv_l2_norm(const shortconv_l2_norm_args* args, void* stream) {
  return guarded([&] {
    return with_args<L2NormArgs>(args, [&](const auto& a) { return l2_norm(a, stream); });
  });
}

int shortconv_delta_gates(const shortconv_gate_args* args, void* stream) {
  return guarded([&]() -> Status {
    GateArgs own;
    BackendId backend = BackendId::kAuto;
    if (Status status = convert(args, own, backend); !status.ok()) return status;
    return delta_gates(own, backend, stream);
  });
}

int shortconv_commit(const shortconv_commit_args* args, void* stream) {
  return guarded([&] {
    return with_args<CommitArgs>(args, [&](const auto& a) { return commit(a, stream); });
  });
}

int shortconv_block_snapshots(const shortconv_block_snapshots_args* args, void* stream) {
  return guarded([&] {
    return with_args<BlockSnapshotsArgs>(args,
                                         [&](const auto& a) { return block_snapshots(a, stream); });
  });
}

int shortconv_tree_parents(const shortconv_tree_parents_args* args, void* stream) {
  return guarded([&] {
    return with_args<TreeParentsArgs>(args, [&](const auto& a) { return tree_parents(a, stream); });
  });
}

int shortconv_plan_block_list(const int64_t* lengths, int64_t sequences, int32_t* block_sequence,
                              int32_t* block_offset, int64_t capacity, int64_t* count) {
  return guarded([&]() -> Status {
    if (sequences < 0)
      return invalid(concat("sequences: is ", sequences, "; sizes are not negative"));
    if (sequences > 0 && lengths == nullptr) return invalid("lengths: is null");
    if (count == nullptr) return invalid("count: is null");
    const std::span all(lengths, static_cast<std::size_t>(sequences));
    if (Status status = count_blocks(all, kBlockTokens, *count); !status.ok()) return status;
    if (*count > capacity) {
      return invalid(
          concat("capacity: is ", capacity, ", but the lengths need ", *count, " entries"));
    }
    if (*count > 0 && (block_sequence == nullptr || block_offset == nullptr)) {
      return invalid("block_sequence: or block_offset is null");
    }
    const auto entries = static_cast<std::size_t>(*count);
    fill_block_list(all, kBlockTokens, std::span(block_sequence, entries),
                    std::span(block_offset, entries));
    return {};
  });
}
