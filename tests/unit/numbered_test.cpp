// Sequences that numbers tell apart, seq_idx: values by hand, the bits of the same sequences in a
// packed batch, every refusal by its message. Random ones are cases of shortconv verify.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

class Numbered : public testing::TestWithParam<BackendId> {};
INSTANTIATE_TEST_SUITE_P(Backends, Numbered,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// y[t] = x[t] + 10 x[t-1] + 100 x[t-2]. Two rows: 5 5 | -1 | 2 2 2 and 2 | 7 | 2 7 7 7: the second
// does not go on with the first row's number, and a number that comes again is another sequence.
TEST_P(Numbered, SequencesByHand) {
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6}, out(12, 99), w = {100, 10, 1};
  std::vector<float> state = {8, 9, 6, 7};
  std::vector<std::int64_t> numbers = {5, 5, -1, 2, 2, 2, 2, 7, 2, 7, 7, 7};
  ForwardArgs args;
  args.x = TensorRef::contiguous(x.data(), DType::kF32, {2, 6, 1});
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {2, 6, 1});
  args.weight = TensorRef::contiguous(w.data(), DType::kF32, {1, 3});
  args.seq_idx = TensorRef::contiguous(numbers.data(), DType::kI64, {2, 6});
  args.backend = GetParam();
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(out, (std::vector<float>{1, 12, 0, 4, 45, 456, 1, 2, 3, 4, 45, 456}));

  // What begins a row goes on from its slot, of which nothing is written.
  args.state = TensorRef::contiguous(state.data(), DType::kF32, {2, 2, 1});
  args.initial_state = InitialState::kAll;
  args.padded_rows = PaddedRows::kCopy;
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(out, (std::vector<float>{891, 912, 3, 4, 45, 456, 671, 2, 3, 4, 45, 456}));
  EXPECT_EQ(state, (std::vector<float>{8, 9, 6, 7}));

  // One sequence of all rows, its numbers with a stride.
  args.x = TensorRef::contiguous(x.data(), DType::kF32, {6, 1});
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {6, 1});
  args.seq_idx = TensorRef::contiguous(numbers.data(), DType::kI64, {6});
  args.seq_idx->strides[0] = 2;
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(std::vector<float>(out.begin(), out.begin() + 6),
            (std::vector<float>{891, 2, 3, 34, 345, 6}));
}

// Sequences that begin and end anywhere in the tiles of a thread, against a call that is told
// where.
TEST_P(Numbered, BitsAreThoseOfAPackedBatch) {
  constexpr std::int64_t kTokens = 3000, kChannels = 40, kWidth = 4;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(kTokens * kChannels), w(kChannels * kWidth), out(x.size(), 99);
  for (float& value : x) value = normal(random);
  for (float& value : w) value = normal(random);
  for (const int longest : {1, 5, 40, 700}) {
    std::vector<std::int32_t> numbers, bounds;
    while (numbers.size() < kTokens) {
      bounds.push_back(static_cast<std::int32_t>(numbers.size()));
      const std::size_t length = 1 + random() % static_cast<unsigned>(longest);
      const auto number = static_cast<std::int32_t>(bounds.size() % 3);
      numbers.insert(numbers.end(), std::min(length, kTokens - numbers.size()), number);
    }
    bounds.push_back(kTokens);
    ForwardArgs args;
    args.x = TensorRef::contiguous(x.data(), DType::kF32, {kTokens, kChannels});
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {kTokens, kChannels});
    args.weight = TensorRef::contiguous(w.data(), DType::kF32, {kChannels, kWidth});
    args.activation = Activation::kSilu;
    args.backend = GetParam();
    args.query_start_loc = TensorRef::contiguous(bounds.data(), DType::kI32,
                                                 {static_cast<std::int64_t>(bounds.size())});
    ASSERT_TRUE(forward(args).ok());
    const std::vector<float> expected = std::exchange(out, std::vector<float>(x.size(), 99));
    args.query_start_loc.reset();
    args.seq_idx = TensorRef::contiguous(numbers.data(), DType::kI32, {kTokens});
    args.out.data = out.data();
    ASSERT_TRUE(forward(args).ok());
    EXPECT_TRUE(out == expected) << "sequences of up to " << longest;
  }
}

// A valid call with slots, of which `change` makes another one.
template <typename Change>
void expect_refusal_after(Change&& change, const std::string& message) {
  static float x[12], weight[6], state[24];
  static std::int32_t numbers[6], slots[2];
  float out[12] = {9, 9, 9};
  ForwardArgs args;
  args.x = TensorRef::contiguous(x, DType::kF32, {2, 3, 2});
  args.out = TensorRef::contiguous(out, DType::kF32, {2, 3, 2});
  args.weight = TensorRef::contiguous(weight, DType::kF32, {2, 3});
  args.state = TensorRef::contiguous(state, DType::kF32, {4, 3, 2});
  args.read_slots = TensorRef::contiguous(slots, DType::kI32, {2});
  args.seq_idx = TensorRef::contiguous(numbers, DType::kI32, {2, 3});
  Problem problem;
  ASSERT_TRUE(make_problem(args, problem).ok());
  change(args);
  const Status status = forward(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos)
      << "got: " << status.message() << "\nexpected part: " << message;
  EXPECT_EQ(out[0], 9);
}

TEST(NumberedRefusal, SizesTypesAndDevices) {
  expect_refusal_after([](ForwardArgs& a) { a.seq_idx->ndim = 1; },
                       "seq_idx: expected 2 axes [batch, tokens], got 1");
  expect_refusal_after([](ForwardArgs& a) { a.seq_idx->shape[1] = 2; },
                       "seq_idx: axis 1 ('tokens') is 2, but x made 'tokens' = 3");
  expect_refusal_after([](ForwardArgs& a) { a.seq_idx->dtype = DType::kF32; },
                       "seq_idx: dtype f32 is not supported (i32, i64)");
  expect_refusal_after([](ForwardArgs& a) { a.seq_idx->data = nullptr; }, "seq_idx: data is null");
  expect_refusal_after([](ForwardArgs& a) { a.seq_idx->device = {DeviceType::kCuda, 1}; },
                       "seq_idx: is on device 2:1, but x is on 1:0");
  expect_refusal_after([](ForwardArgs& a) { a.out.data = a.seq_idx->data; },
                       "out: overlaps seq_idx");
}

TEST(NumberedRefusal, WhatDoesNotGoWithNumbers) {
  expect_refusal_after([](ForwardArgs& a) { a.op = Op::kDecode; },
                       "seq_idx: goes with forward only");
  expect_refusal_after([](ForwardArgs& a) { a.op = Op::kVerify; },
                       "seq_idx: goes with forward only");
  expect_refusal_after([](ForwardArgs& a) { a.write_slots = a.read_slots; },
                       "seq_idx: goes without write_slots, snapshots and keeps_older");
  expect_refusal_after([](ForwardArgs& a) { a.keeps_older = true; },
                       "seq_idx: goes without write_slots, snapshots and keeps_older");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t list[3];
        a.snapshots = TensorRef::contiguous(list, DType::kI32, {1, 3});
      },
      "seq_idx: goes without write_slots, snapshots and keeps_older");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t bounds[3];
        a.query_start_loc = TensorRef::contiguous(bounds, DType::kI32, {3});
      },
      "query_start_loc: goes with x [tokens, channels]");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t bounds[3];
        for (TensorRef* rows : {&a.x, &a.out})
          *rows = TensorRef::contiguous(rows->data, DType::kF32, {6, 2});
        a.query_start_loc = TensorRef::contiguous(bounds, DType::kI32, {3});
      },
      "seq_idx: and query_start_loc exclude each other: both say where sequences begin");
  expect_refusal_after([](ForwardArgs& a) { a.schedule = Schedule::kSequenceGrid; },
                       "schedule: is not flat, the only one that takes seq_idx");
  expect_refusal_after([](ForwardArgs& a) { a.out = a.x; },
                       "out: is x itself, which does not go with seq_idx");
}

TEST(NumberedRefusal, APlanWantsTheNumbersOfEachCall) {
  float x[6] = {}, out[6], weight[3] = {};
  std::int32_t numbers[6] = {};
  ForwardArgs args;
  args.x = TensorRef::contiguous(x, DType::kF32, {6, 1});
  args.out = TensorRef::contiguous(out, DType::kF32, {6, 1});
  args.weight = TensorRef::contiguous(weight, DType::kF32, {1, 3});
  args.seq_idx = TensorRef::contiguous(numbers, DType::kI32, {6});
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(args, problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  Addresses at = addresses(args);
  EXPECT_TRUE(run(plan, at).ok());
  at.seq_idx = nullptr;
  EXPECT_EQ(run(plan, at).message(), "seq_idx: is null, but the plan has one");
}

}  // namespace
}  // namespace shortconv
