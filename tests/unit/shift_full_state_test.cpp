// shift_full_state: the contents of a slot after the call. Nothing else may change.
#include <gtest/gtest.h>

#include "../common/shift_full_state_case.hpp"
#include "call.hpp"

namespace shortconv {
namespace {

class ShiftFullState : public testing::TestWithParam<BackendId> {
 protected:
  /// Width 4 and six columns: two before the history, three of the history, one after it.
  Call make(std::vector<std::int32_t> bounds) {
    Call call(std::move(bounds));
    call.columns = 6;
    call.resize(call.tokens);
    call.args.options.backend = GetParam();
    call.args.options.threads = 1;
    call.args.pool.base_column = 2;
    call.args.pool.shift_full_state = true;
    return call;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, ShiftFullState,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// A call with fewer tokens than the five columns leaves the newest old inputs in the others.
TEST_P(ShiftFullState, ColumnsHoldTheNewestInputsOldestFirst) {
  for (const std::int32_t length : {1, 2, 3, 4, 5, 6, 17}) {
    Call call = make({0, length});
    call.flags = {1};
    Call plain = call;
    plain.args.pool.shift_full_state = false;
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

TEST_P(ShiftFullState, ANewSequenceHasZerosBeforeItsTokens) {
  Call call = make({0, 1});
  Call old = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (const int column : {0, 1, 2, 3}) EXPECT_EQ(call.state_at(0, column, c), 0.0f) << column;
    EXPECT_EQ(call.state_at(0, 4, c), old.x_at(0, c));
    EXPECT_EQ(call.state_at(0, 5, c), old.state_at(0, 5, c));
  }
}

TEST_P(ShiftFullState, TheWrittenSlotReceivesTheShiftedColumns) {
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

TEST_P(ShiftFullState, SequencesWithoutTokensAndPaddingTouchNothing) {
  Call call = make({0, 0, 2, 3, 4});
  call.flags = {1, 1, 1, 1};
  call.read_slots = {0, -1, 1, 2};
  call.write_slots = {0, 3, -1, 3};
  call.args.pool.null_slot = 2;
  Call old = call;
  call.run();
  EXPECT_EQ(call.state, old.state);
  EXPECT_EQ(call.out_at(0, 0), 0.0f);
  EXPECT_NE(call.out_at(2, 0), 0.0f) << "its state is dropped, its result is not";
}

TEST_P(ShiftFullState, ChunksAndSingleTokensLeaveTheSameColumns) {
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

TEST_P(ShiftFullState, RandomCallsEqualThoseWithoutIt) {
  const std::uint32_t seeds = GetParam() == BackendId::kCpu ? 1500 : 400;
  for (std::uint32_t seed = 0; seed < seeds; ++seed) {
    test::HostMemory host(GetParam(), seed % 32 == 0 ? 0 : 1);
    test::ShiftFullStateCase(host.memory(), test::ShiftFullStateCase::random_shape(seed), seed)
        .check();
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST_P(ShiftFullState, DecodesWithOneShiftedColumn) {
  std::uint32_t seed = 0;
  constexpr std::int64_t kChannels = 520;  // more than one block of threads processes
  test::for_each_decode_with_one_shifted_column(
      5, kChannels, [&](const test::ShiftFullStateShape& shape) {
        test::HostMemory host(GetParam(), 1);
        test::ShiftFullStateCase(host.memory(), shape, seed++).check();
      });
  EXPECT_GT(seed, 0u);
}

TEST(ShiftFullStateProblem, WithoutColumnsBeforeTheHistoryItChangesNothing) {
  Call call({0, 2, 5});
  Problem plain, shifting, wide;
  ASSERT_TRUE(make_problem(call.fill(), plain).ok());
  call.args.pool.shift_full_state = true;
  ASSERT_TRUE(make_problem(call.fill(), shifting).ok());
  EXPECT_EQ(plain, shifting);
  call.columns = 5;
  call.args.pool.base_column = 2;
  call.resize(5);
  ASSERT_TRUE(make_problem(call.fill(), wide).ok());
  EXPECT_EQ(wide.shifted_columns, 2);
  EXPECT_NE(to_string(wide).find("shifted_columns=2"), std::string::npos) << to_string(wide);
  call.args.pool.shift_full_state = false;
  ASSERT_TRUE(make_problem(call.fill(), plain).ok());
  EXPECT_NE(wide, plain);
  EXPECT_NE(hash(wide), hash(plain));
}

// The message of a valid call that `change` makes invalid.
template <typename Change>
std::string message_of(Change&& change) {
  Call call({0, 2, 5});
  call.columns = 5;
  call.resize(5);
  call.args.pool.base_column = 2;
  call.args.pool.shift_full_state = true;
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

TEST(ShiftFullStateRefusal, ArgumentsThatCannotBeCombinedWithIt) {
  EXPECT_EQ(
      message_of([](ForwardArgs& a, auto&&) { a.pool.state.reset(), a.pool.base_column = 0; }),
      "state: is absent, but shift_full_state needs it");
  EXPECT_EQ(
      message_of([](ForwardArgs& a, auto&&) { a.op = Op::kVerify; }),
      "shift_full_state: is supported by forward and decode; expected false in a verify call");
  for (const std::int64_t base : {0, 2}) {
    EXPECT_EQ(message_of([&](ForwardArgs& a, auto&& tensor) {
                a.pool.base_column = base;
                a.pool.read_offsets = tensor({2});
              }),
              "shift_full_state: cannot be combined with read_offsets: all histories begin at "
              "base_column");
  }
  EXPECT_EQ(
      message_of([](ForwardArgs& a, auto&& tensor) {
        a.pool.base_column = 0;
        a.pool.cache_seqlens = tensor({2});
      }),
      "shift_full_state: cannot be combined with cache_seqlens: a circular buffer shifts nothing");
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&& tensor) { a.pool.snapshots = tensor({2, 3}); }),
            "shift_full_state: cannot be combined with snapshots, which hold the history alone");
  EXPECT_EQ(message_of([](ForwardArgs& a, auto&&) {
              a.options.schedule = Schedule::kSequenceGrid;
              a.options.max_seqlen = 3;
            }),
            "schedule: is sequence-grid; only flat is supported with shift_full_state");
}

}  // namespace
}  // namespace shortconv
