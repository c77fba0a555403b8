// Gradients of calls with groups: random calls of the reference within the bounds, the reference
// against finite differences of its forward call, and the rules at the edges.
// grouped_backward_refusal_test.cpp has what is refused.
#include <gtest/gtest.h>

#include <cmath>

#include "front_gradients.hpp"
#include "verify/grouped_backward_case.hpp"

namespace shortconv {
namespace {

namespace verify = tools::verify;

TEST(GroupedBackward, RandomCallsOfTheReferenceAreWithinTheBounds) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const verify::GroupedBackwardCase problem = verify::make_grouped_backward_case(seed);
    const verify::Verdict verdict = verify::check_grouped_backward(problem, BackendId::kReference);
    ASSERT_FALSE(verdict.failure) << *verdict.failure << "\n" << to_string(problem);
    ASSERT_FALSE(verdict.unsupported) << *verdict.unsupported << "\n" << to_string(problem);
  }
}

TEST(GroupedBackward, AnySubsetOfGradientsHasTheSameBits) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const verify::GroupedBackwardCase problem = verify::make_grouped_backward_case(seed);
    const auto failure = verify::check_grouped_backward_repeats(problem, BackendId::kReference);
    ASSERT_FALSE(failure) << *failure << "\n" << to_string(problem);
  }
}

/// `step` of a difference of fourth order. `is_input(i)`: whether the element is one.
template <typename Number, typename IsInput>
void expect_finite_differences(FrontGradients& front, std::vector<Number>& input,
                               const std::vector<Number>& gradient, double step, double tolerance,
                               const char* name, const IsInput& is_input) {
  for (std::size_t i = 0; i < input.size(); ++i) {
    if (!is_input(i)) {
      ASSERT_TRUE(std::isnan(gradient[i])) << name << " " << i << " was written";
      continue;
    }
    const Number value = input[i];
    const auto loss_at = [&](double steps) {
      input[i] = value + static_cast<Number>(steps * step);
      return front.loss();
    };
    const double difference =
        (8 * (loss_at(1) - loss_at(-1)) - (loss_at(2) - loss_at(-2))) / (12 * step);
    input[i] = value;
    ASSERT_NEAR(static_cast<double>(gradient[i]), difference, tolerance) << name << " " << i;
  }
}

void expect_gradients(FrontGradients front) {
  front.fill(11);
  front.run();
  const auto all = [](std::size_t) { return true; };
  // The error of the difference is step^4 / 30 times the fifth derivative, up to about 1e4 after a
  // norm, and the rounding of the loss divided by the step, 1e-12.
  constexpr double kStep = 1e-3, kTolerance = 1e-8;
  expect_finite_differences(front, front.x, front.grad_x, kStep, kTolerance, "x",
                            [&](std::size_t i) { return front.reads_column(i); });
  expect_finite_differences(front, front.weight, front.grad_weight, kStep, kTolerance, "weight",
                            all);
  if (front.with_bias) {
    expect_finite_differences(front, front.bias, front.grad_bias, kStep, kTolerance, "bias", all);
  }
  if (!front.with_gates) return;
  // Gates are f32, below 8 here: roundings of 2^-22 in each, divided by the step.
  constexpr double kGateStep = 0x1p-5, kGateTolerance = 5e-5;
  expect_finite_differences(front, front.a, front.grad_a, kGateStep, kGateTolerance, "a",
                            [&](std::size_t i) { return front.is_gate_column(i, true); });
  expect_finite_differences(front, front.b, front.grad_b, kGateStep, kGateTolerance, "b",
                            [&](std::size_t i) { return front.is_gate_column(i, false); });
  expect_finite_differences(front, front.a_log, front.grad_a_log, kGateStep, kGateTolerance,
                            "a_log", all);
  expect_finite_differences(front, front.dt_bias, front.grad_dt_bias, kGateStep, kGateTolerance,
                            "dt_bias", all);
}

TEST(GroupedBackward, EveryGradientIsThatOfFiniteDifferences) {
  for (const bool is_interleaved : {false, true}) {
    for (const Activation activation : {Activation::kNone, Activation::kSilu}) {
      FrontGradients front = FrontGradients::ragged();
      front.is_interleaved = is_interleaved;
      front.activation = activation;
      expect_gradients(front);
      front.decay = DecayForm::kExp;
      front.beta_factor = 2;
      front.with_bias = false;
      front.width = 2;
      front.scale = -1.5f;
      expect_gradients(front);
    }
  }
}

TEST(GroupedBackward, DenseAndPackedBatches) {
  FrontGradients dense{.sequences = 3, .rows = 15};
  expect_gradients(dense);
  dense.rows = 6;  // shorter than the history
  dense.is_interleaved = true;
  expect_gradients(dense);
  FrontGradients packed{
      .sequences = 2, .seq_idx = {4, 4, 4, 4, 7, 7, -1, 0, -3, 1, 1, 1, 1, 1, 2, 2}, .rows = 16};
  expect_gradients(packed);
}

/// One group with the columns in their order, without a norm.
TEST(GroupedBackward, AGroupOfAllColumnsHasTheBitsOfACallWithoutGroups) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF64}) {
    for (const DType weight_dtype : {dtype, DType::kF32}) {
      PlainGradients plain(dtype, weight_dtype);
      const Status without = backward(plain.args(plain.without_groups));
      ASSERT_TRUE(without.ok()) << without.message();
      const ChannelGroup group{
          .out = plain.rows(plain.grad_out, {PlainGradients::kRows, 2, PlainGradients::kHalf}),
          .input = {}};
      GroupedBackwardArgs args{
          .backward = plain.args(plain.with_groups), .groups = std::span(&group, 1), .gates = {}};
      args.backward.grad_out = {};
      const Status with = backward_groups(args);
      ASSERT_TRUE(with.ok()) << with.message();
      EXPECT_EQ(plain.with_groups, plain.without_groups);
    }
  }
}

TEST(GroupedBackward, RowsWithoutASequenceReachNothing) {
  for (const bool by_seq_idx : {false, true}) {
    FrontGradients front{.rows = 8};
    if (by_seq_idx) {
      front.seq_idx = {-1, -1, 5, 5, 5, -2, 6, 6};
    } else {
      front.bounds = {2, 5, 5, 7};
    }
    front.fill(3);
    const std::vector<std::int64_t> padding =
        by_seq_idx ? std::vector<std::int64_t>{0, 1, 5} : std::vector<std::int64_t>{0, 1, 7};
    for (const std::int64_t row : padding) front.poison_row(row);
    front.run();
    const auto expect_zeros = [&](const Numbers& gradient, auto&& is_written) {
      const std::size_t columns = gradient.size() / 8;
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        if (!is_written(i)) continue;
        const auto row = static_cast<std::int64_t>(i / columns);
        const bool is_padding = std::find(padding.begin(), padding.end(), row) != padding.end();
        EXPECT_FALSE(std::isnan(gradient[i]));
        if (is_padding) {
          EXPECT_EQ(gradient[i], 0);
        }
      }
    };
    expect_zeros(front.grad_x, [&](std::size_t i) { return front.reads_column(i); });
    expect_zeros(front.grad_a, [&](std::size_t i) { return front.is_gate_column(i, true); });
    expect_zeros(front.grad_b, [&](std::size_t i) { return front.is_gate_column(i, false); });
    for (const Numbers* sums : {&front.grad_weight, &front.grad_bias, &front.grad_dt_bias}) {
      for (const double sum : *sums) EXPECT_FALSE(std::isnan(sum));
    }
    for (const float sum : front.grad_a_log) EXPECT_FALSE(std::isnan(sum));
  }
}

TEST(GroupedBackward, WithoutTokensSumsAreZero) {
  FrontGradients front{.bounds = {0, 0, 0}, .rows = 0};
  front.fill(9);
  front.run();
  EXPECT_EQ(front.grad_weight, Numbers(front.weight.size(), 0.0));
  EXPECT_EQ(front.grad_bias, Numbers(front.bias.size(), 0.0));
  EXPECT_EQ(front.grad_a_log, std::vector<float>(front.a_log.size(), 0.0f));
  EXPECT_EQ(front.grad_dt_bias, Numbers(front.dt_bias.size(), 0.0));
}

/// Gradients of gates are written, whatever `accumulate` says.
TEST(GroupedBackward, AccumulateAddsToWeightAndBias) {
  FrontGradients front = FrontGradients::ragged();
  front.fill(13);
  front.run();
  const Numbers dt_bias = front.grad_dt_bias;
  std::vector<float> weight(front.weight.size(), 10.0f), bias(front.bias.size(), 20.0f);
  GroupedBackwardArgs args = front.args();
  args.backward.grad_weight =
      TensorRef::contiguous(weight.data(), DType::kF32, {front.channels(), front.width});
  args.backward.grad_bias = TensorRef::contiguous(bias.data(), DType::kF32, {front.channels()});
  args.backward.accumulate = true;
  for (int repetition = 1; repetition <= 2; ++repetition) {
    const Status status = backward_groups(args);
    ASSERT_TRUE(status.ok()) << status.message();
    for (std::size_t i = 0; i < weight.size(); ++i) {
      EXPECT_NEAR(weight[i], 10 + repetition * front.grad_weight[i], 1e-5);
    }
    for (std::size_t i = 0; i < bias.size(); ++i) {
      EXPECT_NEAR(bias[i], 20 + repetition * front.grad_bias[i], 1e-5);
    }
    EXPECT_EQ(front.grad_dt_bias, dt_bias);
  }
}

TEST(GroupedBackward, PlansRunOnOtherAddresses) {
  FrontGradients front = FrontGradients::ragged();
  front.fill(17);
  GroupedBackwardProblem problem;
  GroupedBackwardPlan plan;
  ASSERT_TRUE(make_problem(front.args(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  EXPECT_EQ(workspace_bytes(plan), 0);
  EXPECT_EQ(to_string(plan), "reference: fp64");
  FrontGradients other = front;
  front.run();
  ASSERT_TRUE(run(plan, pointers(other.args())).ok());
  for (Numbers FrontGradients::* gradient :
       {&FrontGradients::grad_weight, &FrontGradients::grad_bias, &FrontGradients::grad_dt_bias}) {
    EXPECT_EQ(other.*gradient, front.*gradient);
  }
  GroupedBackwardPointers without = pointers(other.args());
  without.groups[1] = nullptr;
  EXPECT_EQ(run(plan, without).message(), "groups[1].grad_out: is null, but the plan has it");
  without = pointers(other.args());
  without.gates.grad_a_log = nullptr;
  EXPECT_EQ(run(plan, without).message(), "grad_a_log: is null, but the plan has it");
  EXPECT_EQ(run(GroupedBackwardPlan(), without).message(), "plan: was not made by make_plan");
}

}  // namespace
}  // namespace shortconv
