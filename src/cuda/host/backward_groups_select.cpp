// Which backward calls with groups have kernels, and how they divide their work.
#include <algorithm>
#include <bit>
#include <cstdlib>

#include "core/check.hpp"
#include "cuda/host/backward_groups.hpp"
#include "cuda/host/numbers.hpp"

namespace shortconv::cuda {

bool wants_gate_sums(const GroupedBackwardProblem& p) {
  return p.gates.grad_a_log.present || p.gates.grad_dt_bias.present;
}
bool wants_gates(const GroupedBackwardProblem& p) {
  return p.gates.heads > 0 &&
         (wants_gate_sums(p) || p.gates.grad_a.present || p.gates.grad_b.present);
}

bool is_wanted(const GroupedBackwardProblem& p, const GroupLayout& group) {
  if (group.channels() == 0) return false;
  return p.backward.grad_x.present || (!group.copy && wants_sums(p.backward));
}

BackwardProblem problem_of(const GroupedBackwardProblem& p, const GroupLayout& group) {
  BackwardProblem call = p.backward;
  call.channels = group.channels();
  call.grad_out.present = true;
  call.grad_out.has_elements = group.out.has_elements;
  call.grad_out.dtype = group.out.dtype;
  call.grad_out.sequence_stride = group.out.sequence_stride;
  call.grad_out.token_stride = group.out.token_stride;
  call.grad_out.channel_stride = group.out.channel_stride;
  return call;
}

BackwardPartition group_partition(const GroupedBackwardProblem& p) {
  const BackwardPartition whole = backward_partition(p.backward);
  const std::int64_t blocks = whole.units * divide_up(p.backward.channels, 128);
  if (blocks > kMultiprocessors) return whole;
  BackwardProblem half = p.backward;
  half.channels = divide_up(half.channels, 2);
  return backward_partition(half);
}

std::int64_t sums_offset(const GroupedBackwardProblem& p, std::size_t number) {
  constexpr std::int64_t kAlignment = 16;
  std::int64_t offset = 0;
  if (!wants_sums(p.backward)) return 0;
  for (const GroupLayout& group : p.used_groups().first(number)) {
    if (group.copy) continue;
    const std::int64_t bytes = group_partition(p).units * (p.backward.width + 1) *
                               group.channels() * std::int64_t{sizeof(float)};
    offset += divide_up(bytes, kAlignment) * kAlignment;
  }
  return offset;
}

std::int32_t group_alignment(const GroupedBackwardProblem& p, const GroupLayout& group) {
  std::int64_t elements = group.input.offset | group.head_dim;
  if (group.heads > 1) elements |= group.out.head_stride;
  if (std::min(group.heads, group.input.block_heads) > 1) elements |= group.input.head_stride;
  if (group.heads > group.input.block_heads) elements |= group.input.block_stride;
  return alignment_of(row_alignment(problem_of(p, group)) |
                      elements * element_bytes(p.backward.x.dtype));
}

BackwardKernel group_kernel_of(const GroupedBackwardProblem& p, const GroupLayout& group) {
  const BackwardProblem& call = p.backward;
  return backward_group_kernel(call.x.dtype,
                               {.width = static_cast<int>(call.width),
                                .activation = call.activation,
                                .has_bias = call.bias.present || call.grad_bias.present},
                               group.normalize);
}

namespace {

/// Maps and strides of heads in 31 bits.
bool is_countable(const GroupedBackwardProblem& p, const GroupLayout& group) {
  constexpr std::int64_t kMax = std::int64_t{1} << 27;
  const std::int64_t blocks = group.heads / group.input.block_heads;
  return p.columns < kMax && std::abs(group.out.head_stride) * group.heads < kMax &&
         group.input.block_stride * blocks < kMax;
}

Status check_norm(const GroupedBackwardProblem& p, const GroupLayout& group) {
  const std::int64_t lane =
      backward_group(static_cast<std::size_t>(element_bytes(p.backward.x.dtype)), false);
  const auto dim = static_cast<std::uint64_t>(group.head_dim);
  if (std::has_single_bit(dim) && group.head_dim >= 2 * lane && group.head_dim <= 32 * lane) {
    return {};
  }
  return refuse_groups("groups", "a normalized head has ", group.head_dim,
                       " channels; expected a power of two from ", 2 * lane, " to ", 32 * lane);
}

/// Types, sizes and strides.
Status check_layouts(const GroupedBackwardProblem& p, const GroupLayout& group) {
  const BackwardProblem call = problem_of(p, group);
  if (call.weight.dtype != call.x.dtype && call.weight.dtype != DType::kF32) {
    return refuse_groups("weight", "dtype is ", name(call.weight.dtype), "; expected that of x, ",
                         name(call.x.dtype), ", or f32");
  }
  if (group.out.dtype != call.x.dtype) {
    return refuse_groups("groups", "dtype of a gradient is ", name(group.out.dtype),
                         "; expected that of x, ", name(call.x.dtype));
  }
  if (!allows_strips(call) || !is_countable(p, group)) {
    return refuse_groups("groups", "expected sizes and strides below 2^26");
  }
  if (!is_packed(call) || call.x.channel_stride != 1 ||
      (call.grad_x.present && call.grad_x.channel_stride != 1)) {
    return refuse_groups(
        "groups",
        "expected rows of x, grad_x and the gradients of outputs with adjacent channels and "
        "one stride from each row to the next,");
  }
  return {};
}

}  // namespace

bool has_countable_gates(const GroupedBackwardProblem& p) {
  constexpr std::int64_t kMax = std::int64_t{1} << 26;
  bool countable = p.backward.tokens < kMax * 16 && p.gates.heads < kMax;
  const auto add = [&](const auto& layout, std::int64_t column_stride, std::int64_t columns) {
    if (!layout.present) return;
    countable &= std::abs(layout.token_stride) < kMax && std::abs(column_stride) < kMax &&
                 std::abs(column_stride) * columns < kMax;
  };
  const auto columns = [&](const HeadMap& map) {
    const std::int64_t last = std::max<std::int64_t>(p.gates.heads, 1) - 1;
    return map.offset + last / map.block_heads * map.block_stride +
           std::min(last, map.block_heads - 1) * map.head_stride + 1;
  };
  const GateGradientProblem& gates = p.gates;
  for (const auto* rows : {&gates.a, &gates.grad_a}) {
    add(*rows, rows->channel_stride, columns(gates.a_map));
  }
  for (const auto* rows : {&gates.b, &gates.grad_b}) {
    add(*rows, rows->channel_stride, columns(gates.b_map));
  }
  for (const auto* rows : {&gates.grad_g, &gates.grad_beta}) {
    add(*rows, rows->head_stride, gates.heads);
  }
  return countable;
}

Status check_group(const GroupedBackwardProblem& p, const GroupLayout& group) {
  if (Status status = check_layouts(p, group); !status.ok()) return status;
  if (group.copy) return {};
  if (group_kernel_of(p, group).function == nullptr) {
    return refuse_groups("weight", "width is ", std::int64_t{p.backward.width}, "; expected 2 to ",
                         std::int64_t{kMaxGroupWidth});
  }
  if (group_alignment(p, group) < kLeastGroupAlignment) {
    return refuse_groups("groups", "expected rows and heads aligned to 8 bytes");
  }
  return group.normalize ? check_norm(p, group) : Status();
}

}  // namespace shortconv::cuda
