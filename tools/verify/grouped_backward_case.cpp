#include "verify/grouped_backward_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "verify/on_gpu.hpp"

namespace shortconv::tools::verify {
namespace {

/// Fills the elements that `is_read(row, column)` selects; the others stay NaN.
template <typename Selects>
void fill_rows(const GroupedBackwardCase& problem, const TensorBuffer& buffer, Random& random,
               double scale, const Selects& is_read) {
  const std::vector<bool> has_sequence = problem.rows_with_a_sequence();
  for (std::int64_t row = 0; row < problem.call.rows(); ++row) {
    for (std::int64_t column = 0; column < buffer.spec().shape.back(); ++column) {
      const double value = scale * random.normal();
      if (!has_sequence[static_cast<std::size_t>(row)] || !is_read(column)) continue;
      buffer.store(buffer.spec().row_offset(row, column), value);
    }
  }
}

GateGradientBuffers make_gate_buffers(const GroupedBackwardCase& problem, Random& random) {
  const GateGradientSpec& gates = *problem.gates;
  GateGradientBuffers buffers;
  visit_gate_gradient_tensors(
      [](const Argument&, const auto& spec, auto& buffer) {
        if (spec) buffer.emplace(*spec);
      },
      gates, buffers);
  if (gates.share_columns) buffers.b.reset();
  const auto columns_of = [&](const HeadMap& map) {
    return [&](std::int64_t column) {
      for (std::int64_t head = 0; head < gates.heads(); ++head) {
        if (first_column(map, head, gates.heads(), 1) == column) return true;
      }
      return false;
    };
  };
  const auto all = [](std::int64_t) { return true; };
  // Sums of a and dt_bias on both sides of 20.
  fill_rows(problem, *buffers.a, random, 8, [&](std::int64_t column) {
    return gates.share_columns || columns_of(gates.a_map)(column);
  });
  if (buffers.b) fill_rows(problem, *buffers.b, random, 3, columns_of(gates.b_map));
  fill_rows(problem, *buffers.grad_g, random, 1, all);
  fill_rows(problem, *buffers.grad_beta, random, 1, all);
  for (const TensorBuffer* list : {&*buffers.a_log, &*buffers.dt_bias}) {
    for_each_element(list->spec(),
                     [&](std::int64_t offset) { list->store(offset, random.normal()); });
  }
  return buffers;
}

/// The call by its host addresses. `groups` has to last as long as the arguments.
GroupedBackwardArgs make_arguments(const GroupedBackwardCase& problem,
                                   const GroupedBackwardBuffers& buffers, BackendId backend,
                                   std::vector<ChannelGroup>& groups) {
  const auto view = [](const Argument&, const auto& buffer, auto& tensor) {
    if (buffer) tensor = buffer->view();
  };
  GroupedBackwardArgs args;
  visit_backward_tensors(view, buffers.call, args.backward);
  args.backward.activation = problem.call.activation;
  args.backward.accumulate = problem.call.accumulate;
  args.backward.threads = problem.call.threads;
  args.backward.backend = backend;
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    const GroupSpec& group = problem.groups[i];
    groups.push_back({.out = buffers.gradient(i).view(group.out),
                      .input = group.input,
                      .copy = group.copy,
                      .l2_norm = group.l2_norm});
  }
  args.groups = groups;
  if (!problem.gates) return args;
  GateGradientArgs& gates = args.gates.emplace();
  visit_gate_gradient_tensors(view, *buffers.gates, gates);
  if (problem.gates->share_columns) gates.b = gates.a;
  gates.a_map = problem.gates->a_map;
  gates.b_map = problem.gates->b_map;
  gates.decay = problem.gates->decay;
  gates.beta_factor = problem.gates->beta_factor;
  return args;
}

/// What the plan of a call on the GPU asks for; `args` have their tensors on the host.
Status find_workspace_bytes(GroupedBackwardArgs args, std::vector<ChannelGroup> groups,
                            std::int64_t& bytes) {
  constexpr Device kGpu{DeviceType::kCuda, 0};
  const auto move = [&](const Argument&, auto& tensor) {
    if constexpr (std::is_same_v<decltype(tensor), TensorRef&>) {
      tensor.device = kGpu;
    } else if (tensor) {
      tensor->device = kGpu;
    }
  };
  visit_backward_tensors(move, args.backward);
  for (ChannelGroup& group : groups) group.out.device = kGpu;
  args.groups = groups;
  if (args.gates) visit_gate_gradient_tensors(move, *args.gates);
  GroupedBackwardProblem problem;
  GroupedBackwardPlan plan;
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  if (status.ok()) bytes = workspace_bytes(plan);
  return status;
}

std::string describe_map(const HeadMap& map) {
  return fmt::format("offset {} head_stride {} block_heads {} block_stride {}", map.offset,
                     map.head_stride, map.block_heads, map.block_stride);
}

}  // namespace

std::vector<bool> GroupedBackwardCase::rows_with_a_sequence() const {
  std::vector<bool> has_sequence(static_cast<std::size_t>(call.rows()));
  for (const Part& part : call.parts()) {
    std::fill(has_sequence.begin() + part.begin, has_sequence.begin() + part.end, true);
  }
  return has_sequence;
}

std::int64_t GroupedBackwardCase::offset(const TensorSpec& spec, std::int64_t row,
                                         std::initializer_list<std::int64_t> rest) const {
  const bool is_packed = call.x->shape.size() == 2;
  std::int64_t at = spec.origin;
  std::size_t axis = 0;
  if (!is_packed) at += row / call.x->shape[1] * spec.strides[axis++];
  at += (is_packed ? row : row % call.x->shape[1]) * spec.strides[axis++];
  for (const std::int64_t index : rest) at += index * spec.strides[axis++];
  return at;
}

std::int64_t first_column(const HeadMap& map, std::int64_t head, std::int64_t heads,
                          std::int64_t head_dim) {
  const std::int64_t in_block = map.block_heads == 0 ? heads : map.block_heads;
  const std::int64_t stride = map.head_stride == 0 ? head_dim : map.head_stride;
  return map.offset + head / in_block * map.block_stride + head % in_block * stride;
}

std::vector<std::pair<std::string_view, std::string>> traits(const GroupedBackwardCase& problem) {
  const auto yes = [](bool value) { return std::string(value ? "yes" : "no"); };
  const auto any = [&](const auto& has) { return yes(std::ranges::any_of(problem.groups, has)); };
  const BackwardCase& call = problem.call;
  return {{"op", "backward-groups"},
          {"dtype", std::string(name(call.x->dtype))},
          {"activation", std::string(name(call.activation))},
          {"bias", yes(call.bias.has_value())},
          {"packed", yes(call.query_start_loc.has_value())},
          {"numbered", yes(call.seq_idx.has_value())},
          {"accumulate", yes(call.accumulate)},
          {"copies", any([](const GroupSpec& group) { return group.copy; })},
          {"norms", any([](const GroupSpec& group) { return group.l2_norm.has_value(); })},
          {"gates", yes(problem.gates.has_value())},
          {"fast", yes(problem.is_fast)}};
}

TraitValues possible_grouped_backward_traits() {
  TraitValues list{{"op", {"backward-groups"}}};
  for (auto& trait : possible_backward_traits()) {
    if (trait.first == "dtype") trait.second.emplace_back(name(DType::kF64));
    if (trait.first == "dtype" || trait.first == "activation") list.push_back(std::move(trait));
  }
  for (const std::string_view own :
       {"bias", "packed", "numbered", "accumulate", "copies", "norms", "gates", "fast"}) {
    list.push_back({own, {"no", "yes"}});
  }
  return list;
}

std::string to_string(const GroupedBackwardCase& problem) {
  std::string text = fmt::format("gradients of groups, {}", to_string(problem.call));
  for (const GroupSpec& group : problem.groups) {
    text += fmt::format("  group {}: {}{}", describe(group.out), describe_map(group.input),
                        group.copy ? ", copied" : "");
    if (group.l2_norm) {
      text += fmt::format(", l2_norm eps {} scale {}", group.l2_norm->eps, group.l2_norm->scale);
    }
    text += "\n";
  }
  if (!problem.gates) return text;
  const GateGradientSpec& gates = *problem.gates;
  text += fmt::format("  gates: decay {}, beta_factor {}, a {}, b {}{}\n",
                      gates.decay == DecayForm::kExp ? "exp" : "log", gates.beta_factor,
                      describe_map(gates.a_map), describe_map(gates.b_map),
                      gates.share_columns ? ", one tensor" : "");
  visit_gate_gradient_tensors(
      [&](const Argument& row, const auto& spec) {
        if (spec) text += fmt::format("  {} {}\n", row.name, describe(*spec));
      },
      gates);
  return text;
}

std::vector<const TensorBuffer*> GroupedBackwardBuffers::tensors() const {
  std::vector<const TensorBuffer*> list = call.tensors();
  for (const TensorBuffer& one : gradients) list.push_back(&one);
  if (!gates) return list;
  visit_gate_gradient_tensors(
      [&](const Argument&, const auto& buffer) {
        if (buffer) list.push_back(&*buffer);
      },
      *gates);
  return list;
}

GroupedBackwardBuffers make_buffers(const GroupedBackwardCase& problem) {
  GroupedBackwardBuffers buffers{.call = make_buffers(problem.call), .gradients = {}, .gates = {}};
  Random random(problem.seed);
  std::vector<bool> is_read(static_cast<std::size_t>(problem.call.x->shape.back()));
  for_each_group_element(problem, [&](const GroupElement& one) {
    is_read[static_cast<std::size_t>(one.column)] = true;
  });
  for (std::int64_t row = 0; row < problem.call.rows(); ++row) {
    for (std::size_t column = 0; column < is_read.size(); ++column) {
      if (is_read[column]) continue;
      buffers.call.x->store(problem.call.x->row_offset(row, static_cast<std::int64_t>(column)),
                            std::numeric_limits<double>::quiet_NaN());
    }
  }
  const std::size_t tensors = problem.share_gradients ? 1 : problem.groups.size();
  for (std::size_t i = 0; i < tensors; ++i) buffers.gradients.emplace_back(problem.groups[i].out);
  const std::vector<bool> has_sequence = problem.rows_with_a_sequence();
  for (std::int64_t row = 0; row < problem.call.rows(); ++row) {
    if (!has_sequence[static_cast<std::size_t>(row)]) continue;
    for_each_group_element(problem, [&](const GroupElement& one) {
      const std::int64_t at = problem.offset(problem.groups[one.group].out, row, {one.head, one.d});
      buffers.gradient(one.group).store(at, 0.7 * random.normal());
    });
  }
  if (problem.gates) buffers.gates = make_gate_buffers(problem, random);
  return buffers;
}

Status run_case(const GroupedBackwardCase& problem, const GroupedBackwardBuffers& buffers,
                BackendId backend, std::int64_t missing_bytes) {
  std::vector<ChannelGroup> groups;
  GroupedBackwardArgs args = make_arguments(problem, buffers, backend, groups);
  if (backend != BackendId::kCuda) return backward_groups(args);
  std::int64_t bytes = 0;
  if (Status status = find_workspace_bytes(args, groups, bytes); !status.ok()) return status;
  const TensorBuffer workspace(dense(DType::kU8, {bytes}));  // full of NaN
  const TensorBuffer before = workspace;
  args.backward.workspace = workspace.element(0);
  args.backward.workspace_bytes = bytes - missing_bytes;
  std::vector<const TensorBuffer*> tensors = buffers.tensors();
  tensors.push_back(&workspace);
  if (Status status = grouped_backward_on_gpu(args, groups, tensors); !status.ok()) return status;
  const auto failure = check_gaps("workspace", before, workspace);
  return failure ? Status{Code::kInternal, *failure} : Status{};
}

}  // namespace shortconv::tools::verify
