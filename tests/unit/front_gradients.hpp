// A front of a gated delta net in fp64, forward and backward, for tests that state one rule each.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

using Numbers = std::vector<double>;

/// q and k with a norm, v without, z copied, and the gates of each head of v. The rows have columns
/// of nothing behind each of the two blocks, or behind all.
struct FrontGradients {
  static constexpr std::int64_t kKeyHeads = 2, kHeads = 4, kKeyDim = 3, kDim = 2;
  static constexpr std::int64_t kBlock = 2 * kKeyDim + 2 * (kHeads / kKeyHeads) * kDim + 1;
  static constexpr std::int64_t kColumns = kKeyHeads * kBlock;
  static constexpr std::int64_t kGateBlock = kHeads / kKeyHeads + 1;
  static constexpr std::int64_t kGateColumns = kKeyHeads * kGateBlock;

  bool is_interleaved = false;
  std::int64_t width = 4;
  Activation activation = Activation::kSilu;
  bool with_bias = true, with_gates = true;
  float scale = 0.5f;  // of q; k has the default
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;
  std::vector<std::int32_t> bounds{};   // ragged
  std::int64_t sequences = 1;           // dense or packed
  std::vector<std::int32_t> seq_idx{};  // packed
  std::int64_t rows = 0;

  Numbers x{}, weight{}, bias{}, a{}, b{}, dt_bias{};
  std::vector<float> a_log{}, grad_g{}, grad_beta{}, grad_a_log{};
  std::array<Numbers, 4> gradients{};  // of the groups' outputs
  Numbers grad_x{}, grad_weight{}, grad_bias{}, grad_a{}, grad_b{}, grad_dt_bias{};
  std::vector<ChannelGroup> groups{};  // those of args()

  /// Sequences without tokens, shorter than the history, and rows outside of all.
  static FrontGradients ragged() { return {.bounds = {1, 1, 3, 9, 10}, .rows = 11}; }

  [[nodiscard]] static std::int64_t heads(int group) { return group < 2 ? kKeyHeads : kHeads; }
  [[nodiscard]] static std::int64_t head_dim(int group) { return group < 2 ? kKeyDim : kDim; }
  [[nodiscard]] static std::int64_t channels() { return 2 * kKeyHeads * kKeyDim + kHeads * kDim; }
  [[nodiscard]] HeadMap map(int group) const {
    constexpr std::int64_t kKeys = kKeyHeads * kKeyDim, kValues = kHeads * kDim;
    constexpr std::int64_t kRatio = kHeads / kKeyHeads;
    const std::int64_t flat[] = {0, kKeys, 2 * kKeys, 2 * kKeys + kValues};
    const std::int64_t in_block[] = {0, kKeyDim, 2 * kKeyDim, 2 * kKeyDim + kRatio * kDim};
    if (!is_interleaved) return {.offset = flat[group]};
    if (group < 2) return {.offset = in_block[group], .head_stride = kBlock};
    return {.offset = in_block[group], .block_heads = kRatio, .block_stride = kBlock};
  }
  /// The last column of each block is of no head.
  [[nodiscard]] static HeadMap gate_map(bool is_a) {
    return {.offset = is_a ? 1 : 0, .block_heads = kHeads / kKeyHeads, .block_stride = kGateBlock};
  }
  /// Whether a group has the column of element `i` of x.
  [[nodiscard]] bool reads_column(std::size_t i) const {
    const auto column = static_cast<std::int64_t>(i) % kColumns;
    return is_interleaved ? column % kBlock != kBlock - 1 : column < kColumns - kKeyHeads;
  }
  [[nodiscard]] static bool is_gate_column(std::size_t i, bool is_a) {
    const auto column = static_cast<std::int64_t>(i) % kGateBlock;
    return is_a ? column != 0 : column != kGateBlock - 1;
  }

  void fill(std::uint64_t seed) {
    tools::Random random(seed);
    if (!bounds.empty()) sequences = static_cast<std::int64_t>(bounds.size()) - 1;
    const auto fill_one = [&](auto& numbers, std::int64_t count) {
      numbers.resize(static_cast<std::size_t>(count));
      for (auto& one : numbers) {  // multiples of 2^-10, exact in f32
        one = static_cast<std::remove_reference_t<decltype(one)>>(
            static_cast<double>(random.between(-1024, 1024)) * 0x1p-10);
      }
    };
    const auto poison = [](auto& gradient, const auto& input) {
      using Number = std::remove_cvref_t<decltype(input[0])>;
      gradient.assign(input.size(), std::numeric_limits<Number>::quiet_NaN());
    };
    fill_one(x, rows * kColumns);
    fill_one(weight, channels() * width);
    fill_one(bias, channels());
    for (int i = 0; i < 4; ++i) {
      fill_one(gradients[static_cast<std::size_t>(i)], rows * heads(i) * head_dim(i));
    }
    fill_one(a, rows * kGateColumns);
    fill_one(b, rows * kGateColumns);
    fill_one(a_log, kHeads);
    fill_one(dt_bias, kHeads);
    fill_one(grad_g, rows * kHeads);
    fill_one(grad_beta, rows * kHeads);
    poison(grad_x, x);
    poison(grad_weight, weight);
    poison(grad_bias, bias);
    poison(grad_a, a);
    poison(grad_b, b);
    poison(grad_a_log, a_log);
    poison(grad_dt_bias, dt_bias);
  }

  void poison_row(std::int64_t row) {
    const auto poison = [&](auto& numbers) {
      const std::int64_t columns = std::ssize(numbers) / rows;
      std::fill_n(numbers.begin() + row * columns, columns,
                  std::numeric_limits<float>::quiet_NaN());
    };
    for (Numbers* one : {&x, &a, &b}) poison(*one);
    for (Numbers& one : gradients) poison(one);
    poison(grad_g);
    poison(grad_beta);
  }

  /// Rows of `last` elements.
  template <typename Number>
  [[nodiscard]] TensorRef rows_of(std::vector<Number>& numbers,
                                  std::initializer_list<std::int64_t> last) const {
    TensorRef tensor;
    tensor.data = numbers.data();
    tensor.dtype = sizeof(Number) == 8 ? DType::kF64 : DType::kF32;
    const auto add_axis = [&](std::int64_t size) { tensor.shape[tensor.ndim++] = size; };
    if (bounds.empty()) add_axis(sequences);
    add_axis(bounds.empty() ? rows / sequences : rows);
    for (const std::int64_t size : last) add_axis(size);
    std::int64_t stride = 1;
    for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
      tensor.strides[axis] = stride;
      stride *= std::max<std::int64_t>(tensor.shape[axis], 1);
    }
    return tensor;
  }
  template <typename Number>
  [[nodiscard]] static TensorRef list_of(std::vector<Number>& numbers) {
    return TensorRef::contiguous(numbers.data(), sizeof(Number) == 8 ? DType::kF64 : DType::kF32,
                                 {std::ssize(numbers)});
  }
  [[nodiscard]] TensorRef weights_of(Numbers& numbers) const {
    return TensorRef::contiguous(numbers.data(), DType::kF64, {channels(), width});
  }
  [[nodiscard]] TensorRef bounds_of() {
    return TensorRef::contiguous(bounds.data(), DType::kI32, {std::ssize(bounds)});
  }
  [[nodiscard]] TensorRef seq_idx_of() {
    return TensorRef::contiguous(seq_idx.data(), DType::kI32, {sequences, rows / sequences});
  }

  /// With `outs` as the groups' tensors.
  void set_groups(std::array<Numbers, 4>& outs) {
    groups.clear();
    for (int i = 0; i < 4; ++i) {
      groups.push_back({.out = rows_of(outs[static_cast<std::size_t>(i)], {heads(i), head_dim(i)}),
                        .input = map(i),
                        .copy = i == 3});
      // A large eps: derivatives of high order stay small.
      if (i < 2) groups.back().l2_norm = L2Norm{.eps = 0.5f, .scale = i == 0 ? scale : 1};
    }
  }

  /// Sum of the results times their gradients.
  double loss() {
    std::array<Numbers, 4> outs = gradients;
    for (Numbers& out : outs) out.assign(out.size(), 0);
    std::vector<float> g(grad_g.size()), beta(grad_beta.size());
    set_groups(outs);
    GroupedArgs args;
    args.groups = groups;
    args.forward.options.backend = BackendId::kReference;
    args.forward.x = rows_of(x, {kColumns});
    args.forward.weight = weights_of(weight);
    if (with_bias) args.forward.bias = list_of(bias);
    args.forward.epilogue.activation = activation;
    if (!bounds.empty()) args.forward.sequences.query_start_loc = bounds_of();
    if (!seq_idx.empty()) args.forward.sequences.seq_idx = seq_idx_of();
    if (with_gates) {
      GateArgs& gates = args.gates.emplace();
      gates.a = rows_of(a, {kGateColumns});
      gates.b = rows_of(b, {kGateColumns});
      gates.a_log = list_of(a_log);
      gates.dt_bias = list_of(dt_bias);
      gates.g = rows_of(g, {kHeads});
      gates.beta = rows_of(beta, {kHeads});
      gates.a_map = gate_map(true);
      gates.b_map = gate_map(false);
      gates.decay = decay;
      gates.beta_factor = beta_factor;
    }
    const Status status = forward_groups(args);
    EXPECT_TRUE(status.ok()) << status.message();
    double sum = 0;
    const auto add = [&sum](const auto& result, const auto& gradient) {
      for (std::size_t i = 0; i < result.size(); ++i) {
        sum += static_cast<double>(result[i]) * static_cast<double>(gradient[i]);
      }
    };
    for (std::size_t i = 0; i < 4; ++i) add(outs[i], gradients[i]);
    add(g, grad_g);
    add(beta, grad_beta);
    return sum;
  }

  GroupedBackwardArgs args() {
    set_groups(gradients);
    GroupedBackwardArgs args;
    args.groups = groups;
    args.backward.backend = BackendId::kReference;
    args.backward.activation = activation;
    args.backward.x = rows_of(x, {kColumns});
    args.backward.weight = weights_of(weight);
    args.backward.grad_x = rows_of(grad_x, {kColumns});
    args.backward.grad_weight = weights_of(grad_weight);
    if (with_bias) {
      args.backward.bias = list_of(bias);
      args.backward.grad_bias = list_of(grad_bias);
    }
    if (!bounds.empty()) args.backward.query_start_loc = bounds_of();
    if (!seq_idx.empty()) args.backward.seq_idx = seq_idx_of();
    if (!with_gates) return args;
    GateGradientArgs& gates = args.gates.emplace();
    gates.a = rows_of(a, {kGateColumns});
    gates.b = rows_of(b, {kGateColumns});
    gates.a_log = list_of(a_log);
    gates.dt_bias = list_of(dt_bias);
    gates.grad_g = rows_of(grad_g, {kHeads});
    gates.grad_beta = rows_of(grad_beta, {kHeads});
    gates.grad_a = rows_of(grad_a, {kGateColumns});
    gates.grad_b = rows_of(grad_b, {kGateColumns});
    gates.grad_a_log = list_of(grad_a_log);
    gates.grad_dt_bias = list_of(grad_dt_bias);
    gates.a_map = gate_map(true);
    gates.b_map = gate_map(false);
    gates.decay = decay;
    gates.beta_factor = beta_factor;
    return args;
  }

  void run() {
    const Status status = backward_groups(args());
    ASSERT_TRUE(status.ok()) << status.message();
  }
};

/// A ragged call without groups of any types.
struct PlainGradients {
  static constexpr std::int64_t kRows = 37, kHalf = 6, kChannels = 2 * kHalf, kWidth = 4;

  struct Results {
    std::vector<char> x, weight, bias;
    friend bool operator==(const Results&, const Results&) = default;
  };

  DType dtype, weight_dtype;
  std::vector<std::int32_t> bounds{1, 1, 9, 30, 36};
  std::vector<char> x, weight, bias, grad_out;
  Results with_groups, without_groups;

  PlainGradients(DType rows_type, DType weights_type)
      : dtype(rows_type),
        weight_dtype(weights_type),
        x(random_elements(dtype, kRows * kChannels, 1)),
        weight(random_elements(weight_dtype, kChannels * kWidth, 2)),
        bias(random_elements(weight_dtype, kChannels, 3)),
        grad_out(random_elements(dtype, kRows * kChannels, 4)),
        with_groups{x, weight, bias},
        without_groups(with_groups) {}

  static std::vector<char> random_elements(DType type, std::int64_t count, std::uint64_t seed) {
    tools::Random random(seed);
    std::vector<char> bytes(static_cast<std::size_t>(count * element_bytes(type)));
    for (std::int64_t i = 0; i < count; ++i) {
      store_element(type, bytes.data() + i * element_bytes(type), random.normal());
    }
    return bytes;
  }

  [[nodiscard]] TensorRef rows(std::vector<char>& bytes,
                               std::initializer_list<std::int64_t> shape) const {
    return TensorRef::contiguous(bytes.data(), dtype, shape);
  }

  BackwardArgs args(Results& to) {
    const auto weights = [&](std::vector<char>& bytes) {
      return TensorRef::contiguous(bytes.data(), weight_dtype, {kChannels, kWidth});
    };
    const auto list = [&](std::vector<char>& bytes) {
      return TensorRef::contiguous(bytes.data(), weight_dtype, {kChannels});
    };
    BackwardArgs args;
    args.backend = BackendId::kReference;
    args.activation = Activation::kSilu;
    args.x = rows(x, {kRows, kChannels});
    args.grad_out = rows(grad_out, {kRows, kChannels});
    args.grad_x = rows(to.x, {kRows, kChannels});
    args.weight = weights(weight);
    args.grad_weight = weights(to.weight);
    args.bias = list(bias);
    args.grad_bias = list(to.bias);
    args.query_start_loc = TensorRef::contiguous(bounds.data(), DType::kI32, {std::ssize(bounds)});
    return args;
  }
};

}  // namespace shortconv
