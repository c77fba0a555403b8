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
  EXPECT_EQ(call.refusal(), "state: is absent, but sequences continue from it");
}

TEST(DraftsRefusal, FieldsOfVerifyGoWithVerify) {
  Call call = drafts_call({0, 3});
  call.args.op = Op::kForward;
  call.args.drafts.update_state = true;
  EXPECT_EQ(call.refusal(),
            "op: is not verify, but parents, intermediate_states, intermediate_slots or "
            "update_state are given");
}

TEST(DraftsRefusal, ATreeHasNoFinalState) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> parents = {-1, 0, 0};
  call.args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {3});
  call.write_slots = {0};
  EXPECT_EQ(call.refusal(),
            "parents: make a tree, which has no final state; expected neither write_slots nor "
            "update_state");
}

TEST(DraftsRefusal, ParentsHaveTheShapeOfTokens) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> parents = {-1, 0, 0, 0};
  call.args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {4});
  EXPECT_EQ(call.refusal(), "parents: axis 0 ('tokens') is 4, but x made 'tokens' = 3");
}

TEST(DraftsRefusal, IntermediateStatesAreInTheStatesTypeAndShape) {
  Call call = drafts_call({0, 3});
  std::vector<float> windows(3 * 3 * 3, kPoison);
  call.args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kBF16, {3, 3, 3});
  EXPECT_EQ(call.refusal(), "intermediate_states: dtype bf16 is not supported (f32)");
  call.args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kF32, {3, 2, 3});
  EXPECT_EQ(call.refusal(),
            "intermediate_states: axis 1 ('width - 1') is 2, but weight made 'width - 1' = 3");
  EXPECT_EQ(windows, std::vector<float>(27, kPoison));
}

TEST(DraftsRefusal, IntermediateStatesOfATreeOrOfPackedRowsCannotOverlap) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> parents = {-1, 0, 0};
  std::vector<float> windows(27, kPoison);
  call.args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {3});
  call.args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kF32, {3, 3, 3});
  call.args.drafts.intermediate_states->strides[0] = 3;
  EXPECT_EQ(call.refusal(),
            "intermediate_states: overlap, which needs chains and x [sequences, tokens, channels] "
            "or intermediate_slots");
}

TEST(DraftsRefusal, WorkingInPlace) {
  Call call = drafts_call({0, 3});
  call.fill();
  call.args.out = call.args.x;
  const Status status = forward(call.args);
  EXPECT_EQ(
      status.message(),
      "out: is x itself, which verify does not support: intermediate states are taken from x");
}

TEST(DraftsRefusal, OtherSchedules) {
  Call call = drafts_call({0, 3});
  call.args.options.schedule = Schedule::kSequenceGrid;
  EXPECT_EQ(call.refusal(), "schedule: is sequence-grid; only flat is supported with verify");
}

/// Two sequences of 2 and 3 tokens whose windows go to slots of their own.
struct SlottedWindows {
  Call call;
  std::vector<std::int32_t> slots;
  std::vector<float> windows;

  SlottedWindows(std::vector<std::int32_t> intermediate_slots, std::int64_t tokens,
                 BackendId backend)
      : call(drafts_call({0, 2, 5})),
        slots(std::move(intermediate_slots)),
        windows(static_cast<std::size_t>(4 * tokens * 9), kPoison) {
    call.args.options.backend = backend;
    call.args.drafts.intermediate_states =
        TensorRef::contiguous(windows.data(), DType::kF32, {4, tokens, 3, call.channels});
    call.args.drafts.intermediate_slots =
        TensorRef::contiguous(slots.data(), DType::kI32, {static_cast<std::int64_t>(slots.size())});
  }
  [[nodiscard]] float at(std::int64_t slot, std::int64_t token, std::int64_t column,
                         std::int64_t c) const {
    const std::int64_t tokens = static_cast<std::int64_t>(windows.size()) / 36;
    return windows[((slot * tokens + token) * 3 + column) * 3 + c];
  }
};

TEST_P(Drafts, IntermediateStatesGoToSlots) {
  SlottedWindows two({3, 1}, 2, GetParam());  // a third token has no place
  Call old = two.call;
  two.call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(two.at(3, 1, 0, c), old.state_at(0, 2, c));
    EXPECT_EQ(two.at(3, 1, 2, c), old.x_at(1, c));
    EXPECT_EQ(two.at(1, 0, 1, c), old.state_at(1, 2, c));
    EXPECT_EQ(two.at(1, 1, 2, c), old.x_at(3, c));
    for (const int slot : {0, 2}) EXPECT_EQ(two.at(slot, 1, 1, c), kPoison);
  }
  EXPECT_EQ(std::count(two.windows.begin(), two.windows.end(), kPoison), 2 * 2 * 9);
}

TEST_P(Drafts, IntermediateSlotsOfPaddingCaptureNothing) {
  for (const std::int32_t slot : {-1, 2, 4, std::numeric_limits<std::int32_t>::max()}) {
    SlottedWindows one({slot, 0}, 3, GetParam());
    one.call.args.pool.null_slot = 2;
    one.call.read_slots = {0, 3};
    Call plain = one.call;
    plain.args.drafts.intermediate_states.reset();
    plain.args.drafts.intermediate_slots.reset();
    one.call.run();
    plain.run();
    EXPECT_EQ(std::count(one.windows.begin(), one.windows.end(), kPoison), 3 * 3 * 9) << slot;
    EXPECT_EQ(one.call.out, plain.out) << slot;
    EXPECT_EQ(one.call.state, plain.state) << slot;
  }
}

TEST_P(Drafts, IntermediateStatesWithoutSlotsOrTokensCaptureNothing) {
  for (const auto& [count, tokens] : {std::pair{0, 3}, {4, 0}}) {
    SlottedWindows none({0, 1}, 3, GetParam());
    none.call.args.drafts.intermediate_states =
        TensorRef::contiguous(nullptr, DType::kF32, {count, tokens, 3, 3});
    Call plain = none.call;
    plain.args.drafts.intermediate_states.reset();
    plain.args.drafts.intermediate_slots.reset();
    none.call.run();
    plain.run();
    EXPECT_EQ(none.call.out, plain.out);
    EXPECT_EQ(none.call.state, plain.state);
  }
}

// The pool's own columns as windows: after each call the state begins at the offset of the tokens
// that were accepted.
TEST_P(Drafts, IntermediateStatesInThePoolRollTheStateOn) {
  Call call = drafts_call({0, 3, 5});
  call.args.options.backend = GetParam();
  call.columns = 6;  // one unused on the left, 3 + 3 drafts - 1 for the rolling state
  call.resize(5);
  call.args.pool.base_column = 1;
  call.read_offsets = {2, 1};
  call.read_slots = {3, 1};
  Call ordered = call;
  ordered.columns = 3;
  ordered.args.pool.base_column = 0;
  ordered.read_offsets.clear();
  ordered.resize(5);
  Call old = call;
  for (std::int64_t c = 0; c < 3; ++c) {
    for (int k = 0; k < 3; ++k) {
      ordered.state_at(3, k, c) = old.state_at(3, 1 + 2 + k, c);
      ordered.state_at(1, k, c) = old.state_at(1, 1 + 1 + k, c);
    }
  }
  call.fill();
  const TensorRef& pool = *call.args.pool.state;
  call.args.drafts.intermediate_states = pool;
  call.args.drafts.intermediate_states->data = static_cast<float*>(pool.data) + pool.strides[1];
  call.args.drafts.intermediate_states->ndim = 4;
  const std::int64_t shape[] = {4, 3, 3, 3};
  const std::int64_t strides[] = {pool.strides[0], pool.strides[1], pool.strides[1],
                                  pool.strides[2]};
  std::copy(std::begin(shape), std::end(shape), call.args.drafts.intermediate_states->shape);
  std::copy(std::begin(strides), std::end(strides), call.args.drafts.intermediate_states->strides);
  call.args.drafts.intermediate_slots = call.args.pool.read_slots;
  ASSERT_EQ(forward(call.args).message(), "");
  ordered.run();
  EXPECT_EQ(call.out, ordered.out);
  std::vector<float> expected = old.state;
  const auto put = [&](std::int64_t slot, std::int64_t column, std::int64_t c, float value) {
    expected[(slot * 6 + column) * 3 + c] = value;
  };
  for (std::int64_t c = 0; c < 3; ++c) {
    put(3, 1, c, old.state_at(3, 4, c));
    put(3, 2, c, old.state_at(3, 5, c));
    for (int t = 0; t < 3; ++t) put(3, 3 + t, c, old.x_at(t, c));
    put(1, 1, c, old.state_at(1, 3, c));
    put(1, 2, c, old.state_at(1, 4, c));
    for (int t = 0; t < 2; ++t) put(1, 3 + t, c, old.x_at(3 + t, c));
  }
  EXPECT_EQ(call.state, expected);
}

TEST(DraftsRefusal, OtherIntermediateStatesInThePool) {
  constexpr auto kMessage =
      "intermediate_states: overlaps state; expected separate memory or, with intermediate_slots "
      "and without "
      "cache_seqlens, the pool's own columns from base_column on";
  const auto message_of = [](auto&& change) {
    Call call = drafts_call({0, 2, 4});
    call.columns = 5;
    call.resize(4);
    std::vector<std::int32_t> slots = {0, 1};
    call.fill();
    TensorRef& windows = call.args.drafts.intermediate_states.emplace(*call.args.pool.state);
    windows.ndim = 4;
    const std::int64_t shape[] = {4, 3, 3, 3}, strides[] = {15, 3, 3, 1};
    std::copy(std::begin(shape), std::end(shape), windows.shape);
    std::copy(std::begin(strides), std::end(strides), windows.strides);
    call.args.drafts.intermediate_slots = TensorRef::contiguous(slots.data(), DType::kI32, {2});
    change(call.args);
    return forward(call.args).message();
  };
  EXPECT_EQ(message_of([](ForwardArgs&) {}), "");
  // One token more than a slot has columns for reaches into the next slot.
  EXPECT_EQ(message_of([](ForwardArgs& args) { args.drafts.intermediate_states->shape[1] = 4; }),
            "intermediate_states: overlaps itself: with strides [15, 3, 3, 1] several elements "
            "share memory, but all are written");
  EXPECT_EQ(message_of([](ForwardArgs& args) { args.pool.base_column = 1; }), kMessage);
  EXPECT_EQ(message_of([](ForwardArgs& args) {
              args.drafts.intermediate_states->shape[0] = 3;
              args.drafts.intermediate_states->strides[0] = 18;
            }),
            kMessage);
  EXPECT_EQ(message_of([](ForwardArgs& args) {
              args.drafts.intermediate_states->data =
                  static_cast<float*>(args.drafts.intermediate_states->data) + 3;
              args.drafts.intermediate_states->shape[0] = 3;
            }),
            kMessage);
  std::vector<std::int32_t> positions = {0, 0};
  EXPECT_EQ(message_of([&](ForwardArgs& args) {
              args.pool.cache_seqlens = TensorRef::contiguous(positions.data(), DType::kI32, {2});
            }),
            kMessage);
}

// What is empty has no address in most frameworks.
TEST_P(Drafts, IntermediateStatesWithoutRoomNeedNoAddress) {
  std::vector<std::int32_t> slots = {0};
  for (const std::int64_t room : {0, 2}) {  // tokens without slots, and the reverse
    Call plain = drafts_call({0, 3}), call = drafts_call({0, 3});
    plain.args.options.backend = call.args.options.backend = GetParam();
    call.args.drafts.intermediate_states =
        TensorRef::contiguous(nullptr, DType::kF32, {room, 2 - room, 3, 3});
    call.args.drafts.intermediate_slots = TensorRef::contiguous(slots.data(), DType::kI32, {1});
    plain.run();
    call.run();
    EXPECT_EQ(call.out, plain.out);
    EXPECT_EQ(call.state, plain.state);
  }
}

TEST(DraftsRefusal, IntermediateSlotsWithoutIntermediateStates) {
  Call call = drafts_call({0, 3});
  std::vector<std::int32_t> slots = {0};
  call.args.drafts.intermediate_slots = TensorRef::contiguous(slots.data(), DType::kI32, {1});
  EXPECT_EQ(call.refusal(), "intermediate_states: is absent, but intermediate_slots address it");
  std::vector<float> windows(4 * 3 * 9);
  call.args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kF32, {4, 3, 3, 3});
  call.args.drafts.intermediate_slots->shape[0] = 2;
  EXPECT_EQ(
      call.refusal(),
      "intermediate_slots: axis 0 ('sequences') is 2, but query_start_loc made 'sequences' = 1");
  call.args.drafts.intermediate_slots->shape[0] = 1;
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  TensorPointers at = pointers(call.args);
  at.intermediate_slots = nullptr;
  EXPECT_EQ(run(plan, at).message(), "intermediate_slots: is null, but the plan has it");
  at = pointers(call.args);
  at.intermediate_states = nullptr;
  EXPECT_EQ(run(plan, at).message(), "intermediate_states: is null, but the plan has it");
}

TEST_P(Drafts, LeaveStatesAloneUnlessToldOtherwise) {
  Call call = drafts_call({0, 2, 4});
  call.args.options.backend = GetParam();
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
