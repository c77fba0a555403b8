// Gradients: the reference against finite differences of its forward call, the rules for rows and
// states at the edges, and every refusal.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

using Numbers = std::vector<double>;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A forward call in fp64 with functional states, and its backward call.
struct Layer {
  std::int64_t channels = 2, width = 4;
  std::int32_t dilation = 1;
  Activation activation = Activation::kSilu;
  bool residual = false, with_bias = true, with_input_gate = false, with_output_gate = false;
  bool with_state = true, with_final_gradient = true;
  std::vector<std::int32_t> bounds{};   // ragged
  std::int64_t sequences = 1;           // dense or packed
  std::vector<std::int32_t> seq_idx{};  // packed
  std::int64_t rows = 0;

  Numbers x{}, weight{}, bias{}, input_gate{}, output_gate{}, state{};
  Numbers grad_out{}, grad_final{};
  Numbers grad_x{}, grad_weight{}, grad_bias{}, grad_input_gate{}, grad_output_gate{}, grad_state{};

  [[nodiscard]] std::int64_t history() const { return (width - 1) * dilation; }

  void fill(tools::Random& random) {
    if (!bounds.empty()) sequences = static_cast<std::int64_t>(bounds.size()) - 1;
    const auto numbers = [&](std::int64_t count) {
      Numbers all(static_cast<std::size_t>(count));
      for (double& one : all) one = 2 * random.uniform() - 1;
      return all;
    };
    for (Numbers* one : {&x, &input_gate, &output_gate, &grad_out}) *one = numbers(rows * channels);
    weight = numbers(channels * width);
    bias = numbers(channels);
    state = numbers(sequences * history() * channels);
    grad_final = numbers(sequences * history() * channels);
    for (Numbers* one : {&grad_x, &grad_input_gate, &grad_output_gate}) {
      one->assign(static_cast<std::size_t>(rows * channels), kNan);
    }
    grad_weight.assign(weight.size(), kNan);
    grad_bias.assign(bias.size(), kNan);
    grad_state.assign(state.size(), kNan);
  }

  [[nodiscard]] TensorRef rows_of(Numbers& numbers) const {
    if (!bounds.empty()) {
      return TensorRef::contiguous(numbers.data(), DType::kF64, {rows, channels});
    }
    return TensorRef::contiguous(numbers.data(), DType::kF64,
                                 {sequences, rows / sequences, channels});
  }
  [[nodiscard]] TensorRef states_of(Numbers& numbers) const {
    return TensorRef::contiguous(numbers.data(), DType::kF64, {sequences, history(), channels});
  }
  [[nodiscard]] TensorRef weights_of(Numbers& numbers) const {
    return TensorRef::contiguous(numbers.data(), DType::kF64, {channels, width});
  }
  [[nodiscard]] TensorRef biases_of(Numbers& numbers) const {
    return TensorRef::contiguous(numbers.data(), DType::kF64, {channels});
  }
  [[nodiscard]] TensorRef bounds_of() {
    return TensorRef::contiguous(bounds.data(), DType::kI32,
                                 {static_cast<std::int64_t>(bounds.size())});
  }
  [[nodiscard]] TensorRef seq_idx_of() {
    return TensorRef::contiguous(seq_idx.data(), DType::kI32, {sequences, rows / sequences});
  }

  /// Sum of the results times their gradients.
  double loss() {
    Numbers out(x.size()), final = state;
    ForwardArgs args;
    args.options.backend = BackendId::kReference;
    args.x = rows_of(x);
    args.out = rows_of(out);
    args.weight = weights_of(weight);
    args.dilation = dilation;
    args.epilogue.activation = activation;
    args.epilogue.residual = residual;
    if (with_bias) args.bias = biases_of(bias);
    if (with_input_gate) args.input_gate = rows_of(input_gate);
    if (with_output_gate) args.epilogue.output_gate = rows_of(output_gate);
    if (!bounds.empty()) args.sequences.query_start_loc = bounds_of();
    if (!seq_idx.empty()) args.sequences.seq_idx = seq_idx_of();
    args.pool.state = states_of(final);
    args.sequences.initial_state = with_state ? InitialState::kAll : InitialState::kNone;
    if (!with_state) final.assign(final.size(), 0);
    const Status status = forward(args);
    EXPECT_TRUE(status.ok()) << status.message();
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * grad_out[i];
    for (std::size_t i = 0; with_final_gradient && i < final.size(); ++i) {
      sum += final[i] * grad_final[i];
    }
    return sum;
  }

  BackwardArgs args() {
    BackwardArgs args;
    args.backend = BackendId::kReference;
    args.x = rows_of(x);
    args.weight = weights_of(weight);
    args.dilation = dilation;
    args.activation = activation;
    args.residual = residual;
    args.grad_out = rows_of(grad_out);
    args.grad_x = rows_of(grad_x);
    args.grad_weight = weights_of(grad_weight);
    if (!bounds.empty()) args.query_start_loc = bounds_of();
    if (!seq_idx.empty()) args.seq_idx = seq_idx_of();
    if (with_bias) {
      args.bias = biases_of(bias);
      args.grad_bias = biases_of(grad_bias);
    }
    if (with_input_gate) {
      args.input_gate = rows_of(input_gate);
      args.grad_input_gate = rows_of(grad_input_gate);
    }
    if (with_output_gate) {
      args.output_gate = rows_of(output_gate);
      args.grad_output_gate = rows_of(grad_output_gate);
    }
    if (with_state) {
      args.initial_state = states_of(state);
      args.grad_initial_state = states_of(grad_state);
    }
    if (with_final_gradient) args.grad_final_state = states_of(grad_final);
    return args;
  }

  void run() {
    const Status status = backward(args());
    ASSERT_TRUE(status.ok()) << status.message();
  }
};

void expect_finite_differences(Layer& layer, Numbers& input, const Numbers& gradient,
                               const std::string& name) {
  constexpr double kStep = 1e-5;
  for (std::size_t i = 0; i < input.size(); ++i) {
    const double value = input[i];
    input[i] = value + kStep;
    const double above = layer.loss();
    input[i] = value - kStep;
    const double below = layer.loss();
    input[i] = value;
    // The error of a central difference is step^2 times the third derivative, about 1e-10 here,
    // and the rounding of the loss divided by the step, about 1e-11.
    ASSERT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-8) << name << " " << i;
  }
}

void expect_gradients(Layer layer) {
  tools::Random random(11);
  layer.fill(random);
  layer.run();
  expect_finite_differences(layer, layer.x, layer.grad_x, "x");
  expect_finite_differences(layer, layer.weight, layer.grad_weight, "weight");
  if (layer.with_bias) expect_finite_differences(layer, layer.bias, layer.grad_bias, "bias");
  if (layer.with_state) expect_finite_differences(layer, layer.state, layer.grad_state, "state");
  if (layer.with_input_gate) {
    expect_finite_differences(layer, layer.input_gate, layer.grad_input_gate, "input_gate");
  }
  if (layer.with_output_gate) {
    expect_finite_differences(layer, layer.output_gate, layer.grad_output_gate, "output_gate");
  }
}

// Sequences without tokens, shorter than the history, and rows outside of all.
Layer ragged() { return {.bounds = {1, 1, 3, 9, 10}, .rows = 11}; }

TEST(Backward, EveryGradientIsThatOfFiniteDifferences) {
  for (const std::int64_t width : {2, 3, 4, 7}) {
    for (const Activation activation : {Activation::kNone, Activation::kSilu}) {
      Layer layer = ragged();
      layer.width = width;
      layer.activation = activation;
      expect_gradients(layer);
      layer.residual = true;
      expect_gradients(layer);
      layer.residual = false;
      layer.with_output_gate = true;
      expect_gradients(layer);
      layer.with_input_gate = true;
      layer.with_bias = false;
      expect_gradients(layer);
    }
  }
}

TEST(Backward, GradientsWithoutStatesAndWithDilation) {
  for (const std::int32_t dilation : {1, 2, 3}) {
    for (const bool with_state : {false, true}) {
      for (const bool with_final_gradient : {false, true}) {
        Layer layer = ragged();
        layer.width = 3;
        layer.dilation = dilation;
        layer.with_state = with_state;
        layer.with_final_gradient = with_final_gradient;
        expect_gradients(layer);
      }
    }
  }
}

TEST(Backward, DenseAndPackedBatches) {
  Layer dense{.sequences = 3, .rows = 15};
  expect_gradients(dense);
  dense.rows = 6;  // shorter than the history
  expect_gradients(dense);
  Layer packed{.with_final_gradient = false,
               .sequences = 2,
               .seq_idx = {4, 4, 4, 4, 7, 7, -1, 0, -3, 1, 1, 1, 1, 1, 2, 2},
               .rows = 16};
  expect_gradients(packed);
}

TEST(Backward, RowsWithoutASequenceReachNothing) {
  tools::Random random(3);
  for (const bool by_seq_idx : {false, true}) {
    Layer layer{.with_final_gradient = false, .rows = 8};
    if (by_seq_idx) {
      layer.seq_idx = {-1, -1, 5, 5, 5, -2, 6, 6};
    } else {
      layer.bounds = {2, 5, 5, 7};
    }
    layer.with_input_gate = layer.with_output_gate = true;
    layer.fill(random);
    std::vector<std::size_t> padding =
        by_seq_idx ? std::vector<std::size_t>{0, 1, 5} : std::vector<std::size_t>{0, 1, 7};
    for (const std::size_t row : padding) {
      for (std::size_t c = 0; c < 2; ++c) {
        for (Numbers* one : {&layer.x, &layer.grad_out, &layer.input_gate, &layer.output_gate}) {
          (*one)[row * 2 + c] = kNan;
        }
      }
    }
    layer.run();
    for (const std::size_t row : padding) {
      for (std::size_t c = 0; c < 2; ++c) {
        EXPECT_EQ(layer.grad_x[row * 2 + c], 0);
        EXPECT_EQ(layer.grad_input_gate[row * 2 + c], 0);
        EXPECT_EQ(layer.grad_output_gate[row * 2 + c], 0);
      }
    }
    for (const Numbers* one : {&layer.grad_x, &layer.grad_weight, &layer.grad_bias}) {
      for (const double number : *one) EXPECT_FALSE(std::isnan(number));
    }
  }
}

// Whichever gradients are asked for, each has the same bits.
TEST(Backward, AnySubsetOfGradientsHasTheSameBits) {
  tools::Random random(5);
  Layer all = ragged();
  all.with_input_gate = all.with_output_gate = true;
  all.fill(random);
  Layer some = all;
  all.run();
  for (int subset = 0; subset < 64; ++subset) {
    BackwardArgs args = some.args();
    if ((subset & 1) == 0) args.grad_x.reset();
    if ((subset & 2) == 0) args.grad_weight.reset();
    if ((subset & 4) == 0) args.grad_bias.reset();
    if ((subset & 8) == 0) args.grad_initial_state.reset();
    if ((subset & 16) == 0) args.grad_input_gate.reset();
    if ((subset & 32) == 0) args.grad_output_gate.reset();
    ASSERT_TRUE(backward(args).ok());
    if ((subset & 1) != 0) {
      EXPECT_EQ(some.grad_x, all.grad_x);
    }
    if ((subset & 2) != 0) {
      EXPECT_EQ(some.grad_weight, all.grad_weight);
    }
    if ((subset & 4) != 0) {
      EXPECT_EQ(some.grad_bias, all.grad_bias);
    }
    if ((subset & 8) != 0) {
      EXPECT_EQ(some.grad_state, all.grad_state);
    }
    if ((subset & 16) != 0) {
      EXPECT_EQ(some.grad_input_gate, all.grad_input_gate);
    }
    if ((subset & 32) != 0) {
      EXPECT_EQ(some.grad_output_gate, all.grad_output_gate);
    }
    for (Numbers* one : {&some.grad_x, &some.grad_weight, &some.grad_bias, &some.grad_state,
                         &some.grad_input_gate, &some.grad_output_gate}) {
      one->assign(one->size(), kNan);
    }
  }
}

// The gradient of the second part's initial state is that of the first part's final state.
TEST(Backward, EveryCutOfASequenceGivesTheSameBits) {
  tools::Random random(7);
  Layer whole{.width = 4, .bounds = {0, 97}, .rows = 97};
  whole.fill(random);
  whole.run();
  const auto rows = [&](const Numbers& from, std::int64_t begin, std::int64_t end) {
    return Numbers(from.begin() + begin * 2, from.begin() + end * 2);
  };
  for (std::int64_t cut = 0; cut <= 97; ++cut) {
    Layer first = whole, second = whole;
    first.bounds = {0, static_cast<std::int32_t>(cut)};
    first.rows = cut;
    second.bounds = {0, static_cast<std::int32_t>(97 - cut)};
    second.rows = 97 - cut;
    for (Numbers Layer::* numbers : {&Layer::x, &Layer::grad_out, &Layer::grad_x}) {
      first.*numbers = rows(whole.*numbers, 0, cut);
      second.*numbers = rows(whole.*numbers, cut, 97);
    }
    for (std::int64_t column = 0; column < 3; ++column) {  // the last inputs of the first part
      const std::int64_t n = cut - 3 + column;
      for (std::int64_t c = 0; c < 2; ++c) {
        second.state[static_cast<std::size_t>(column * 2 + c)] =
            n < 0 ? whole.state[static_cast<std::size_t>((n + 3) * 2 + c)]
                  : whole.x[static_cast<std::size_t>(n * 2 + c)];
      }
    }
    second.run();
    first.grad_final = second.grad_state;
    first.run();
    EXPECT_EQ(first.grad_state, whole.grad_state) << cut;
    Numbers joined = first.grad_x;
    joined.insert(joined.end(), second.grad_x.begin(), second.grad_x.end());
    EXPECT_EQ(joined, whole.grad_x) << cut;
  }
}

TEST(Backward, WithoutTokensTheGradientOfTheStatePassesThrough) {
  tools::Random random(9);
  Layer layer{.bounds = {0, 0, 0}, .rows = 0};
  layer.fill(random);
  layer.run();
  EXPECT_EQ(layer.grad_state, layer.grad_final);
  EXPECT_EQ(layer.grad_weight, Numbers(layer.weight.size(), 0.0));
  EXPECT_EQ(layer.grad_bias, Numbers(2, 0.0));
}

TEST(Backward, AccumulateAddsToWeightAndBias) {
  tools::Random random(13);
  Layer layer = ragged();
  layer.fill(random);
  layer.run();
  std::vector<float> weight(8, 10.0f), bias(2, 20.0f);
  BackwardArgs args = layer.args();
  args.grad_weight = TensorRef::contiguous(weight.data(), DType::kF32, {2, 4});
  args.grad_bias = TensorRef::contiguous(bias.data(), DType::kF32, {2});
  args.accumulate = true;
  for (int repetition = 1; repetition <= 2; ++repetition) {
    ASSERT_TRUE(backward(args).ok());
    for (std::size_t i = 0; i < 8; ++i) {
      EXPECT_NEAR(weight[i], 10 + repetition * layer.grad_weight[i], 1e-5);
    }
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(bias[i], 20 + repetition * layer.grad_bias[i], 1e-5);
    }
  }
}

template <typename Change>
void expect_refusal(Change&& change, const std::string& message) {
  tools::Random random(1);
  Layer layer = ragged();
  layer.with_input_gate = layer.with_output_gate = true;
  layer.fill(random);
  BackwardArgs args = layer.args();
  change(args, layer);
  const Status status = backward(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_EQ(status.message().substr(0, message.size()), message);
  for (const Numbers* one : {&layer.grad_x, &layer.grad_weight, &layer.grad_state}) {
    for (const double number : *one) EXPECT_TRUE(std::isnan(number));
  }
}

TEST(BackwardRefusal, NamesTheArgument) {
  using Args = BackwardArgs;
  expect_refusal([](Args& a, Layer&) { a.grad_out.shape[0] = 10; },
                 "grad_out: axis 0 ('tokens') is 10, but x made 'tokens' = 11");
  expect_refusal([](Args& a, Layer&) { a.grad_x->dtype = DType::kF32; },
                 "grad_x: dtype f32 is not supported (f64)");
  expect_refusal([](Args& a, Layer&) { a.grad_weight->dtype = DType::kBF16; },
                 "grad_weight: dtype bf16 is not supported (f64, f32)");
  expect_refusal([](Args& a, Layer&) { a.grad_initial_state->shape[1] = 2; },
                 "grad_initial_state: axis 1 ('history') is 2, but weight made 'history' = 3");
  expect_refusal([](Args& a, Layer&) { a.initial_state.reset(); },
                 "grad_initial_state: is given, but initial_state is absent");
  expect_refusal([](Args& a, Layer&) { a.bias.reset(); },
                 "grad_bias: is given, but bias is absent");
  expect_refusal([](Args& a, Layer&) { a.residual = true; },
                 "residual: cannot be combined with input_gate or output_gate");
  expect_refusal([](Args& a, Layer&) { a.accumulate = true; },
                 "grad_weight: dtype is f64, but accumulate adds in f32; expected f32");
  expect_refusal([](Args& a, Layer& l) { a.grad_x->data = l.x.data(); }, "grad_x: overlaps x");
  expect_refusal([](Args& a, Layer&) { a.grad_x->strides[0] = 1; }, "grad_x: overlaps itself");
  expect_refusal([](Args& a, Layer&) { a.dilation = 0; }, "dilation: is 0; expected 1 or more");
  expect_refusal(
      [](Args& a, Layer&) {
        a.weight.shape[1] = a.grad_weight->shape[1] = 65;
        a.grad_weight->strides[0] = 65;
        a.initial_state.reset();
        a.grad_initial_state.reset();
        a.grad_final_state.reset();
      },
      "weight: width 65 is not supported (2 to 64)");
  expect_refusal([](Args& a, Layer&) { a.threads = -1; }, "threads: is -1; expected 0 (all)");
  expect_refusal([](Args& a, Layer&) { a.backend = BackendId::kCpu; },
                 "backend: 'cpu' does not support f64; expected the reference backend");
}

TEST(BackwardRefusal, SeqIdxHasNoFinalStates) {
  tools::Random random(1);
  Layer layer{.seq_idx = {0, 0, 1}, .rows = 3};
  layer.fill(random);
  EXPECT_EQ(backward(layer.args()).message(),
            "grad_final_state: cannot be combined with seq_idx, which has no final states");
}

TEST(Backward, PlansRunOnOtherAddresses) {
  tools::Random random(17);
  Layer layer = ragged();
  layer.fill(random);
  BackwardProblem problem;
  BackwardPlan plan;
  ASSERT_TRUE(make_problem(layer.args(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  EXPECT_EQ(workspace_bytes(plan), 0);
  Layer other = layer;
  layer.run();
  ASSERT_TRUE(run(plan, pointers(other.args())).ok());
  EXPECT_EQ(other.grad_x, layer.grad_x);
  EXPECT_EQ(other.grad_weight, layer.grad_weight);
  BackwardPointers without = pointers(other.args());
  without.grad_x = nullptr;
  EXPECT_EQ(run(plan, without).message(), "grad_x: is null, but the plan has it");
}

}  // namespace
}  // namespace shortconv
