// A forward call whose channels are divided into groups, such as q, k and v of a gated delta net or
// x, B and C of Mamba-2. One call reads the rows of the projection in their own layout, writes each
// group to a separate tensor, normalizes heads and computes the gates.
//
// The same bits as a forward call followed by l2_norm and delta_gates, on each backend.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "shortconv/arguments.hpp"
#include "shortconv/export.h"
#include "shortconv/problem.hpp"
#include "shortconv/status.hpp"

namespace shortconv {

/// Largest number of groups in a call.
inline constexpr int kMaxGroups = 8;

/// Columns of a row that belong to heads: element d of head h is in column
///   offset + h / block_heads * block_stride + h % block_heads * head_stride + d.
struct HeadMap {
  std::int64_t offset = 0;
  std::int64_t head_stride = 0;   ///< 0: the heads are adjacent
  std::int64_t block_heads = 0;   ///< 0: all heads are in one block
  std::int64_t block_stride = 0;  ///< with block_heads

  friend bool operator==(const HeadMap&, const HeadMap&) = default;
};

/// x / sqrt(sum of x^2 + eps) for each head of each token, then times scale. All operations are
/// fp32 with one rounding each. The sum is a balanced tree over the channels of the head, neighbors
/// first, so that its bits do not depend on how the head is divided among lanes.
struct L2Norm {
  float eps = 1e-6f;  ///< positive
  float scale = 1;

  friend bool operator==(const L2Norm&, const L2Norm&) = default;
};

/// Adjacent channels of the convolution, or columns of x that are copied.
struct ChannelGroup {
  /// [tokens, heads, head_dim], or [sequences, tokens, heads, head_dim] where x has that axis; of a
  /// decode call with x [sequences, channels] it is [sequences, heads, head_dim]. Adjacent
  /// channels.
  TensorRef out;
  HeadMap input;                       ///< the group's columns of x
  bool copy = false;                   ///< copied without a convolution; dtype of x
  std::optional<L2Norm> l2_norm = {};  ///< of the result, after its rounding to the dtype of out
  float input_scale = 1;  ///< the inputs are x * input_scale, rounded to the dtype of x
};

/// What the first gate is written as.
enum class DecayForm : std::uint8_t {
  kLog,  ///< g
  kExp,  ///< exp(g)
};

template <template <Axis...> typename Tensor, template <Axis...> typename Required = Tensor>
struct GateTensors {
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> a{};  ///< [tokens, columns] or
                                                                ///< [sequences, tokens, columns]
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> b{};  ///< the same tokens
  Required<Axis::kHead> a_log{};                                ///< [heads] f32
  Required<Axis::kHead> dt_bias{};                              ///< [heads]
  Required<Axis::kSequence, Axis::kToken, Axis::kHead> g{};     ///< [tokens, heads] or [sequences,
                                                                ///< tokens, heads] f32, written
  Required<Axis::kSequence, Axis::kToken, Axis::kHead> beta{};  ///< as g

  friend bool operator==(const GateTensors&, const GateTensors&) = default;
};

/// Gates of a delta rule, in fp32, for each token and head:
///   g = -exp(a_log) * softplus(a + dt_bias), softplus(x) = x > 20 ? x : log(1 + exp(x))
///   beta = beta_factor / (1 + exp(-b))
struct GateArgs : GateTensors<OptionalTensor, RequiredTensor> {
  HeadMap a_map;  ///< the columns of a that belong to the heads
  HeadMap b_map;
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;    ///< 1 or 2
  bool round_beta = false;  ///< sigmoid(b) is rounded to the dtype of b first
};

/// Arguments of a forward or decode call with groups. The groups that are not copied are the
/// channels of weight, bias and state, in their order.
struct GroupedArgs {
  /// x has any number of columns, of which the groups name theirs; out is unused. Gates have the
  /// shape of the convolution's channels. Schedule flat only.
  ForwardArgs forward;
  std::span<const ChannelGroup> groups;
  std::optional<GateArgs> gates;
};

/// A group without its address.
struct GroupLayout {
  TensorLayout<Axis::kSequence, Axis::kToken, Axis::kHead, Axis::kChannel> out;
  HeadMap input;  ///< with its defaults replaced
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t first_channel = 0;  ///< of the convolution; 0 in a copied group
  bool copy = false;
  bool normalize = false;
  L2Norm l2_norm;
  float input_scale = 1;

  [[nodiscard]] std::int64_t channels() const { return heads * head_dim; }

  friend bool operator==(const GroupLayout&, const GroupLayout&) = default;
};

/// The gates without their addresses.
struct GateProblem : GateTensors<TensorLayout> {
  HeadMap a_map, b_map;  ///< with their defaults replaced
  std::int64_t heads = 0;
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;
  bool round_beta = false;

  friend bool operator==(const GateProblem&, const GateProblem&) = default;
};

/// A grouped call without its addresses.
struct GroupedProblem {
  Problem forward;           ///< `out` has the dtype of the convolved groups and is absent
  std::int64_t columns = 0;  ///< of x
  std::int32_t group_count = 0;
  bool has_gates = false;
  std::array<GroupLayout, kMaxGroups> groups;
  GateProblem gates;

  [[nodiscard]] std::span<const GroupLayout> used_groups() const {
    return std::span(groups).first(static_cast<std::size_t>(group_count));
  }

  friend bool operator==(const GroupedProblem&, const GroupedProblem&) = default;
};

/// As make_problem of a forward call.
[[nodiscard]] SHORTCONV_API Status make_problem(const GroupedArgs& args, GroupedProblem& problem);

template <template <Axis...> typename Tensor, template <Axis...> typename Required = Tensor>
struct GateGradientTensors {
  // Inputs of the gates, as in GateTensors.
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> a{};
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> b{};
  Required<Axis::kHead> a_log{};
  Required<Axis::kHead> dt_bias{};

  // Gradients of the gates.
  Required<Axis::kSequence, Axis::kToken, Axis::kHead> grad_g{};     ///< shape of g, f32
  Required<Axis::kSequence, Axis::kToken, Axis::kHead> grad_beta{};  ///< shape of beta, f32

  // Gradients to compute, written; absent: not computed. Columns of no head are not written.
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> grad_a{};  ///< shape of a, floating
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> grad_b{};  ///< shape of b, floating
  Tensor<Axis::kHead> grad_a_log{};                                ///< [heads] f32
  Tensor<Axis::kHead> grad_dt_bias{};                              ///< [heads], floating

  friend bool operator==(const GateGradientTensors&, const GateGradientTensors&) = default;
};

/// The gradients of gates; options as in GateArgs. A rounding of beta counts as the identity. No
/// two heads have the same column of a, or of b: unlike x, such a column has one gradient in one
/// place, which is undefined then.
struct GateGradientArgs : GateGradientTensors<OptionalTensor, RequiredTensor> {
  HeadMap a_map;  ///< also the columns of grad_a
  HeadMap b_map;  ///< also the columns of grad_b
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;
};

/// Arguments of the backward call of a forward call with groups. Results that were normalized are
/// computed again, with their rounding to the dtype of the group's `out`.
struct GroupedBackwardArgs {
  /// x and grad_x have any number of columns, of which the groups name theirs; columns of no group
  /// are not written. grad_out is unused. No states, gates of the convolution, residual or
  /// dilation.
  BackwardArgs backward;
  /// As in the forward call, with an input_scale of 1, but `out` is the gradient of the group's
  /// output and is read. Undefined: the gradient of a column of x that two heads have.
  std::span<const ChannelGroup> groups;
  std::optional<GateGradientArgs> gates;
};

/// The gradients of gates without their addresses.
struct GateGradientProblem : GateGradientTensors<TensorLayout> {
  HeadMap a_map, b_map;  ///< with their defaults replaced
  std::int64_t heads = 0;
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;

  friend bool operator==(const GateGradientProblem&, const GateGradientProblem&) = default;
};

/// A backward call with groups without its addresses.
struct GroupedBackwardProblem {
  BackwardProblem backward;  ///< grad_out is absent
  std::int64_t columns = 0;  ///< of x
  std::int32_t group_count = 0;
  bool has_gates = false;
  std::array<GroupLayout, kMaxGroups> groups;  ///< `out`: the gradient of the output
  GateGradientProblem gates;

  [[nodiscard]] std::span<const GroupLayout> used_groups() const {
    return std::span(groups).first(static_cast<std::size_t>(group_count));
  }

  friend bool operator==(const GroupedBackwardProblem&, const GroupedBackwardProblem&) = default;
};

/// As make_problem of a backward call.
[[nodiscard]] SHORTCONV_API Status make_problem(const GroupedBackwardArgs& args,
                                                GroupedBackwardProblem& problem);

/// The operations after the convolution by themselves, one launch each, without a plan: no
/// allocation, no synchronization.

struct L2NormArgs {
  TensorRef x;    ///< [tokens, heads, head_dim] or [sequences, tokens, heads, head_dim]
  TensorRef out;  ///< shape and dtype of x; may be x itself
  L2Norm norm;
  BackendId backend = BackendId::kAuto;
};
[[nodiscard]] SHORTCONV_API Status l2_norm(const L2NormArgs& args, void* stream = nullptr);

[[nodiscard]] SHORTCONV_API Status delta_gates(const GateArgs& args,
                                               BackendId backend = BackendId::kAuto,
                                               void* stream = nullptr);

}  // namespace shortconv
