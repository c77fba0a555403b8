// Conversion of the structs of the C ABI.
#include "core/c_arguments.hpp"

#include <array>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string_view>

#include "core/capability.hpp"
#include "shortconv/argument_table.hpp"
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
constexpr int c_value(DecayForm value) {
  switch (value) {
    case DecayForm::kLog:
      return SHORTCONV_DECAY_LOG;
    case DecayForm::kExp:
      return SHORTCONV_DECAY_EXP;
  }
  return -1;
}
template <typename T, std::size_t kCount>
constexpr bool has_c_values(const std::array<Named<T>, kCount>& list) {
  return std::ranges::all_of(
      list, [](const auto& row) { return c_value(row.value) == static_cast<int>(row.value); });
}
static_assert(has_c_values(kOps) && has_c_values(kActivations) && has_c_values(kSchedules) &&
              has_c_values(kPaddedRows) && has_c_values(kBackends) && has_c_values(kDecayForms));

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

}  // namespace

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

Status convert(const shortconv_backward_args* from, BackwardArgs& to) {
  shortconv_backward_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status;
  visit_backward_tensors(ConvertTensor(status), args, to);
  if (!status.ok()) return status;
  if (args.workspace_bytes < 0) {
    return invalid(concat("workspace_bytes: is ", args.workspace_bytes, "; expected 0 or more"));
  }
  if (args.dilation != 0) to.dilation = args.dilation;
  to.threads = args.threads;
  to.workspace = args.workspace;
  to.workspace_bytes = args.workspace_bytes;
  return first_failure(narrow("activation", args.activation, to.activation),
                       narrow("residual", args.residual, to.residual),
                       narrow("accumulate", args.accumulate, to.accumulate),
                       narrow("backend", args.backend, to.backend));
}

namespace {

HeadMap head_map_of(const shortconv_head_map& from) {
  return {.offset = from.offset,
          .head_stride = from.head_stride,
          .block_heads = from.block_heads,
          .block_stride = from.block_stride};
}

/// Zeros are the defaults.
L2Norm l2_norm_of(float eps, float scale) {
  L2Norm norm;
  if (eps != 0) norm.eps = eps;
  if (scale != 0) norm.scale = scale;
  return norm;
}

Status convert_group(const shortconv_channel_group* from, ChannelGroup& to) {
  shortconv_channel_group group;
  if (Status status = read_args(from, sizeof group, group); !status.ok()) return status;
  bool has_norm = false;
  Status status = first_failure(convert_tensor("groups.out", group.out, to.out),
                                narrow("copy", group.copy, to.copy),
                                narrow("l2_norm", group.l2_norm, has_norm));
  to.input = head_map_of(group.input);
  if (has_norm) to.l2_norm = l2_norm_of(group.eps, group.scale);
  if (group.input_scale != 0) to.input_scale = group.input_scale;
  return status;
}

/// The options that gates and their gradients share.
template <typename CArgs, typename Args>
Status convert_gate_options(const CArgs& from, Args& to) {
  to.a_map = head_map_of(from.a_map);
  to.b_map = head_map_of(from.b_map);
  if (from.beta_factor != 0) to.beta_factor = from.beta_factor;
  return narrow("decay", from.decay, to.decay);
}

}  // namespace

Status convert(const shortconv_gate_args* from, GateArgs& to, BackendId& backend) {
  shortconv_gate_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status;
  visit_gate_tensors(ConvertTensor(status), args, to);
  if (!status.ok()) return status;
  return first_failure(convert_gate_options(args, to),
                       narrow("round_beta", args.round_beta, to.round_beta),
                       narrow("backend", args.backend, backend));
}

namespace {

/// The groups of `from`, arguments of a call with groups.
template <typename CArgs, typename Args>
Status convert_groups(const CArgs& from, OwnedGroups<Args>& to) {
  if (from.group_count < 1 || from.group_count > kMaxGroups) {
    return invalid(concat("groups: are ", std::int64_t{from.group_count}, "; expected 1 to ",
                          std::int64_t{kMaxGroups}));
  }
  if (from.groups == nullptr) return invalid("groups: is null");
  const auto* group = reinterpret_cast<const char*>(from.groups);
  const std::size_t bytes = from.groups->struct_size;
  for (std::int32_t i = 0; i < from.group_count; ++i, group += bytes) {
    const auto* one = reinterpret_cast<const shortconv_channel_group*>(group);
    if (one->struct_size != bytes) return invalid("groups: have different struct_sizes");
    Status status = convert_group(one, to.groups[static_cast<std::size_t>(i)]);
    if (!status.ok()) return status;
  }
  to.args.groups = std::span(to.groups).first(static_cast<std::size_t>(from.group_count));
  return {};
}

/// The call inside a call with groups, without `kTensor`, of which each group has its own.
template <auto kTensor, typename CArgs, typename Args>
Status convert_call(const CArgs* from, std::string_view tensor, Args& to) {
  CArgs args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  if (args.*kTensor != nullptr) {
    return invalid(concat(tensor, ": is given, but with groups each has its own; expected null"));
  }
  args.*kTensor = args.x;  // for the conversion, which requires both
  return convert(&args, to);
}

Status convert(const shortconv_gate_gradient_args* from, GateGradientArgs& to) {
  shortconv_gate_gradient_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status;
  visit_gate_gradient_tensors(ConvertTensor(status), args, to);
  if (!status.ok()) return status;
  return convert_gate_options(args, to);
}

}  // namespace

Status convert(const shortconv_grouped_args* from, OwnedGroups<GroupedArgs>& to) {
  shortconv_grouped_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status = convert_call<&shortconv_forward_args::out>(args.forward, "out", to.args.forward);
  to.args.forward.out = {};
  if (status.ok()) status = convert_groups(args, to);
  if (!status.ok() || args.gates == nullptr) return status;
  BackendId backend = BackendId::kAuto;  // that of the call
  return convert(args.gates, to.args.gates.emplace(), backend);
}

Status convert(const shortconv_grouped_backward_args* from, OwnedGroups<GroupedBackwardArgs>& to) {
  shortconv_grouped_backward_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  Status status =
      convert_call<&shortconv_backward_args::grad_out>(args.backward, "grad_out", to.args.backward);
  to.args.backward.grad_out = {};
  if (status.ok()) status = convert_groups(args, to);
  if (!status.ok() || args.gates == nullptr) return status;
  return convert(args.gates, to.args.gates.emplace());
}

Status convert(const shortconv_l2_norm_args* from, L2NormArgs& to) {
  shortconv_l2_norm_args args;
  if (Status status = read_args(from, sizeof args, args); !status.ok()) return status;
  to.norm = l2_norm_of(args.eps, args.scale);
  return first_failure(convert_tensor("x", args.x, to.x), convert_tensor("out", args.out, to.out),
                       narrow("backend", args.backend, to.backend));
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

}  // namespace shortconv
