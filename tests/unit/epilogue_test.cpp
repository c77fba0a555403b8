// What may stand around the convolution, one rule per test, on both backends.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "../common/epilogue_case.hpp"
#include "call.hpp"
#include "shortconv/capability.hpp"

namespace shortconv {
namespace {

class Epilogues : public testing::TestWithParam<BackendId> {
 protected:
  Call make(std::vector<std::int32_t> bounds, std::int64_t rows = -1) {
    Call call(std::move(bounds), rows);
    call.args.options.backend = GetParam();
    call.args.options.threads = 1;
    return call;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Epilogues,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

TEST_P(Epilogues, ResidualAddsTheTokensOwnInputAfterTheActivation) {
  Call plain = make({0, 2, 7});
  plain.args.epilogue.activation = Activation::kSilu;
  plain.flags = {1, 0};
  Call call = plain;
  call.args.epilogue.residual = true;
  plain.run();
  call.run();
  for (std::size_t i = 0; i < call.out.size(); ++i) {
    EXPECT_FLOAT_EQ(call.out[i], plain.out[i] + call.x[i]) << i;
  }
  EXPECT_EQ(call.state, plain.state);
}

// The reference finishes in fp64, so its results are not its plain fp32 ones finished.
TEST(EpiloguesOnCpu, EqualPlainCallsThatAreFinishedByHand) {
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    test::HostMemory host(BackendId::kCpu, seed % 16 == 0 ? 0 : 1);
    test::EpilogueCase one(host.memory(), seed);
    one.check();
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

// The call with x * gate made by the caller beforehand.
TEST_P(Epilogues, AnInputGateMakesTheInputsAndTheState) {
  Call plain = make({0, 2, 7, 8});
  plain.flags = {1, 0, 1};
  Call call = plain;
  std::vector<float> gate(call.x.size());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    gate[i] = 0.1f * static_cast<float>(i % 7) - 0.3f;
    plain.x[i] = call.x[i] * gate[i];
  }
  call.args.input_gate = TensorRef::contiguous(gate.data(), DType::kF32, {8, 3});
  plain.run();
  call.run();
  EXPECT_EQ(call.out, plain.out);
  EXPECT_EQ(call.state, plain.state);
}

TEST_P(Epilogues, AnOutputGateMultipliesAfterTheActivation) {
  Call plain = make({0, 2, 7});
  plain.args.epilogue.activation = Activation::kSilu;
  Call call = plain;
  std::vector<float> gate(call.x.size());
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = 0.25f * static_cast<float>(i % 9) - 1.0f;
  call.args.epilogue.output_gate = TensorRef::contiguous(gate.data(), DType::kF32, {7, 3});
  plain.run();
  call.run();
  for (std::size_t i = 0; i < call.out.size(); ++i) {
    EXPECT_FLOAT_EQ(call.out[i], plain.out[i] * gate[i]) << i;
  }
  EXPECT_EQ(call.state, plain.state);
}

// 1 + 2^-7 squared is 1 + 2^-6 + 2^-14: the last term is lost before the taps see it.
TEST_P(Epilogues, AProductIsRoundedToTheTypeOfXOnce) {
  for (const std::int64_t channels : {1, 40}) {
    const std::uint16_t above_one = bf16_from_f32(1.0f + 0x1p-7f);
    std::vector<std::uint16_t> x(static_cast<std::size_t>(5 * channels), above_one), gate = x;
    std::vector<float> out(x.size()), weight(static_cast<std::size_t>(channels * 2), 1.0f);
    std::vector<float> state(static_cast<std::size_t>(channels));
    ForwardArgs args;
    args.options.backend = GetParam();
    args.options.threads = 1;
    args.x = TensorRef::contiguous(x.data(), DType::kBF16, {5, channels});
    args.input_gate = TensorRef::contiguous(gate.data(), DType::kBF16, {5, channels});
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {5, channels});
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {channels, 2});
    args.pool.state = TensorRef::contiguous(state.data(), DType::kF32, {1, 1, channels});
    ASSERT_TRUE(forward(args).ok());
    for (std::int64_t c = 0; c < channels; ++c) {
      EXPECT_EQ(out[c], 1.0f + 0x1p-6f);
      EXPECT_EQ(out[4 * channels + c], 2.0f + 0x1p-5f);
      EXPECT_EQ(state[c], 1.0f + 0x1p-6f);
    }
  }
}

TEST_P(Epilogues, GatesMayBeColumnsOfTheBufferThatHoldsX) {
  constexpr std::int64_t kTokens = 9, kChannels = 40;
  std::vector<float> packed(kTokens * 3 * kChannels), weight(kChannels * 3, 0.5f);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    packed[i] = 0.01f * static_cast<float>(i % 211) - 1.0f;
  }
  std::vector<float> before = packed, out(kTokens * kChannels);
  const auto columns = [&](std::int64_t first) {
    TensorRef slice =
        TensorRef::contiguous(packed.data() + first, DType::kF32, {kTokens, kChannels});
    slice.strides[0] = 3 * kChannels;
    return slice;
  };
  ForwardArgs args;
  args.options.backend = GetParam();
  args.options.threads = 1;
  args.input_gate = columns(0);
  args.epilogue.output_gate = columns(kChannels);
  args.x = columns(2 * kChannels);
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {kTokens, kChannels});
  args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {kChannels, 3});
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(packed, before);
  args.out = args.x;  // in place, between its gates
  ASSERT_TRUE(forward(args).ok());
  for (std::int64_t row = 0; row < kTokens; ++row) {
    for (std::int64_t column = 0; column < 3 * kChannels; ++column) {
      const std::int64_t at = row * 3 * kChannels + column;
      EXPECT_EQ(packed[at], column < 2 * kChannels ? before[at]
                                                   : out[row * kChannels + column - 2 * kChannels]);
    }
  }
}

TEST_P(Epilogues, NanAndInfinityOfGatesStayInTheirSequenceAndChannel) {
  Call call = make({0, 5, 10});
  std::vector<float> in(call.x.size(), 0.5f), out(call.x.size(), 2.0f);
  in[1 * 3 + 1] = std::numeric_limits<float>::quiet_NaN();
  out[3 * 3 + 2] = std::numeric_limits<float>::infinity();
  call.args.epilogue.activation = Activation::kSilu;
  call.args.input_gate = TensorRef::contiguous(in.data(), DType::kF32, {10, 3});
  call.args.epilogue.output_gate = TensorRef::contiguous(out.data(), DType::kF32, {10, 3});
  call.run();
  for (std::int64_t row = 0; row < 10; ++row) {
    EXPECT_TRUE(std::isfinite(call.out_at(row, 0))) << row;
    EXPECT_EQ(std::isnan(call.out_at(row, 1)), row >= 1 && row <= 4) << row;
    EXPECT_EQ(std::isinf(call.out_at(row, 2)), row == 3) << row;
  }
}

// A window after a draft token is what the state would be: gated inputs.
TEST_P(Epilogues, IntermediateStatesOfDraftsHoldGatedInputs) {
  Call call = make({0, 3});
  call.args.op = Op::kVerify;
  std::vector<float> gate(call.x.size(), 0.5f), windows(3 * 3 * 3, kPoison);
  call.args.input_gate = TensorRef::contiguous(gate.data(), DType::kF32, {3, 3});
  call.args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kF32, {3, 3, 3});
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(windows[c], call.state_at(0, 1, c));  // after the first token
    EXPECT_EQ(windows[6 + c], 0.5f * call.x_at(0, c));
    EXPECT_EQ(windows[18 + c], 0.5f * call.x_at(0, c));  // after the third
    EXPECT_EQ(windows[24 + c], 0.5f * call.x_at(2, c));
  }
}

TEST_P(Epilogues, PaddedRowsGetNeitherGateNorResidual) {
  for (const auto& [policy, policy_name] : capabilities().padded_rows) {
    for (const bool gated : {false, true}) {
      Call call = make({1, 3, 5}, 6);
      call.read_slots = {-1, 2};
      call.args.sequences.padded_rows = policy;
      std::vector<float> gate(call.x.size(), 3.0f);
      if (gated) {
        call.args.input_gate = TensorRef::contiguous(gate.data(), DType::kF32, {6, 3});
        call.args.epilogue.output_gate = call.args.input_gate;
      }
      call.args.epilogue.residual = !gated;
      call.run();
      for (const std::int64_t row : {0, 1, 2, 5}) {
        const float wanted = policy == PaddedRows::kZero        ? 0.0f
                             : policy == PaddedRows::kUntouched ? kPoison
                                                                : call.x_at(row, 1);
        EXPECT_EQ(call.out_at(row, 1), wanted) << policy_name << ", row " << row;
      }
    }
  }
}

// The call with the products made beforehand, with a pool of rings or of ordered states.
TEST_P(Epilogues, SnapshotsAndCircularBuffersHoldGatedInputs) {
  for (const bool ring : {false, true}) {
    for (const std::int32_t dilation : {1, 2}) {
      Call plain = make({0, 2, 13});
      plain.columns = 8;
      plain.slots = 6;
      plain.resize(13);
      plain.flags = {1, 1};
      plain.args.dilation = dilation;
      std::vector<std::int32_t> positions = {21, 3};
      std::vector<std::int32_t> snapshots = {0, 1, 2, 1, 4, 3, 1, 9, 4};
      if (ring)
        plain.args.pool.cache_seqlens = TensorRef::contiguous(positions.data(), DType::kI32, {2});
      plain.args.pool.snapshots = TensorRef::contiguous(snapshots.data(), DType::kI32, {3, 3});
      Call call = plain;
      std::vector<float> gate(call.x.size());
      for (std::size_t i = 0; i < gate.size(); ++i) {
        gate[i] = 0.1f * static_cast<float>(i % 7) - 0.3f;
        plain.x[i] = call.x[i] * gate[i];
      }
      call.args.input_gate = TensorRef::contiguous(gate.data(), DType::kF32, {13, 3});
      plain.run();
      call.run();
      EXPECT_EQ(call.out, plain.out);
      EXPECT_EQ(call.state, plain.state);
      // Input number 8 of sequence 1 is the newest of its last snapshot.
      const std::int64_t newest = ring ? (3 + 8) % 8 : 3 * dilation - 1;
      EXPECT_EQ(call.state_at(4, newest, 0), plain.x_at(2 + 8, 0)) << ring << " " << dilation;
      const std::int64_t oldest = ring ? (3 + 9 - 3 * dilation) % 8 : 0;
      EXPECT_EQ(call.state_at(4, oldest, 0), plain.x_at(2 + 9 - 3 * dilation, 0));
    }
  }
}

// Two taps, the older one three tokens back: the history is three inputs.
TEST_P(Epilogues, ADilatedTapReachesFurtherBack) {
  Call call = make({0, 2, 7});
  call.width = 2;
  call.resize(7);
  call.weight = {1, 10, 1, 10, 1, 10};
  call.flags = {1, 0};
  call.args.dilation = 3;
  Call old = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(call.out_at(0, c), old.state_at(0, 0, c) + 10 * call.x_at(0, c));
    EXPECT_EQ(call.out_at(1, c), old.state_at(0, 1, c) + 10 * call.x_at(1, c));
    EXPECT_EQ(call.out_at(2, c), 10 * call.x_at(2, c));
    EXPECT_EQ(call.out_at(5, c), call.x_at(2, c) + 10 * call.x_at(5, c));
    EXPECT_EQ(call.out_at(6, c), call.x_at(3, c) + 10 * call.x_at(6, c));
    EXPECT_EQ(call.state_at(0, 0, c), old.state_at(0, 2, c));
    EXPECT_EQ(call.state_at(0, 1, c), call.x_at(0, c));
    EXPECT_EQ(call.state_at(0, 2, c), call.x_at(1, c));
    for (int k = 0; k < 3; ++k) EXPECT_EQ(call.state_at(1, k, c), call.x_at(4 + k, c));
  }
}

// No tap looks at the tokens in between, so their NaN must not come through a zero.
TEST_P(Epilogues, NanBetweenDilatedTapsIsNotSeen) {
  Call call = make({0, 12});
  call.width = 2;
  call.resize(12);
  call.args.dilation = 3;
  call.x_at(4, 1) = std::numeric_limits<float>::quiet_NaN();
  call.run();
  for (std::int64_t row = 0; row < 12; ++row) {
    EXPECT_EQ(std::isnan(call.out_at(row, 1)), row == 4 || row == 7) << row;
    EXPECT_FALSE(std::isnan(call.out_at(row, 0))) << row;
  }
}

// A valid gated call that `change` makes invalid.
template <typename Change>
void expect_refusal(Change&& change, const std::string& message) {
  Call call({0, 2, 5});
  std::vector<float> in(15, 0.5f), out(15, 0.5f);
  ForwardArgs args = call.fill();
  args.input_gate = TensorRef::contiguous(in.data(), DType::kF32, {5, 3});
  args.epilogue.output_gate = TensorRef::contiguous(out.data(), DType::kF32, {5, 3});
  ASSERT_TRUE(forward(args).ok());
  change(args);
  const std::vector<float> before = call.out, state = call.state;
  const Status status = forward(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos)
      << "got: " << status.message() << "\nexpected part: " << message;
  EXPECT_EQ(call.out, before);
  EXPECT_EQ(call.state, state);
}

TEST(EpilogueRefusal, GatesHaveTheShapeAndTypeOfX) {
  expect_refusal([](ForwardArgs& a) { a.input_gate->shape[1] = 2; },
                 "input_gate: axis 1 ('channels') is 2, but x made 'channels' = 3");
  expect_refusal([](ForwardArgs& a) { a.epilogue.output_gate->shape[0] = 4; },
                 "output_gate: axis 0 ('tokens') is 4, but x made 'tokens' = 5");
  expect_refusal([](ForwardArgs& a) { a.input_gate->ndim = 3; },
                 "input_gate: expected 2 axes [tokens, channels], got 3");
  expect_refusal([](ForwardArgs& a) { a.epilogue.output_gate->dtype = DType::kBF16; },
                 "output_gate: dtype bf16 is not supported (f32)");
  expect_refusal([](ForwardArgs& a) { a.input_gate->device = {DeviceType::kCuda, 1}; },
                 "input_gate: is on device 2:1, but x is on 1:0");
  expect_refusal([](ForwardArgs& a) { a.epilogue.output_gate->data = nullptr; },
                 "output_gate: data is null");
}

TEST(EpilogueRefusal, AResidualGoesWithoutGates) {
  const std::string message = "residual: cannot be combined with input_gate or output_gate";
  expect_refusal([](ForwardArgs& a) { a.epilogue.residual = true, a.input_gate.reset(); }, message);
  expect_refusal([](ForwardArgs& a) { a.epilogue.residual = true, a.epilogue.output_gate.reset(); },
                 message);
}

TEST(EpilogueRefusal, WhatIsWrittenIsNotAGate) {
  expect_refusal(
      [](ForwardArgs& a) { a.input_gate = a.out; },
      "out: overlaps input_gate in part; expected separate memory, or other columns of it");
  expect_refusal(
      [](ForwardArgs& a) {
        a.epilogue.output_gate = a.out;
        a.epilogue.output_gate->data = static_cast<float*>(a.out.data) + 2;
      },
      "out: overlaps output_gate");
  expect_refusal([](ForwardArgs& a) { a.out = a.x, a.input_gate = a.x; },
                 "out: overlaps input_gate");
  expect_refusal([](ForwardArgs& a) { a.input_gate->data = a.pool.state->data; },
                 "state: overlaps input_gate");
}

TEST(EpilogueRefusal, DilationsAreAtLeastOneAndNotTooLong) {
  for (const std::int32_t dilation : {0, -1, std::numeric_limits<std::int32_t>::min()}) {
    expect_refusal([&](ForwardArgs& a) { a.dilation = dilation; },
                   "dilation: is " + std::to_string(dilation) + "; expected 1 or more");
  }
  expect_refusal([](ForwardArgs& a) { a.dilation = 22; },
                 "dilation: is 22, but with width 4 the history is 66 inputs; expected at most 63");
  expect_refusal([](ForwardArgs& a) { a.dilation = std::numeric_limits<std::int32_t>::max(); },
                 "the history is 6442450941 inputs");
  expect_refusal([](ForwardArgs& a) { a.op = Op::kVerify, a.dilation = 2; },
                 "dilation: is 2, but a verify call supports only 1");
  expect_refusal([](ForwardArgs& a) { a.dilation = 2; },
                 "state: has 3 columns, but width 4 with dilation 2 needs 6 from column 0");
}

TEST(EpilogueRefusal, RunWithoutTheGateOfThePlan) {
  Call call({0, 2, 5});
  std::vector<float> gate(15, 0.5f);
  for (const bool in : {false, true}) {
    ForwardArgs args = call.fill();
    (in ? args.input_gate : args.epilogue.output_gate) =
        TensorRef::contiguous(gate.data(), DType::kF32, {5, 3});
    Problem problem;
    Plan plan;
    ASSERT_TRUE(make_problem(args, problem).ok());
    ASSERT_TRUE(make_plan(problem, plan).ok());
    TensorPointers at = pointers(args);
    at.input_gate = at.output_gate = nullptr;
    const std::vector<float> before = call.out;
    EXPECT_EQ(run(plan, at).message(),
              std::string(in ? "input_gate" : "output_gate") + ": is null, but the plan has it");
    EXPECT_EQ(call.out, before);
  }
}

}  // namespace
}  // namespace shortconv
