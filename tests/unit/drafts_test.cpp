// Verify: what it refuses, and random drafts on the CPU. The reference backend is held to the same
// check by the same seeds.
#include <gtest/gtest.h>

#include "../common/draft_case.hpp"
#include "call.hpp"

namespace shortconv {
namespace {

class Drafts : public testing::TestWithParam<BackendId> {};
INSTANTIATE_TEST_SUITE_P(Backends, Drafts, testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

TEST_P(Drafts, EqualForwardCallsOverTheirLinesOfAncestors) {
  const std::uint32_t cases = GetParam() == BackendId::kCpu ? 400 : 60;
  for (std::uint32_t seed = 0; seed < cases; ++seed) {
    test::HostMemory host(GetParam(), seed % 16 == 0 ? 0 : 1);
    test::DraftCase one(host.memory(), seed);
    one.check();
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
  }
}

Call drafts_call(std::vector<std::int32_t> bounds) {
  Call call(std::move(bounds));
  call.args.op = Op::kVerify;
  return call;
}

TEST(DraftsRefusal, NeedsAState) {
  Call call = drafts_call({0, 3});
  call.state.clear();
  EXPECT_EQ(call.refusal(), "state: is absent, but sequences are to continue from it");
}

TEST(DraftsRefusal, FieldsOfVerifyGoWithVerify) {
  Call call = drafts_call({0, 3});
  call.args.op = Op::kForward;
  call.args.advance_state = true;
  EXPECT_EQ(call.refusal(), "op: is not verify, but parents, windows or advance_state are given");
}

TEST(DraftsRefusal, ATreeHasNoFinalState) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> parents = {-1, 0, 0};
  call.args.parents = TensorRef::contiguous(parents.data(), DType::kI32, {3});
  call.write_slots = {0};
  EXPECT_EQ(call.refusal(),
            "parents: make a tree, which has no final state; expected neither write_slots nor "
            "advance_state");
}

TEST(DraftsRefusal, ParentsHaveTheShapeOfTokens) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> parents = {-1, 0, 0, 0};
  call.args.parents = TensorRef::contiguous(parents.data(), DType::kI32, {4});
  EXPECT_EQ(call.refusal(), "parents: axis 0 ('tokens') is 4, but x made 'tokens' = 3");
}

TEST(DraftsRefusal, WindowsAreInTheStatesTypeAndShape) {
  Call call = drafts_call({0, 3});
  std::vector<float> windows(3 * 3 * 3, kPoison);
  call.args.windows = TensorRef::contiguous(windows.data(), DType::kBF16, {3, 3, 3});
  EXPECT_EQ(call.refusal(), "windows: dtype bf16 is not supported (f32)");
  call.args.windows = TensorRef::contiguous(windows.data(), DType::kF32, {3, 2, 3});
  EXPECT_EQ(call.refusal(), "windows: axis 1 ('width - 1') is 2, but weight made 'width - 1' = 3");
  EXPECT_EQ(windows, std::vector<float>(27, kPoison));
}

TEST(DraftsRefusal, WindowsOfATreeOrOfPackedRowsCannotOverlap) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> parents = {-1, 0, 0};
  std::vector<float> windows(27, kPoison);
  call.args.parents = TensorRef::contiguous(parents.data(), DType::kI32, {3});
  call.args.windows = TensorRef::contiguous(windows.data(), DType::kF32, {3, 3, 3});
  call.args.windows->strides[0] = 3;
  EXPECT_EQ(call.refusal(),
            "windows: overlap, which takes chains and x [sequences, tokens, channels]");
}

TEST(DraftsRefusal, WorkingInPlace) {
  Call call = drafts_call({0, 3});
  call.fill();
  call.args.out = call.args.x;
  const Status status = forward(call.args);
  EXPECT_EQ(status.message(), "out: is x itself, which verify cannot do: windows are taken from x");
}

TEST(DraftsRefusal, OtherSchedules) {
  Call call = drafts_call({0, 3});
  call.args.schedule = Schedule::kSequenceGrid;
  EXPECT_EQ(call.refusal(), "schedule: is not flat, the only one that verify has");
}

TEST_P(Drafts, LeaveStatesAloneUnlessToldOtherwise) {
  Call call = drafts_call({0, 2, 4});
  call.args.backend = GetParam();
  const std::vector<float> before = (call.fill(), call.state);
  call.run();
  EXPECT_EQ(call.state, before);
  call.write_slots = {3, -1};  // one is accepted as a whole, one is not
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(call.state_at(3, 1, c), call.x_at(0, c));
    EXPECT_EQ(call.state_at(3, 2, c), call.x_at(1, c));
  }
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + 27, call.state.begin()));
}

}  // namespace
}  // namespace shortconv
