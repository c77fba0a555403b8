// The C ABI on top of the C++ API: converts the structs and catches exceptions.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <string_view>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "core/schedule.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/prepare.hpp"
#include "shortconv/schedule.hpp"
#include "shortconv/shortconv.h"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

static_assert(SHORTCONV_VIOLATIONS == kViolations);

// The numbers of the C enumerators; a new enumerator needs a case.
constexpr int c_value(Op value) {
  switch (value) {
    case Op::kForward:
      return SHORTCONV_OP_FORWARD;
    case Op::kDecode:
      return SHORTCONV_OP_DECODE;
    case Op::kVerify:
      return SHORTCONV_OP_VERIFY;
  }
  return -1;
}
constexpr int c_value(Activation value) {
  switch (value) {
    case Activation::kNone:
      return SHORTCONV_ACTIVATION_NONE;
    case Activation::kSilu:
      return SHORTCONV_ACTIVATION_SILU;
  }
  return -1;
}
constexpr int c_value(Schedule value) {
  switch (value) {
    case Schedule::kFlat:
      return SHORTCONV_SCHEDULE_FLAT;
    case Schedule::kBlockList:
      return SHORTCONV_SCHEDULE_BLOCK_LIST;
    case Schedule::kSequenceGrid:
      return SHORTCONV_SCHEDULE_SEQUENCE_GRID;
  }
  return -1;
}
constexpr int c_value(PaddedRows value) {
  switch (value) {
    case PaddedRows::kZero:
      return SHORTCONV_PADDED_ZERO;
    case PaddedRows::kUntouched:
      return SHORTCONV_PADDED_UNTOUCHED;
    case PaddedRows::kCopy:
      return SHORTCONV_PADDED_COPY;
  }
  return -1;
}
constexpr int c_value(BackendId value) {
  switch (value) {
    case BackendId::kAuto:
      return SHORTCONV_BACKEND_AUTO;
    case BackendId::kReference:
      return SHORTCONV_BACKEND_REFERENCE;
    case BackendId::kCpu:
      return SHORTCONV_BACKEND_CPU_SIMD;
    case BackendId::kCuda:
      return SHORTCONV_BACKEND_CUDA;
  }
  return -1;
}
template <typename T, std::size_t kCount>
constexpr bool has_c_values(const std::array<Named<T>, kCount>& list) {
  return std::ranges::all_of(
      list, [](const auto& row) { return c_value(row.value) == static_cast<int>(row.value); });
}
static_assert(has_c_values(kOps) && has_c_values(kActivations) && has_c_values(kSchedules) &&
              has_c_values(kPaddedRows) && has_c_values(kBackends));

constexpr std::size_t kErrorBytes = 1024;
thread_local char last_error[kErrorBytes] = "";

// Marks a shortconv_plan made by shortconv_plan_forward.
constexpr std::uint64_t kPlanMark = 0x73686f7274636f6eull;

struct MarkedPlan {
  std::uint64_t mark;
  std::uint64_t layouts;  // layouts_hash of the arguments
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

Status invalid(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }

// Fields missing in the caller's header are zero; fields missing in this one must be zero.
template <typename Args>
Status read_args(const Args* from, std::size_t smallest, Args& args) {
  constexpr std::size_t kLargestStruct = 4096;
  if (from == nullptr) return invalid("args: is null");
  const std::size_t size = from->struct_size;
  const bool whole_fields = size % alignof(Args) == 0;  // no partial pointer
  if (size < smallest || size > kLargestStruct || !whole_fields) {
    return invalid(concat("args: struct_size is ", static_cast<std::int64_t>(size),
                          "; expected at least ", static_cast<std::int64_t>(smallest),
                          " and a multiple of ", static_cast<std::int64_t>(alignof(Args))));
  }
  args = {};
  std::memcpy(&args, from, std::min(size, sizeof args));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  if (std::any_of(bytes + std::min(size, sizeof args), bytes + size,
                  [](unsigned char b) { return b != 0; })) {
    return invalid("args: fields unknown to this version are not zero");
  }
  return {};
}

TensorRef tensor_of(const shortconv_tensor& from) {
  constexpr std::int32_t kUnknown = 0xffff;  // what does not fit into a DType either
  TensorRef tensor{
      .data = from.data,
      .dtype = static_cast<DType>(from.dtype >> 16 == 0 ? from.dtype : kUnknown),
      .device = {static_cast<DeviceType>(from.device_type), from.device_index},
      .ndim = from.ndim,
  };
  std::copy(std::begin(from.shape), std::end(from.shape), tensor.shape);
  std::copy(std::begin(from.strides), std::end(from.strides), tensor.strides);
  return tensor;
}

// make_problem checks the values.
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

/// The first failure among several conversions.
template <typename... Fields>
Status first_failure(Fields... statuses) {
  Status first;
  ((first.ok() ? void(first = std::move(statuses)) : void()), ...);
  return first;
}

Status convert_tensor(std::string_view name, const shortconv_tensor* from, TensorRef& to) {
  if (from == nullptr) return invalid(concat(name, ": is null"));
  to = tensor_of(*from);
  return {};
}
Status convert_tensor(std::string_view, const shortconv_tensor* from,
                      std::optional<TensorRef>& to) {
  if (from != nullptr) to = tensor_of(*from);
  return {};
}

/// Converts tensors of the table and keeps the first failure.
class ConvertTensor {
 public:
  explicit ConvertTensor(Status& status) : status_(status) {}
  void operator()(const Argument& row, const shortconv_tensor* from, auto& to) const {
    Status status = convert_tensor(row.name, from, to);
    if (status_.ok() && !status.ok()) status_ = std::move(status);
  }

 private:
  Status& status_;
};

Status convert(const shortconv_forward_args* from, ForwardArgs& to) {
  shortconv_forward_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status;
  visit_forward_tensors(ConvertTensor(status), args, to);
  if (!status.ok()) return status;
  bool no_programmatic_launch = false;
  status = narrow("no_programmatic_launch", args.no_programmatic_launch, no_programmatic_launch);
  if (!status.ok()) return status;
  to.options.programmatic_launch = !no_programmatic_launch;
  if (args.dilation != 0) to.dilation = args.dilation;
  to.pool.base_column = args.base_column;
  if (args.has_null_slot != 0) to.pool.null_slot = args.null_slot;
  to.options.max_seqlen = args.max_seqlen;
  to.options.threads = args.threads;
  return first_failure(narrow("op", args.op, to.op),
                       narrow("activation", args.activation, to.epilogue.activation),
                       narrow("residual", args.residual, to.epilogue.residual),
                       narrow("initial_state", args.initial_state, to.sequences.initial_state),
                       narrow("padded_rows", args.padded_rows, to.sequences.padded_rows),
                       narrow("shift_full_state", args.shift_full_state, to.pool.shift_full_state),
                       narrow("update_state", args.update_state, to.drafts.update_state),
                       narrow("backend", args.backend, to.options.backend),
                       narrow("schedule", args.schedule, to.options.schedule));
}

Status convert(const shortconv_commit_args* from, CommitArgs& to) {
  shortconv_commit_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status;
  visit_commit_tensors(ConvertTensor(status), args, to);
  if (!status.ok()) return status;
  to.width = args.width;
  to.rows_per_token = args.rows_per_token;
  to.base_column = args.base_column;
  if (args.has_null_slot != 0) to.null_slot = args.null_slot;
  to.threads = args.threads;
  return narrow("backend", args.backend, to.backend);
}

Status convert(const shortconv_block_snapshots_args* from, BlockSnapshotsArgs& to) {
  shortconv_block_snapshots_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  to.tokens = args.tokens;
  to.block_size = args.block_size;
  return first_failure(
      convert_tensor("query_start_loc", args.query_start_loc, to.query_start_loc),
      convert_tensor("num_computed_tokens", args.num_computed_tokens, to.num_computed_tokens),
      convert_tensor("block_slots", args.block_slots, to.block_slots),
      convert_tensor("snapshots", args.snapshots, to.snapshots),
      narrow("backend", args.backend, to.backend));
}

Status convert(const shortconv_tree_parents_args* from, TreeParentsArgs& to) {
  shortconv_tree_parents_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  return first_failure(convert_tensor("first_child", args.first_child, to.first_child),
                       convert_tensor("next_sibling", args.next_sibling, to.next_sibling),
                       convert_tensor("query_start_loc", args.query_start_loc, to.query_start_loc),
                       convert_tensor("parents", args.parents, to.parents),
                       narrow("backend", args.backend, to.backend));
}

/// Converts a struct and passes the arguments to `use`.
template <typename Args, typename From, typename Use>
Status with_args(const From* from, Use&& use) {
  Args args;
  if (Status status = convert(from, args); !status.ok()) return status;
  return use(args);
}

Status make_plan(const ForwardArgs& args, Plan& plan) {
  Problem problem;
  if (Status status = make_problem(args, problem); !status.ok()) return status;
  return make_plan(problem, plan);
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
std::uint64_t layouts_hash(const shortconv_forward_args& args) {
  std::uint64_t hash = 0, row = 0;
  visit_forward_tensors(
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
Status check_same_layouts(const shortconv_forward_args& args, const Plan& plan) {
  ForwardArgs converted;
  if (Status status = convert(&args, converted); !status.ok()) return status;
  Problem problem;
  if (Status status = make_problem(converted, problem); !status.ok()) return status;
  if (problem == plan.problem()) return {};
  return invalid(concat("args: are '", to_string(problem), "', but the plan was made for '",
                        to_string(plan.problem()), "'"));
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
    shortconv_forward_args own;
    if (Status status = read_args(args, sizeof own, own); !status.ok()) return status;
    return with_args<ForwardArgs>(&own, [&](const ForwardArgs& converted) -> Status {
      MarkedPlan made{.mark = kPlanMark, .layouts = layouts_hash(own), .plan = {}};
      if (Status status = make_plan(converted, made.plan); !status.ok()) return status;
      std::memcpy(plan, &made, sizeof made);
      return {};
    });
  });
}

int shortconv_run(const shortconv_plan* plan, const shortconv_forward_args* args, void* stream) {
  return guarded([&]() -> Status {
    if (plan == nullptr) return invalid("plan: is null");
    if (plan->opaque[0] != kPlanMark)
      return invalid("plan: was not made by shortconv_plan_forward");
    shortconv_forward_args own;
    if (Status status = read_args(args, sizeof own, own); !status.ok()) return status;
    MarkedPlan made;
    std::memcpy(static_cast<void*>(&made), plan, sizeof made);
    if (layouts_hash(own) != made.layouts) {
      if (Status status = check_same_layouts(own, made.plan); !status.ok()) return status;
    }
    TensorPointers pointers;
    visit_forward_tensors(
        [](const Argument&, const shortconv_tensor* tensor, void*& pointer) {
          pointer = tensor == nullptr ? nullptr : tensor->data;
        },
        own, pointers);
    return run(made.plan, pointers, stream);
  });
}

int shortconv_forward(const shortconv_forward_args* args, void* stream) {
  return guarded([&] {
    return with_args<ForwardArgs>(args, [&](const auto& a) { return forward(a, stream); });
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
