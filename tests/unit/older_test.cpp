// Columns before the history that move along with it: what a slot holds afterwards, and that
// nothing else changes.
#include <gtest/gtest.h>

#include "../common/older_case.hpp"
#include "call.hpp"

namespace shortconv {
namespace {

class Older : public testing::TestWithParam<BackendId> {
 protected:
  /// Width 4: two older columns, three of the history and one that is nobody's.
  Call make(std::vector<std::int32_t> bounds) {
    Call call(std::move(bounds));
    call.columns = 6;
    call.resize(call.tokens);
    call.args.backend = GetParam();
    call.args.threads = 1;
    call.args.state_base = 2;
    call.args.keeps_older = true;
    return call;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Older, testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// As many columns of old inputs stay as the call is short of the five.
TEST_P(Older, ColumnsHoldTheNewestInputsOldestFirst) {
  for (const std::int32_t length : {1, 2, 3, 4, 5, 6, 17}) {
    Call call = make({0, length});
    call.flags = {1};
    Call plain = call;
    plain.args.keeps_older = false;
    Call old = call;
    call.run();
    plain.run();
    EXPECT_EQ(call.out, plain.out) << length;
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t column = 0; column < 5; ++column) {
        const std::int64_t number = length - 5 + column;
        const float expected = number < 0 ? old.state_at(0, 5 + number, c) : old.x_at(number, c);
        EXPECT_EQ(call.state_at(0, column, c), expected) << length << ", column " << column;
      }
      EXPECT_EQ(call.state_at(0, 5, c), old.state_at(0, 5, c)) << "behind the history";
    }
    EXPECT_TRUE(std::equal(old.state.begin() + 18, old.state.end(), call.state.begin() + 18))
        << "other slots";
  }
}

TEST_P(Older, ASequenceThatBeginsHasZerosBeforeIt) {
  Call call = make({0, 1});
  Call old = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (const int column : {0, 1, 2, 3}) EXPECT_EQ(call.state_at(0, column, c), 0.0f) << column;
    EXPECT_EQ(call.state_at(0, 4, c), old.x_at(0, c));
    EXPECT_EQ(call.state_at(0, 5, c), old.state_at(0, 5, c));
  }
}

TEST_P(Older, AnotherSlotReceivesTheOlderInputsToo) {
  Call call = make({0, 1});
  call.flags = {1};
  call.read_slots = {3};
  call.write_slots = {1};
  Call old = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (int column = 0; column < 4; ++column) {
      EXPECT_EQ(call.state_at(1, column, c), old.state_at(3, column + 1, c)) << column;
    }
    EXPECT_EQ(call.state_at(1, 4, c), old.x_at(0, c));
    EXPECT_EQ(call.state_at(1, 5, c), old.state_at(1, 5, c));
  }
  for (const int slot : {0, 2, 3}) {
    EXPECT_TRUE(std::equal(old.state.begin() + slot * 18, old.state.begin() + (slot + 1) * 18,
                           call.state.begin() + slot * 18))
        << slot;
  }
}

TEST_P(Older, SequencesWithoutTokensAndPaddingTouchNothing) {
  Call call = make({0, 0, 2, 3, 4});
  call.flags = {1, 1, 1, 1};
  call.read_slots = {0, -1, 1, 2};
  call.write_slots = {0, 3, -1, 3};
  call.args.null_slot = 2;
  Call old = call;
  call.run();
  EXPECT_EQ(call.state, old.state);
  EXPECT_EQ(call.out_at(0, 0), 0.0f);
  EXPECT_NE(call.out_at(2, 0), 0.0f) << "its state is dropped, its result is not";
}

TEST_P(Older, ChunksAndTokensOneByOneLeaveTheSameColumns) {
  Call whole = make({0, 9});
  whole.flags = {1};
  Call old = whole;
  whole.run();
  for (const std::int64_t step : {1, 2, 4}) {
    std::vector<float> state = old.state;
    for (std::int64_t begin = 0; begin < 9; begin += step) {
      const std::int64_t tokens = std::min<std::int64_t>(step, 9 - begin);
      Call part = make({0, static_cast<std::int32_t>(tokens)});
      part.flags = {1};
      part.weight = old.weight;
      part.state = state;
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < 3; ++c) part.x_at(t, c) = old.x_at(begin + t, c);
      }
      part.run();
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < 3; ++c) {
          EXPECT_EQ(part.out_at(t, c), whole.out_at(begin + t, c));
        }
      }
      state = part.state;
    }
    EXPECT_EQ(state, whole.state) << "in steps of " << step;
  }
}

TEST_P(Older, RandomCallsAreThoseWithoutIt) {
  const std::uint32_t seeds = GetParam() == BackendId::kCpu ? 1500 : 400;
  for (std::uint32_t seed = 0; seed < seeds; ++seed) {
    test::HostMemory host(GetParam(), seed % 32 == 0 ? 0 : 1);
    test::OlderCase(host.memory(), test::OlderCase::random_shape(seed), seed).check();
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST_P(Older, DecodesOfOneOlderColumn) {
  std::uint32_t seed = 0;
  constexpr std::int64_t kChannels = 520;  // more than a block of threads takes
  test::for_each_decode_of_one_older_column(5, kChannels, [&](const test::OlderShape& shape) {
    test::HostMemory host(GetParam(), 1);
    test::OlderCase(host.memory(), shape, seed++).check();
  });
  EXPECT_GT(seed, 0u);
}

TEST(OlderProblem, WithoutColumnsBeforeTheHistoryItIsTheOrdinaryCall) {
  Call call({0, 2, 5});
  Problem plain, older, wide;
  ASSERT_TRUE(make_problem(call.fill(), plain).ok());
  call.args.keeps_older = true;
  ASSERT_TRUE(make_problem(call.fill(), older).ok());
  EXPECT_EQ(plain, older);
  call.columns = 5;
  call.args.state_base = 2;
  call.resize(5);
  ASSERT_TRUE(make_problem(call.fill(), wide).ok());
  EXPECT_EQ(wide.older_columns, 2);
  EXPECT_NE(to_string(wide).find("older_columns=2"), std::string::npos) << to_string(wide);
  call.args.keeps_older = false;
  ASSERT_TRUE(make_problem(call.fill(), plain).ok());
  EXPECT_NE(wide, plain);
  EXPECT_NE(hash(wide), hash(plain));
}

// A valid call that `change` makes invalid.
template <typename Change>
std::string message_of(Change&& change) {
  Call call({0, 2, 5});
  call.columns = 5;
  call.resize(5);
  call.args.state_base = 2;
  call.args.keeps_older = true;
  EXPECT_TRUE(forward(call.fill()).ok());
  std::vector<std::int32_t> numbers = {0, 1, 0, 0, 0, 0};
  const auto tensor = [&](std::initializer_list<std::int64_t> shape) {
    return TensorRef::contiguous(numbers.data(), DType::kI32, shape);
  };
  change(call.args, tensor);
  const std::vector<float> out = call.out, state = call.state;
  const Status status = forward(call.args);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(call.out, out);
  EXPECT_EQ(call.state, state);
  return status.message();
}

TEST(OlderRefusal, WhatItDoesNotGoWith) {
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&&) { a.state.reset(), a.state_base = 0; }),
            "state: is absent, but keeps_older is about its columns");
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&&) { a.op = Op::kVerify; }),
            "keeps_older: goes with forward and decode; expected false in a verify call");
  for (const std::int64_t base : {0, 2}) {
    EXPECT_EQ(message_of([&](ForwardArgs& a, auto&& tensor) {
                a.state_base = base;
                a.read_offsets = tensor({2});
              }),
              "keeps_older: does not go with read_offsets: all histories begin at state_base");
  }
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&& tensor) {
              a.state_base = 0;
              a.ring_positions = tensor({2});
            }),
            "keeps_older: does not go with ring_positions: all columns of a ring hold inputs");
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&& tensor) { a.snapshots = tensor({2, 3}); }),
            "keeps_older: does not go with snapshots, which hold the history alone");
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&&) {
              a.schedule = Schedule::kSequenceGrid;
              a.longest_sequence = 3;
            }),
            "schedule: is not flat, the only one that has keeps_older");
}

}  // namespace
}  // namespace shortconv
