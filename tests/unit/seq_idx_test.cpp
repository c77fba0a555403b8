// seq_idx: values by hand, equal bits for the same sequences in a packed batch, and every refusal
// by its message. shortconv verify has random cases.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "common/random.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

class SeqIdx : public testing::TestWithParam<BackendId> {};
INSTANTIATE_TEST_SUITE_P(Backends, SeqIdx, testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// y[t] = x[t] + 10 x[t-1] + 100 x[t-2]. Two rows: 5 5 | -1 | 2 2 2 and 2 | 7 | 2 | 7 7 7. The
// second row does not continue the first row's sequence, and a number that returns is another
// sequence.
TEST_P(SeqIdx, SequencesByHand) {
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6}, out(12, 99), w = {100, 10, 1};
  std::vector<float> state = {8, 9, 6, 7};
  std::vector<std::int64_t> numbers = {5, 5, -1, 2, 2, 2, 2, 7, 2, 7, 7, 7};
  ForwardArgs args;
  args.x = TensorRef::contiguous(x.data(), DType::kF32, {2, 6, 1});
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {2, 6, 1});
  args.weight = TensorRef::contiguous(w.data(), DType::kF32, {1, 3});
  args.sequences.seq_idx = TensorRef::contiguous(numbers.data(), DType::kI64, {2, 6});
  args.options.backend = GetParam();
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(out, (std::vector<float>{1, 12, 0, 4, 45, 456, 1, 2, 3, 4, 45, 456}));

  // The first sequence of a row continues from the row's slot. Slots are not written.
  args.pool.state = TensorRef::contiguous(state.data(), DType::kF32, {2, 2, 1});
  args.sequences.initial_state = InitialState::kAll;
  args.sequences.padded_rows = PaddedRows::kCopy;
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(out, (std::vector<float>{891, 912, 3, 4, 45, 456, 671, 2, 3, 4, 45, 456}));
  EXPECT_EQ(state, (std::vector<float>{8, 9, 6, 7}));

  // One row, whose numbers have a stride.
  args.x = TensorRef::contiguous(x.data(), DType::kF32, {6, 1});
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {6, 1});
  args.sequences.seq_idx = TensorRef::contiguous(numbers.data(), DType::kI64, {6});
  args.sequences.seq_idx->strides[0] = 2;
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(std::vector<float>(out.begin(), out.begin() + 6),
            (std::vector<float>{891, 2, 3, 34, 345, 6}));
}

// Sequences that begin and end anywhere in the tiles of a thread, against a call with
// query_start_loc.
TEST_P(SeqIdx, BitsEqualThoseOfAPackedBatch) {
  constexpr std::int64_t kTokens = 3000, kChannels = 40, kWidth = 4;
  tools::Random random(7);
  std::vector<float> x(kTokens * kChannels), w(kChannels * kWidth), out(x.size(), 99);
  for (float& value : x) value = static_cast<float>(random.normal());
  for (float& value : w) value = static_cast<float>(random.normal());
  for (const int longest : {1, 5, 40, 700}) {
    std::vector<std::int32_t> numbers, bounds;
    while (numbers.size() < kTokens) {
      bounds.push_back(static_cast<std::int32_t>(numbers.size()));
      const auto length = static_cast<std::size_t>(random.between(1, longest));
      const auto number = static_cast<std::int32_t>(bounds.size() % 3);
      numbers.insert(numbers.end(), std::min(length, kTokens - numbers.size()), number);
    }
    bounds.push_back(kTokens);
    ForwardArgs args;
    args.x = TensorRef::contiguous(x.data(), DType::kF32, {kTokens, kChannels});
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {kTokens, kChannels});
    args.weight = TensorRef::contiguous(w.data(), DType::kF32, {kChannels, kWidth});
    args.epilogue.activation = Activation::kSilu;
    args.options.backend = GetParam();
    args.sequences.query_start_loc = TensorRef::contiguous(
        bounds.data(), DType::kI32, {static_cast<std::int64_t>(bounds.size())});
    ASSERT_TRUE(forward(args).ok());
    const std::vector<float> expected = std::exchange(out, std::vector<float>(x.size(), 99));
    args.sequences.query_start_loc.reset();
    args.sequences.seq_idx = TensorRef::contiguous(numbers.data(), DType::kI32, {kTokens});
    args.out.data = out.data();
    ASSERT_TRUE(forward(args).ok());
    EXPECT_TRUE(out == expected) << "sequences of up to " << longest;
  }
}

// Applies `change` to a valid call with slots and expects `message`.
template <typename Change>
void expect_refusal_after(Change&& change, const std::string& message) {
  static float x[12], weight[6], state[24];
  static std::int32_t numbers[6], slots[2];
  float out[12] = {9, 9, 9};
  ForwardArgs args;
  args.x = TensorRef::contiguous(x, DType::kF32, {2, 3, 2});
  args.out = TensorRef::contiguous(out, DType::kF32, {2, 3, 2});
  args.weight = TensorRef::contiguous(weight, DType::kF32, {2, 3});
  args.pool.state = TensorRef::contiguous(state, DType::kF32, {4, 3, 2});
  args.pool.read_slots = TensorRef::contiguous(slots, DType::kI32, {2});
  args.sequences.seq_idx = TensorRef::contiguous(numbers, DType::kI32, {2, 3});
  Problem problem;
  ASSERT_TRUE(make_problem(args, problem).ok());
  change(args);
  const Status status = forward(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos)
      << "got: " << status.message() << "\nexpected part: " << message;
  EXPECT_EQ(out[0], 9);
}

TEST(SeqIdxRefusal, SizesTypesAndDevices) {
  expect_refusal_after([](ForwardArgs& a) { a.sequences.seq_idx->ndim = 1; },
                       "seq_idx: expected 2 axes [sequences, tokens], got 1");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.seq_idx->shape[1] = 2; },
                       "seq_idx: axis 1 ('tokens') is 2, but x made 'tokens' = 3");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.seq_idx->dtype = DType::kF32; },
                       "seq_idx: dtype f32 is not supported (i32, i64)");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.seq_idx->data = nullptr; },
                       "seq_idx: data is null");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.seq_idx->device = {DeviceType::kCuda, 1}; },
                       "seq_idx: is on device 2:1, but x is on 1:0");
  expect_refusal_after([](ForwardArgs& a) { a.out.data = a.sequences.seq_idx->data; },
                       "out: overlaps seq_idx");
}

TEST(SeqIdxRefusal, ArgumentsThatCannotBeCombinedWithIt) {
  expect_refusal_after([](ForwardArgs& a) { a.op = Op::kDecode; },
                       "seq_idx: is supported by forward calls only");
  expect_refusal_after([](ForwardArgs& a) { a.op = Op::kVerify; },
                       "seq_idx: is supported by forward calls only");
  expect_refusal_after([](ForwardArgs& a) { a.pool.write_slots = a.pool.read_slots; },
                       "seq_idx: cannot be combined with write_slots, snapshots or "
                       "shift_full_state: no state is written");
  expect_refusal_after([](ForwardArgs& a) { a.pool.shift_full_state = true; },
                       "seq_idx: cannot be combined with write_slots, snapshots or "
                       "shift_full_state: no state is written");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t list[3];
        a.pool.snapshots = TensorRef::contiguous(list, DType::kI32, {1, 3});
      },
      "seq_idx: cannot be combined with write_slots, snapshots or shift_full_state: no state is "
      "written");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t bounds[3];
        a.sequences.query_start_loc = TensorRef::contiguous(bounds, DType::kI32, {3});
      },
      "query_start_loc: is only for x [tokens, channels] of a forward or verify call; the shape of "
      "a batch or of a decode call has its sequences already");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t bounds[3];
        for (TensorRef* rows : {&a.x, &a.out})
          *rows = TensorRef::contiguous(rows->data, DType::kF32, {6, 2});
        a.sequences.query_start_loc = TensorRef::contiguous(bounds, DType::kI32, {3});
      },
      "seq_idx: cannot be combined with query_start_loc");
  expect_refusal_after([](ForwardArgs& a) { a.options.schedule = Schedule::kSequenceGrid; },
                       "schedule: is sequence-grid; only flat is supported with seq_idx");
  expect_refusal_after([](ForwardArgs& a) { a.out = a.x; },
                       "out: is x itself, which seq_idx does not support");
}

TEST(SeqIdxRefusal, ARunWithoutSeqIdx) {
  float x[6] = {}, out[6], weight[3] = {};
  std::int32_t numbers[6] = {};
  ForwardArgs args;
  args.x = TensorRef::contiguous(x, DType::kF32, {6, 1});
  args.out = TensorRef::contiguous(out, DType::kF32, {6, 1});
  args.weight = TensorRef::contiguous(weight, DType::kF32, {1, 3});
  args.sequences.seq_idx = TensorRef::contiguous(numbers, DType::kI32, {6});
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(args, problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  TensorPointers at = pointers(args);
  EXPECT_TRUE(run(plan, at).ok());
  at.seq_idx = nullptr;
  EXPECT_EQ(run(plan, at).message(), "seq_idx: is null, but the plan has it");
}

}  // namespace
}  // namespace shortconv
