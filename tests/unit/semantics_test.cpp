// One rule of the specification per test, on both backends, with values worked out by hand or by
// direct summation. Random combinations of everything are the business of `shortconv verify`.
#include <gtest/gtest.h>

#include <array>

#include "call.hpp"
#include "core/element.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv {
namespace {

class Semantics : public testing::TestWithParam<BackendId> {
 protected:
  Call make(std::vector<std::int32_t> bounds, std::int64_t rows = -1) {
    Call call(std::move(bounds), rows);
    call.args.options.backend = GetParam();
    return call;
  }

  // The convolution as the definition has it; `history` = inputs before the first token, newest
  // last.
  static float expected(Call& call, std::int64_t begin, std::int64_t row, std::int64_t c,
                        const std::vector<float>& history) {
    double a = call.bias.empty() ? 0.0 : call.bias[c];
    for (std::int64_t tap = 0; tap < call.width; ++tap) {
      const std::int64_t u = row - begin - (call.width - 1) + tap;
      const double v = u >= 0 ? call.x_at(begin + u, c) : history[history.size() + u];
      a += call.weight[c * call.width + tap] * v;
    }
    return static_cast<float>(a);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Semantics,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

TEST_P(Semantics, SequencesStartFromZeros) {
  Call call = make({0, 2, 5});
  call.bias = {1, 2, 3};
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (std::int64_t row = 0; row < 5; ++row) {
      EXPECT_FLOAT_EQ(call.out_at(row, c), expected(call, row < 2 ? 0 : 2, row, c, {0, 0, 0}));
    }
  }
}

TEST_P(Semantics, FinalStateIsTheNewestInputs) {
  Call call = make({0, 2, 7});
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(call.state_at(0, 0, c), 0.0f);  // shorter than the history: zeros on the left
    EXPECT_EQ(call.state_at(0, 1, c), call.x_at(0, c));
    EXPECT_EQ(call.state_at(0, 2, c), call.x_at(1, c));
    for (int k = 0; k < 3; ++k) EXPECT_EQ(call.state_at(1, k, c), call.x_at(4 + k, c));
    EXPECT_EQ(call.state_at(2, 0, c), 100.0f + 2 * 9 + c);  // slots of nobody
  }
}

TEST_P(Semantics, ResumedShortChunkShiftsItsHistory) {
  Call call = make({0, 1});
  call.flags = {1};
  const Call before = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    Call old = before;
    const std::vector<float> history = {old.state_at(0, 0, c), old.state_at(0, 1, c),
                                        old.state_at(0, 2, c)};
    EXPECT_FLOAT_EQ(call.out_at(0, c), expected(call, 0, 0, c, history));
    EXPECT_EQ(call.state_at(0, 0, c), history[1]);
    EXPECT_EQ(call.state_at(0, 1, c), history[2]);
    EXPECT_EQ(call.state_at(0, 2, c), call.x_at(0, c));
  }
}

TEST_P(Semantics, FlagsDecideWhoContinues) {
  Call call = make({0, 1, 2});
  call.flags = {0, 1};
  Call old = call;
  call.run();
  EXPECT_FLOAT_EQ(call.out_at(0, 0), expected(call, 0, 0, 0, {0, 0, 0}));
  EXPECT_FLOAT_EQ(call.out_at(1, 0),
                  expected(call, 1, 1, 0,
                           {old.state_at(1, 0, 0), old.state_at(1, 1, 0), old.state_at(1, 2, 0)}));
}

TEST_P(Semantics, ZeroLengthSequenceTouchesNothing) {
  Call call = make({0, 0, 2, 2, 2});
  call.flags = {0, 1, 1, 0};
  Call old = call;
  call.run();
  for (const int slot : {0, 2, 3}) {
    for (int k = 0; k < 3; ++k)
      EXPECT_EQ(call.state_at(slot, k, 1), old.state_at(slot, k, 1)) << slot;
  }
  EXPECT_EQ(call.state_at(1, 2, 1), call.x_at(1, 1));
}

TEST_P(Semantics, PaddedSequencesFollowThePolicyAndKeepTheirState) {
  for (const PaddedRows policy : {PaddedRows::kZero, PaddedRows::kUntouched, PaddedRows::kCopy}) {
    Call call = make({1, 3, 5, 6}, 8);  // rows 0, 6 and 7 belong to nobody
    call.read_slots = {-1, 2, 1};
    call.args.pool.null_slot = 1;
    call.args.sequences.padded_rows = policy;
    Call old = call;
    call.run();
    for (const std::int64_t row : {0, 1, 2, 5, 6, 7}) {
      for (std::int64_t c = 0; c < 3; ++c) {
        const float wanted = policy == PaddedRows::kZero        ? 0.0f
                             : policy == PaddedRows::kUntouched ? kPoison
                                                                : call.x_at(row, c);
        EXPECT_EQ(call.out_at(row, c), wanted) << "row " << row;
      }
    }
    EXPECT_FLOAT_EQ(call.out_at(3, 0), expected(call, 3, 3, 0, {0, 0, 0}));
    for (const int slot : {0, 1, 3}) EXPECT_EQ(call.state_at(slot, 2, 0), old.state_at(slot, 2, 0));
  }
}

TEST_P(Semantics, SlotOutOfRangeIsSkipped) {
  Call call = make({0, 1, 2});
  call.read_slots = {4, 1 << 30};
  Call old = call;
  call.run();
  EXPECT_EQ(call.state, old.state);
  EXPECT_EQ(call.out_at(0, 0), 0.0f);
}

TEST_P(Semantics, SeparateWriteSlotLeavesTheReadSlotAlone) {
  Call call = make({0, 1, 3});
  call.read_slots = {3, 3};  // a shared prefix
  call.write_slots = {0, 1};
  call.flags = {1, 1};
  Call old = call;
  call.run();
  for (int k = 0; k < 3; ++k) EXPECT_EQ(call.state_at(3, k, 2), old.state_at(3, k, 2));
  EXPECT_EQ(call.state_at(0, 0, 2), old.state_at(3, 1, 2));
  EXPECT_EQ(call.state_at(0, 1, 2), old.state_at(3, 2, 2));
  EXPECT_EQ(call.state_at(0, 2, 2), call.x_at(0, 2));
  EXPECT_EQ(call.state_at(1, 0, 2), old.state_at(3, 2, 2));
}

TEST_P(Semantics, WriteSlotNobodyOwnsDropsTheFinalState) {
  Call call = make({0, 3});
  call.read_slots = {2};
  call.write_slots = {-1};
  call.flags = {1};
  Call old = call;
  call.run();
  EXPECT_EQ(call.state, old.state);
  EXPECT_FLOAT_EQ(call.out_at(0, 0), expected(call, 0, 0, 0, {118, 121, 124}));
}

TEST_P(Semantics, ReadOffsetIsClampedToThePool) {
  for (const int offset : {-3, 0, 1, 2, 9}) {
    Call call = make({0, 1});
    call.columns = 5;
    call.resize(1);
    call.flags = {1};
    call.read_offsets = {offset};
    Call old = call;
    call.run();
    const int first = std::clamp(offset, 0, 2);
    const std::vector<float> history = {old.state_at(0, first, 0), old.state_at(0, first + 1, 0),
                                        old.state_at(0, first + 2, 0)};
    EXPECT_FLOAT_EQ(call.out_at(0, 0), expected(call, 0, 0, 0, history)) << offset;
    EXPECT_EQ(call.state_at(0, 0, 0), history[1]) << offset;
    EXPECT_EQ(call.state_at(0, 1, 0), history[2]) << offset;
    EXPECT_EQ(call.state_at(0, 2, 0), call.x_at(0, 0)) << offset;
    for (const int column : {3, 4})
      EXPECT_EQ(call.state_at(0, column, 0), old.state_at(0, column, 0));
  }
}

TEST_P(Semantics, BaseColumnNamesTheHistoryInAWiderPool) {
  Call call = make({0, 2});
  call.columns = 6;
  call.resize(2);
  call.args.pool.base_column = 3;
  call.flags = {1};
  Call old = call;
  call.run();
  EXPECT_FLOAT_EQ(call.out_at(1, 1),
                  expected(call, 0, 1, 1,
                           {old.state_at(0, 3, 1), old.state_at(0, 4, 1), old.state_at(0, 5, 1)}));
  for (int column = 0; column < 3; ++column) {
    EXPECT_EQ(call.state_at(0, column, 1), old.state_at(0, column, 1));
  }
  EXPECT_EQ(call.state_at(0, 5, 1), call.x_at(1, 1));
}

TEST_P(Semantics, DecodeContinuesEverySequence) {
  Call call = make({0, 1, 2});
  ForwardArgs args = call.fill();
  args.op = Op::kDecode;
  args.sequences.query_start_loc.reset();
  Call old = call;
  const Status status = forward(args);
  ASSERT_TRUE(status.ok()) << status.message();
  for (int s = 0; s < 2; ++s) {
    EXPECT_FLOAT_EQ(call.out_at(s, 0), expected(call, s, s, 0,
                                                {old.state_at(s, 0, 0), old.state_at(s, 1, 0),
                                                 old.state_at(s, 2, 0)}));
    EXPECT_EQ(call.state_at(s, 2, 0), call.x_at(s, 0));
  }
}

TEST_P(Semantics, NanAndInfinityStayInTheirSequenceAndChannel) {
  Call call = make({0, 4, 8});
  call.args.epilogue.activation = Activation::kSilu;
  call.x_at(3, 1) = std::numeric_limits<float>::quiet_NaN();
  call.x_at(2, 2) = std::numeric_limits<float>::infinity();
  call.run();
  for (std::int64_t row = 0; row < 8; ++row) {
    EXPECT_TRUE(std::isfinite(call.out_at(row, 0))) << row;
    EXPECT_EQ(std::isfinite(call.out_at(row, 1)), row != 3) << row;
    EXPECT_EQ(std::isfinite(call.out_at(row, 2)), row < 2 || row > 3) << row;
  }
  EXPECT_TRUE(std::isnan(call.state_at(0, 2, 1)));
}

// A NaN with all payload bits set, as poisoned memory has, must not round up into a zero.
TEST_P(Semantics, NanOfAnyPayloadStaysNanInBf16) {
  const auto poison = std::bit_cast<float>(0xffffffffu);
  constexpr std::int64_t kTokens = 12, kChannels = 40;
  for (const bool in_weight : {false, true}) {
    std::vector<float> weight(kChannels * 4, 0.5f), state(3 * kChannels, 0.25f);
    std::vector<std::uint16_t> x(kTokens * kChannels, bf16_from_f32(1.0f)), out(x.size());
    (in_weight ? weight : state)[7] = poison;  // tap 3 of channel 1, or column 0 of channel 7
    ForwardArgs args;
    args.options.backend = GetParam();
    args.x = TensorRef::contiguous(x.data(), DType::kBF16, {kTokens, kChannels});
    args.out = TensorRef::contiguous(out.data(), DType::kBF16, {kTokens, kChannels});
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {kChannels, 4});
    args.pool.state = TensorRef::contiguous(state.data(), DType::kF32, {1, 3, kChannels});
    args.sequences.initial_state = InitialState::kAll;
    ASSERT_TRUE(forward(args).ok());
    for (std::int64_t i = 0; i < kTokens * kChannels; ++i) {
      const bool hit = in_weight ? i % kChannels == 1 : i == 7;
      EXPECT_EQ(std::isnan(f32_from_bf16(out[i])), hit) << i;
    }
  }
}

TEST_P(Semantics, InPlaceGivesTheSameBits) {
  Call call = make({0, 5, 5, 6, 40}, 42);
  call.flags = {1, 0, 1, 0};
  Call in_place = call;
  call.run();
  ForwardArgs args = in_place.fill();
  args.out = args.x;
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(in_place.x, call.out);
  EXPECT_EQ(in_place.state, call.state);
}

// Bounds that decrease or leave the tensor: the result is unspecified, the memory is not.
TEST_P(Semantics, BadBoundsStayInsideTheTensors) {
  const std::vector<std::vector<std::int32_t>> bad = {
      {0, 9, 3, 8}, {-5, 2, 100, 8}, {8, 6, 4, 2}, {2147483647, -2147483647, 0, 8}, {3, 3, 3, 3}};
  for (const auto& bounds : bad) {
    Call call = make(bounds, 8);
    call.flags = {1, 1, 1};
    call.run();  // under the sanitizers a stray access ends the test
  }
}

TEST_P(Semantics, EmptyCalls) {
  Call none = make({0}, 0);
  none.run();
  Call rows_only = make({0}, 3);
  rows_only.run();
  EXPECT_EQ(rows_only.out_at(2, 2), 0.0f);
  Call empty_sequences = make({0, 0, 0}, 0);
  empty_sequences.run();
  // Dense batches without elements have zero strides in the axes outside of the empty one.
  constexpr std::int64_t kMany = std::int64_t{1} << 50;  // of nothing: must take no time
  for (const auto& shape : {std::array<std::int64_t, 3>{4, 0, 16},
                            {0, 4, 16},
                            {4, 4, 0},
                            {kMany, 0, 16},
                            {1, kMany, 0}}) {
    std::vector<float> memory(256), weight(64, 1.0f);
    ForwardArgs args;
    args.options.backend = GetParam();
    args.x = TensorRef::contiguous(memory.data(), DType::kF32, {shape[0], shape[1], shape[2]});
    args.out = TensorRef::contiguous(nullptr, DType::kF32, {shape[0], shape[1], shape[2]});
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {shape[2], 4});
    EXPECT_TRUE(forward(args).ok()) << forward(args).message();
  }
}

TEST_P(Semantics, TheThreeSchedulesAgree) {
  Call flat = make({1, 2, 11, 13, 30, 34}, 36);
  flat.flags = {1, 0, 1, 1, 0};
  flat.read_slots = {3, -1, 0, 2, 1};
  flat.args.epilogue.activation = Activation::kSilu;
  Call lists = flat, grid = flat, short_grid = flat;
  flat.run();

  BlockList list;
  ASSERT_TRUE(plan_block_list(std::vector<std::int64_t>{1, 9, 2, 17, 4}, list).ok());
  const auto blocks = static_cast<std::int64_t>(list.sequence.size());
  auto sequence = list.sequence, offset = list.offset;
  lists.args.options.schedule = Schedule::kBlockList;
  lists.args.options.block_sequence = TensorRef::contiguous(sequence.data(), DType::kI32, {blocks});
  lists.args.options.block_offset = TensorRef::contiguous(offset.data(), DType::kI32, {blocks});
  lists.run();
  EXPECT_EQ(lists.out, flat.out);
  EXPECT_EQ(lists.state, flat.state);

  grid.args.options.schedule = Schedule::kSequenceGrid;
  grid.args.options.max_seqlen = 17;
  grid.run();
  EXPECT_EQ(grid.out, flat.out);
  EXPECT_EQ(grid.state, flat.state);

  short_grid.args.options.schedule = Schedule::kSequenceGrid;
  short_grid.args.options.max_seqlen = 8;  // too small: no row may stay unwritten all the same
  short_grid.run();
  EXPECT_EQ(short_grid.out, flat.out);
}

}  // namespace
}  // namespace shortconv
