// The table of tensor arguments: one row for each, with its name, sizes, dtypes and access.
// Conversion from C, validation, layouts, null, overlap and alignment checks, hashing, printing and
// the Python bindings are loops over it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "shortconv/arguments.hpp"
#include "shortconv/groups.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

/// Sizes that arguments share. The first argument that has a size fixes it for the others.
enum class Size : std::uint8_t {
  kNone,
  kLayers,
  kSequences,
  kSequencesPlusOne,
  kTokens,
  kRows,
  kChannels,
  kWidth,
  kHistory,
  kSlots,
  kColumns,
  kIntermediateSlots,
  kIntermediateTokens,
  kSnapshots,
  kSnapshotFields,
  kBlocks,
  kViolations,
  kViolationFields,
  kColumnsOfX,
  kColumnsOfA,
  kColumnsOfB,
  kHeads,
  kHeadDim,
};
inline constexpr std::size_t kSizes = static_cast<std::size_t>(Size::kHeadDim) + 1;

enum class DTypes : std::uint8_t {
  kFloating,
  kLikeX,
  kLikeWeight,
  kLikeState,
  kLikeWeightOrF32,
  kLikeStateOrF32,
  kF32,
  kIndex,  // i32 or i64
  kI32,
  kI64,
  kBool,
};

enum class Access : std::uint8_t {
  kRead,
  kWrite,         // no two elements share memory
  kWriteOverlap,  // but those of two adjacent axes with equal strides, which hold the same value
};
[[nodiscard]] constexpr bool is_written(Access access) { return access != Access::kRead; }

/// A row of the table.
struct Argument {
  std::string_view name;
  std::array<Size, 5> sizes;  // of the axes of its member, in their order
  DTypes dtypes = DTypes::kFloating;
  Access access = Access::kRead;

  /// One number for each sequence.
  [[nodiscard]] constexpr bool is_per_sequence() const {
    return sizes[0] == Size::kSequences && sizes[1] == Size::kNone;
  }
};

// Each function calls visit(row, member of each struct in `tensors`) for every member of a group.

template <typename Visit, typename... Tensors>
constexpr void visit_row_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"x", {kSequences, kTokens, kChannels}}, tensors.x...);
  visit(Argument{"out", {kSequences, kTokens, kChannels}, DTypes::kFloating, Access::kWrite},
        tensors.out...);
  visit(Argument{"weight", {kChannels, kWidth}}, tensors.weight...);
  visit(Argument{"bias", {kChannels}, DTypes::kLikeWeight}, tensors.bias...);
  visit(Argument{"input_gate", {kSequences, kTokens, kChannels}, DTypes::kLikeX},
        tensors.input_gate...);
}

template <typename Visit, typename... Tensors>
constexpr void visit_epilogue_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"output_gate", {kSequences, kTokens, kChannels}, DTypes::kLikeX},
        tensors.output_gate...);
}

template <typename Visit, typename... Tensors>
constexpr void visit_sequence_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"query_start_loc", {kSequencesPlusOne}, DTypes::kIndex},
        tensors.query_start_loc...);
  visit(Argument{"has_initial_state", {kSequences}, DTypes::kBool}, tensors.has_initial_state...);
  visit(Argument{"seq_idx", {kSequences, kTokens}, DTypes::kIndex}, tensors.seq_idx...);
}

template <typename Visit, typename... Tensors>
constexpr void visit_pool_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"state", {kSlots, kColumns, kChannels}, DTypes::kFloating, Access::kWrite},
        tensors.state...);
  visit(Argument{"read_slots", {kSequences}, DTypes::kIndex}, tensors.read_slots...);
  visit(Argument{"write_slots", {kSequences}, DTypes::kIndex}, tensors.write_slots...);
  visit(Argument{"read_offsets", {kSequences}, DTypes::kIndex}, tensors.read_offsets...);
  visit(Argument{"cache_seqlens", {kSequences}, DTypes::kIndex}, tensors.cache_seqlens...);
  visit(Argument{"snapshots", {kSnapshots, kSnapshotFields}, DTypes::kIndex}, tensors.snapshots...);
}

template <typename Visit, typename... Tensors>
constexpr void visit_draft_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"parents", {kSequences, kTokens}, DTypes::kIndex}, tensors.parents...);
  visit(Argument{"intermediate_states",
                 {kIntermediateSlots, kIntermediateTokens, kHistory, kChannels},
                 DTypes::kLikeState,
                 Access::kWriteOverlap},
        tensors.intermediate_states...);
  visit(Argument{"intermediate_slots", {kSequences}, DTypes::kIndex},
        tensors.intermediate_slots...);
}

template <typename Visit, typename... Tensors>
constexpr void visit_option_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"block_sequence", {kBlocks}, DTypes::kI32}, tensors.block_sequence...);
  visit(Argument{"block_offset", {kBlocks}, DTypes::kI32}, tensors.block_offset...);
  visit(Argument{"violations", {kViolations, kViolationFields}, DTypes::kI64, Access::kWrite},
        tensors.violations...);
}

/// The struct with the tensors of a group: a member of ForwardArgs, a base of the others.
template <auto kMember, typename Tensors>
constexpr auto& group_of(Tensors& tensors) {
  if constexpr (requires { tensors.*kMember; })
    return tensors.*kMember;
  else
    return tensors;
}

/// All tensor arguments of a forward call, in the order of the table.
template <typename Visit, typename... Tensors>
constexpr void visit_forward_tensors(const Visit& visit, Tensors&... tensors) {
  visit_row_tensors(visit, tensors...);
  visit_epilogue_tensors(visit, group_of<&ForwardArgs::epilogue>(tensors)...);
  visit_sequence_tensors(visit, group_of<&ForwardArgs::sequences>(tensors)...);
  visit_pool_tensors(visit, group_of<&ForwardArgs::pool>(tensors)...);
  visit_draft_tensors(visit, group_of<&ForwardArgs::drafts>(tensors)...);
  visit_option_tensors(visit, group_of<&ForwardArgs::options>(tensors)...);
}

/// All tensor arguments of gates.
template <typename Visit, typename... Tensors>
constexpr void visit_gate_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"a", {kSequences, kTokens, kColumnsOfA}}, tensors.a...);
  visit(Argument{"b", {kSequences, kTokens, kColumnsOfB}}, tensors.b...);
  visit(Argument{"a_log", {kHeads}, DTypes::kF32}, tensors.a_log...);
  visit(Argument{"dt_bias", {kHeads}}, tensors.dt_bias...);
  visit(Argument{"g", {kSequences, kTokens, kHeads}, DTypes::kF32, Access::kWrite}, tensors.g...);
  visit(Argument{"beta", {kSequences, kTokens, kHeads}, DTypes::kF32, Access::kWrite},
        tensors.beta...);
}

/// A group in messages.
[[nodiscard]] constexpr std::string_view group_name(int number) {
  return std::array<std::string_view, kMaxGroups>{
      "groups[0]", "groups[1]", "groups[2]", "groups[3]",
      "groups[4]", "groups[5]", "groups[6]", "groups[7]"}[static_cast<std::size_t>(number)];
}

/// The output of group `number`. The sizes of its heads are its own.
[[nodiscard]] constexpr Argument group_argument(int number) {
  constexpr std::array<std::string_view, kMaxGroups> kNames = {
      "groups[0].out", "groups[1].out", "groups[2].out", "groups[3].out",
      "groups[4].out", "groups[5].out", "groups[6].out", "groups[7].out"};
  using enum Size;
  return {kNames[static_cast<std::size_t>(number)],
          {kSequences, kTokens, kHeads, kHeadDim},
          DTypes::kFloating,
          Access::kWrite};
}

/// The gradient of the output of group `number`, as group_argument.
[[nodiscard]] constexpr Argument group_gradient_argument(int number) {
  constexpr std::array<std::string_view, kMaxGroups> kNames = {
      "groups[0].grad_out", "groups[1].grad_out", "groups[2].grad_out", "groups[3].grad_out",
      "groups[4].grad_out", "groups[5].grad_out", "groups[6].grad_out", "groups[7].grad_out"};
  using enum Size;
  return {kNames[static_cast<std::size_t>(number)], {kSequences, kTokens, kHeads, kHeadDim}};
}

/// All tensor arguments of the gradients of gates.
template <typename Visit, typename... Tensors>
constexpr void visit_gate_gradient_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  constexpr std::array<Size, 5> kGate = {kSequences, kTokens, kHeads};
  visit(Argument{"a", {kSequences, kTokens, kColumnsOfA}}, tensors.a...);
  visit(Argument{"b", {kSequences, kTokens, kColumnsOfB}}, tensors.b...);
  visit(Argument{"a_log", {kHeads}, DTypes::kF32}, tensors.a_log...);
  visit(Argument{"dt_bias", {kHeads}}, tensors.dt_bias...);
  visit(Argument{"grad_g", kGate, DTypes::kF32}, tensors.grad_g...);
  visit(Argument{"grad_beta", kGate, DTypes::kF32}, tensors.grad_beta...);
  visit(Argument{"grad_a", {kSequences, kTokens, kColumnsOfA}, DTypes::kFloating, Access::kWrite},
        tensors.grad_a...);
  visit(Argument{"grad_b", {kSequences, kTokens, kColumnsOfB}, DTypes::kFloating, Access::kWrite},
        tensors.grad_b...);
  visit(Argument{"grad_a_log", {kHeads}, DTypes::kF32, Access::kWrite}, tensors.grad_a_log...);
  visit(Argument{"grad_dt_bias", {kHeads}, DTypes::kFloating, Access::kWrite},
        tensors.grad_dt_bias...);
}

/// All tensor arguments of a commit.
template <typename Visit, typename... Tensors>
constexpr void visit_commit_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  visit(Argument{"intermediate_states", {kLayers, kSequences, kTokens, kRows, kChannels}},
        tensors.intermediate_states...);
  visit(
      Argument{"state", {kLayers, kSlots, kColumns, kChannels}, DTypes::kFloating, Access::kWrite},
      tensors.state...);
  visit(Argument{"query_start_loc", {kSequencesPlusOne}, DTypes::kIndex},
        tensors.query_start_loc...);
  visit(Argument{"accepted", {kSequences}, DTypes::kIndex}, tensors.accepted...);
  visit(Argument{"slots", {kSequences}, DTypes::kIndex}, tensors.slots...);
  visit(Argument{"second_slots", {kSequences}, DTypes::kIndex}, tensors.second_slots...);
}

/// All tensor arguments of a backward call.
template <typename Visit, typename... Tensors>
constexpr void visit_backward_tensors(const Visit& visit, Tensors&... tensors) {
  using enum Size;
  constexpr std::array<Size, 5> kRow = {kSequences, kTokens, kChannels};
  constexpr std::array<Size, 5> kState = {kSequences, kHistory, kChannels};
  visit(Argument{"x", kRow}, tensors.x...);
  visit(Argument{"weight", {kChannels, kWidth}}, tensors.weight...);
  visit(Argument{"bias", {kChannels}, DTypes::kLikeWeight}, tensors.bias...);
  visit(Argument{"input_gate", kRow, DTypes::kLikeX}, tensors.input_gate...);
  visit(Argument{"output_gate", kRow, DTypes::kLikeX}, tensors.output_gate...);
  visit(Argument{"query_start_loc", {kSequencesPlusOne}, DTypes::kIndex},
        tensors.query_start_loc...);
  visit(Argument{"seq_idx", {kSequences, kTokens}, DTypes::kIndex}, tensors.seq_idx...);
  visit(Argument{"initial_state", kState}, tensors.initial_state...);
  visit(Argument{"grad_out", kRow}, tensors.grad_out...);
  visit(Argument{"grad_final_state", kState}, tensors.grad_final_state...);
  visit(Argument{"grad_x", kRow, DTypes::kLikeX, Access::kWrite}, tensors.grad_x...);
  visit(Argument{"grad_weight", {kChannels, kWidth}, DTypes::kLikeWeightOrF32, Access::kWrite},
        tensors.grad_weight...);
  visit(Argument{"grad_bias", {kChannels}, DTypes::kLikeWeightOrF32, Access::kWrite},
        tensors.grad_bias...);
  visit(Argument{"grad_initial_state", kState, DTypes::kLikeStateOrF32, Access::kWrite},
        tensors.grad_initial_state...);
  visit(Argument{"grad_input_gate", kRow, DTypes::kLikeX, Access::kWrite},
        tensors.grad_input_gate...);
  visit(Argument{"grad_output_gate", kRow, DTypes::kLikeX, Access::kWrite},
        tensors.grad_output_gate...);
}

/// Visits the layouts of a problem, with its pointers if passed.
template <typename Visit, typename... Pointers>
constexpr void visit_tensors(const Visit& visit, const Problem& problem, Pointers&... pointers) {
  visit_forward_tensors(visit, problem, pointers...);
}
template <typename Visit, typename... Pointers>
constexpr void visit_tensors(const Visit& visit, const CommitProblem& problem,
                             Pointers&... pointers) {
  visit_commit_tensors(visit, problem, pointers...);
}

template <typename Visit, typename... Pointers>
constexpr void visit_tensors(const Visit& visit, const BackwardProblem& problem,
                             Pointers&... pointers) {
  visit_backward_tensors(visit, problem, pointers...);
}

/// The groups' outputs precede the tensors of the forward call and of the gates.
template <typename Visit, typename... Pointers>
constexpr void visit_tensors(const Visit& visit, const GroupedProblem& problem,
                             Pointers&... pointers) {
  for (int i = 0; i < problem.group_count; ++i) {
    const auto number = static_cast<std::size_t>(i);
    visit(group_argument(i), problem.groups[number].out, pointers.groups[number]...);
  }
  visit_forward_tensors(visit, problem.forward, pointers.forward...);
  if (problem.has_gates) visit_gate_tensors(visit, problem.gates, pointers.gates...);
}

template <typename Visit, typename... Pointers>
constexpr void visit_tensors(const Visit& visit, const GroupedBackwardProblem& problem,
                             Pointers&... pointers) {
  for (int i = 0; i < problem.group_count; ++i) {
    const auto number = static_cast<std::size_t>(i);
    visit(group_gradient_argument(i), problem.groups[number].out, pointers.groups[number]...);
  }
  visit_backward_tensors(visit, problem.backward, pointers.backward...);
  if (problem.has_gates) visit_gate_gradient_tensors(visit, problem.gates, pointers.gates...);
}

/// Some axes of a tensor.
class AxisSet {
 public:
  constexpr AxisSet() = default;
  template <typename... Axes>
  constexpr explicit AxisSet(Axes... axes) : bits_(((1u << static_cast<unsigned>(axes)) | ...)) {}
  [[nodiscard]] constexpr bool contains(Axis axis) const {
    return (bits_ >> static_cast<unsigned>(axis) & 1u) != 0;
  }

 private:
  unsigned bits_ = 0;
};

/// Stride of an axis. Of axes with one element, whose stride is never used, it is what it would be
/// if the axis were dense: numpy and torch report any number there, which must decide nothing.
[[nodiscard]] constexpr std::int64_t stride_of(const TensorRef& tensor, int axis) {
  if (tensor.shape[axis] != 1) return tensor.strides[axis];
  if (axis > 0 && tensor.shape[axis - 1] > 1) {
    return axis + 1 == tensor.ndim ? 1 : tensor.strides[axis - 1];
  }
  while (axis + 1 < tensor.ndim && tensor.shape[axis] == 1) ++axis;
  return tensor.shape[axis] == 1 ? 1 : tensor.shape[axis] * tensor.strides[axis];
}

/// Fills a layout from a tensor that lacks the axes of `absent`. Strides of a tensor without
/// elements are 0.
template <Axis... kAxes>
void assign(TensorLayout<kAxes...>& layout, const TensorRef& tensor, bool has_elements,
            AxisSet absent) {
  layout.present = true;
  layout.dtype = tensor.dtype;
  layout.has_elements = has_elements;
  int axis = 0;
  const auto next = [&](Axis one) -> std::int64_t {
    if (absent.contains(one)) return 0;
    return has_elements ? stride_of(tensor, axis++) : 0;
  };
  ((layout.*Stride<kAxes>::kMember = next(kAxes)), ...);
}

}  // namespace shortconv
