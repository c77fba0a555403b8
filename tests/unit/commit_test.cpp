// Commit: every refusal by its message, and every form, layout and type against a loop over the
// definition, bit for bit, memory around the pool included.
#include <gtest/gtest.h>

#include <limits>

#include "commit_case.hpp"
#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

class Commits : public testing::TestWithParam<BackendId> {
 protected:
  static void check(const CommitCase& c, std::int32_t threads = 1) {
    CommitBuffers tensors(c);
    CommitArgs args = tensors.host_args(c);
    args.backend = GetParam();
    args.threads = threads;
    GuardedTensor expected = tensors.state;
    c.expect(tensors.windows, expected);
    const std::vector<std::uint8_t> windows = tensors.windows.memory;
    const Status status = commit(args);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(tensors.state.memory == expected.memory) << c.text();
    EXPECT_TRUE(tensors.windows.memory == windows) << "windows were written to: " << c.text();
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Commits, testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// Two layers, two sequences of two tokens, one channel, width 3, by hand.
TEST_P(Commits, TheIntermediateStateOfTheLastAcceptedTokenGoesToItsSlotInAllLayers) {
  std::vector<float> windows = {1, 2, 2, 3, 4, 5, 5, 6, 11, 12, 12, 13, 14, 15, 15, 16};
  std::vector<float> state(2 * 3 * 2, -1);
  std::vector<std::int32_t> accepted = {1, 0}, slots = {2, 0};
  CommitArgs args;
  args.intermediate_states = TensorRef::contiguous(windows.data(), DType::kF32, {2, 2, 4, 1});
  args.state = TensorRef::contiguous(state.data(), DType::kF32, {2, 3, 2, 1});
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {2});
  args.slots = TensorRef::contiguous(slots.data(), DType::kI32, {2});
  args.width = 3;
  args.rows_per_token = 2;
  args.backend = GetParam();
  ASSERT_TRUE(commit(args).ok());
  EXPECT_EQ(state, (std::vector<float>{4, 5, -1, -1, 2, 3, 14, 15, -1, -1, 12, 13}));
}

// One sequence whose four inputs overlap as two windows of width 4: 1 2 3 and 2 3 4.
TEST_P(Commits, OverlappingIntermediateStatesAreOneRowApart) {
  std::vector<float> windows = {1, 2, 3, 4}, state(3, -1);
  std::vector<std::int64_t> accepted = {1};
  CommitArgs args;
  args.intermediate_states = TensorRef::contiguous(windows.data(), DType::kF32, {1, 1, 4, 1});
  args.state = TensorRef::contiguous(state.data(), DType::kF32, {1, 1, 3, 1});
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI64, {1});
  args.width = 4;
  args.rows_per_token = 1;
  args.backend = GetParam();
  ASSERT_TRUE(commit(args).ok());
  EXPECT_EQ(state, (std::vector<float>{2, 3, 4}));
  accepted[0] = 2;  // its window would end behind the last row
  state.assign(3, -1);
  ASSERT_TRUE(commit(args).ok());
  EXPECT_EQ(state, (std::vector<float>{-1, -1, -1}));
}

TEST_P(Commits, EveryTypeAndWidthInEveryLayout) {
  std::vector<int> widths(capabilities().widths.begin(), capabilities().widths.end());
  widths.insert(widths.end(), {9, 12, capabilities().max_width});
  std::vector<DType> dtypes = {DType::kF64};
  for (const auto& row : capabilities().dtypes) dtypes.push_back(row.value);
  for (const int width : widths) {
    for (const DType dtype : dtypes) {
      CommitCase c;
      c.width = width;
      c.dtype = dtype;
      for_each_layout(c, [](const CommitCase& one) { check(one); });
    }
  }
}

TEST_P(Commits, IndicesOfEitherTypeAndAnyStride) {
  for (const DType dtype : {DType::kI32, DType::kI64}) {
    for (const bool strided : {false, true}) {
      CommitCase c;
      c.index_dtype = dtype;
      c.strided_indices = strided;
      for_each_layout(c, [](const CommitCase& one) { check(one); });
    }
  }
}

TEST_P(Commits, WiderPoolsKeepTheirOtherColumns) {
  for (const std::int64_t base : {0, 1, 3}) {
    CommitCase c;
    c.extra_columns = 3;
    c.base_column = base;
    for_each_layout(c, [](const CommitCase& one) { check(one); });
  }
}

// Two channels out of five, three columns of which the second is the history of width 2.
TEST_P(Commits, PoolsMayBeSlicesOfWiderOnes) {
  std::vector<float> windows = {1, 2, 3, 4}, state(2 * 3 * 5, -1), expected = state;
  std::vector<std::int32_t> accepted = {0, 0};
  CommitArgs args;
  args.intermediate_states = TensorRef::contiguous(windows.data(), DType::kF32, {1, 2, 1, 2});
  args.state = TensorRef::contiguous(state.data(), DType::kF32, {1, 2, 3, 5});
  args.state.shape[3] = 2;
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {2});
  args.width = 2;
  args.rows_per_token = 1;
  args.base_column = 1;
  args.backend = GetParam();
  ASSERT_TRUE(commit(args).ok());
  expected[5] = 1;
  expected[6] = 2;
  expected[15 + 5] = 3;
  expected[15 + 6] = 4;
  EXPECT_EQ(state, expected);
}

TEST_P(Commits, OneOrManyLayersAndChannelsByAnyNumberOfThreads) {
  for (const std::int64_t layers : {1, 5}) {
    for (const std::int64_t channels : {1, 7, 130}) {
      for (const std::int32_t threads : {0, 1, 3}) {
        CommitCase c;
        c.layers = layers;
        c.channels = channels;
        for_each_layout(c, [&](const CommitCase& one) { check(one, threads); });
      }
    }
  }
}

TEST_P(Commits, SlotsAndSecondSlotsMayBeAbsent) {
  for (const bool slots : {false, true}) {
    for (const bool second : {false, true}) {
      CommitCase c;
      c.has_slots = slots;
      c.has_second_slots = second;
      c.null_slot.reset();
      c.second_slot[7] = -1;  // without a null slot, slot 1 is the one of sequence 6
      if (!slots) c.second_slot = {-1, 9, 10, 11, 12, -1, -1, 1000, -1};  // those of no sequence
      for_each_layout(c, [](const CommitCase& one) { check(one); });
    }
  }
}

// Each sequence draws its slots from a set of its own, so that none is written twice.
TEST_P(Commits, BadValuesNeverLeaveTheTensors) {
  tools::Random random(7);
  for (const DType dtype : {DType::kI32, DType::kI64}) {
    const bool wide = dtype == DType::kI64;
    const std::int64_t most =
        wide ? std::numeric_limits<std::int64_t>::max() : std::numeric_limits<std::int32_t>::max();
    const auto draw = [&](std::vector<std::int64_t> good) {
      good.insert(good.end(), {-1, -most - 1, most, most - 1, 13, 19, 1 << 20});
      return random.pick(good);
    };
    for (int repeat = 0; repeat < 60; ++repeat) {
      CommitCase c;
      c.index_dtype = dtype;
      for (std::size_t s = 0; s < c.accepted.size(); ++s) {
        const auto own = static_cast<std::int64_t>(s);
        c.accepted[s] = draw({0, 1, 2, 3});
        c.slot[s] = draw({own, own});
        c.second_slot[s] = s < 4 ? draw({9 + own}) : draw({-1});
      }
      for (std::int64_t& bound : c.bounds) bound = draw({0, 3, 5, 9, 17, 18});
      for_each_layout(c, [](const CommitCase& one) { check(one); });
    }
  }
}

TEST_P(Commits, NothingToDoIsNoError) {
  for (const int what : {0, 1, 2, 3, 4}) {
    CommitCase c;
    if (what == 0) c.layers = 0;
    if (what == 1) c.channels = 0;
    if (what == 2) c.slots = 0;
    if (what == 3) c.accepted = c.slot = c.second_slot = {};
    CommitBuffers tensors(c);
    CommitArgs args = tensors.host_args(c);
    if (what == 4) args.intermediate_states.shape[2] = 2;  // no room for a window of 3 rows
    // Strides of what is not there may be anything.
    if (what < 2) args.intermediate_states.strides[2] = std::int64_t{1} << 62;
    args.backend = GetParam();
    const std::vector<std::uint8_t> before = tensors.state.memory;
    const Status status = commit(args);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(tensors.state.memory == before);
  }
}

// A plan is made once and run on other memory.
TEST_P(Commits, PlansKeepNoAddress) {
  CommitCase c;
  CommitBuffers first(c), second(c);
  CommitArgs args = first.host_args(c);
  args.backend = GetParam();
  CommitProblem problem;
  CommitPlan plan;
  ASSERT_TRUE(make_problem(args, problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  EXPECT_EQ(plan.problem(), problem);
  const std::vector<std::uint8_t> before = first.state.memory;
  GuardedTensor expected = second.state;
  c.expect(second.windows, expected);
  ASSERT_TRUE(run(plan, pointers(second.host_args(c))).ok());
  EXPECT_TRUE(second.state.memory == expected.memory);
  EXPECT_TRUE(first.state.memory == before);
}

// Applies `change` to the arguments of a valid commit and expects `message` and an untouched pool.
template <typename Change>
void expect_refusal_after(Change&& change, const std::string& message,
                          WindowForm form = WindowForm::kDense) {
  CommitCase c;
  c.form = form;
  CommitBuffers tensors(c);
  CommitArgs args = tensors.host_args(c);
  CommitProblem valid;
  ASSERT_TRUE(make_problem(args, valid).ok());
  change(args);
  const std::vector<std::uint8_t> before = tensors.state.memory;
  CommitProblem problem;
  problem.width = -7;
  const CommitProblem untouched = problem;
  (void)make_problem(args, problem);
  const Status status = commit(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos)
      << "got: " << status.message() << "\nexpected part: " << message;
  EXPECT_TRUE(tensors.state.memory == before);
  // Refusals of a backend come after the problem was made.
  EXPECT_TRUE(problem == untouched || args.backend == BackendId::kCuda);
}

TEST(CommitProblem, SharedSizesMustAgree) {
  expect_refusal_after([](CommitArgs& a) { a.state.shape[0] = 3; },
                       "state: axis 0 ('layers') is 3, but intermediate_states made 'layers' = 2");
  expect_refusal_after(
      [](CommitArgs& a) { a.state.shape[3] = 8; },
      "state: axis 3 ('channels') is 8, but intermediate_states made 'channels' = 16");
  expect_refusal_after(
      [](CommitArgs& a) { a.accepted.shape[0] = 8; },
      "accepted: axis 0 ('sequences') is 8, but intermediate_states made 'sequences' = 9");
  expect_refusal_after(
      [](CommitArgs& a) { a.slots->shape[0] = 8; },
      "slots: axis 0 ('sequences') is 8, but intermediate_states made 'sequences' = 9");
  expect_refusal_after([](CommitArgs& a) { a.second_slots->shape[0] = 10; },
                       "second_slots: axis 0 ('sequences') is 10, but intermediate_states made");
  expect_refusal_after([](CommitArgs& a) { a.accepted.shape[0] = 8; },
                       "accepted: axis 0 ('sequences') is 8, but query_start_loc made",
                       WindowForm::kPacked);
  expect_refusal_after(
      [](CommitArgs& a) { a.intermediate_states.shape[2] = 4; },
      "intermediate_states: axis 2 ('width - 1') is 4, but width made 'width - 1' = 3",
      WindowForm::kPackedWindows);
}

TEST(CommitProblem, AxesAndMemory) {
  for (const std::int32_t axes : {-1, 0, 3, 5, 1 << 30}) {
    const std::string got = "got " + std::to_string(axes);
    expect_refusal_after(
        [&](CommitArgs& a) { a.intermediate_states.ndim = axes; },
        "intermediate_states: expected 4 axes [layers, sequences, rows, channels], " + got);
    expect_refusal_after([&](CommitArgs& a) { a.state.ndim = axes; },
                         "state: expected 4 axes [layers, slots, columns, channels], " + got);
  }
  for (const std::int32_t axes : {-1, 0, 2, 5}) {
    expect_refusal_after([&](CommitArgs& a) { a.intermediate_states.ndim = axes; },
                         "intermediate_states: expected 3 axes [layers, rows, channels], got ",
                         WindowForm::kPacked);
  }
  expect_refusal_after([](CommitArgs& a) { a.accepted.ndim = 2; },
                       "accepted: expected 1 axes [sequences], got 2");
  expect_refusal_after([](CommitArgs& a) { a.query_start_loc->shape[0] = 0; },
                       "query_start_loc: is empty; expected sequences + 1 entries",
                       WindowForm::kPacked);
  expect_refusal_after([](CommitArgs& a) { a.intermediate_states.shape[3] = -1; },
                       "intermediate_states: axis 3 ('channels') is -1; sizes are not negative");
  expect_refusal_after([](CommitArgs& a) { a.intermediate_states.data = nullptr; },
                       "intermediate_states: data is null");
  expect_refusal_after([](CommitArgs& a) { a.state.data = nullptr; }, "state: data is null");
  expect_refusal_after([](CommitArgs& a) { a.accepted.data = nullptr; }, "accepted: data is null");
  expect_refusal_after([](CommitArgs& a) { a.state.strides[1] = std::int64_t{1} << 60; },
                       "state: shape and strides reach beyond 2^62 bytes");
  expect_refusal_after([](CommitArgs& a) { a.state.strides[2] = 0; },
                       "state: axis 2 has stride 0 but is written");
  expect_refusal_after(
      [](CommitArgs& a) {
        a.intermediate_states.shape[0] = a.state.shape[0] = std::int64_t{1} << 20;
        a.state.strides[0] = std::int64_t{1} << 20;
        a.intermediate_states.shape[1] = a.accepted.shape[0] = std::int64_t{1} << 50;
        a.intermediate_states.strides[0] = a.intermediate_states.strides[1] = 0;
        a.accepted.strides[0] = 0;
        a.slots = a.second_slots = a.accepted;
      },
      "intermediate_states: has more than 2^62 elements to commit");
}

TEST(CommitProblem, Dtypes) {
  expect_refusal_after([](CommitArgs& a) { a.intermediate_states.dtype = DType::kI32; },
                       "intermediate_states: dtype i32 is not supported (f32, f16, bf16, f64)");
  expect_refusal_after([](CommitArgs& a) { a.state.dtype = DType::kBool; },
                       "state: dtype bool is not supported (f32, f16, bf16, f64)");
  expect_refusal_after([](CommitArgs& a) { a.intermediate_states.dtype = DType::kBF16; },
                       "intermediate_states: dtype is bf16, but state has f32; a commit copies "
                       "bits and converts nothing");
  expect_refusal_after([](CommitArgs& a) { a.accepted.dtype = DType::kF32; },
                       "accepted: dtype f32 is not supported (i32, i64)");
  expect_refusal_after([](CommitArgs& a) { a.slots->dtype = DType::kBool; },
                       "slots: dtype bool is not supported (i32, i64)");
  expect_refusal_after([](CommitArgs& a) { a.second_slots->dtype = DType::kU8; },
                       "second_slots: dtype u8 is not supported (i32, i64)");
  expect_refusal_after([](CommitArgs& a) { a.query_start_loc->dtype = DType::kF16; },
                       "query_start_loc: dtype f16 is not supported (i32, i64)",
                       WindowForm::kPacked);
}

TEST(CommitProblem, WidthsAndRows) {
  for (const std::int32_t width : {-1, 0, 1, 65}) {
    expect_refusal_after([&](CommitArgs& a) { a.width = width; },
                         "width: is " + std::to_string(width) + "; expected 2 to 64");
  }
  for (const std::int32_t rows : {-3, 0, 2, 4}) {
    expect_refusal_after([&](CommitArgs& a) { a.rows_per_token = rows; },
                         "rows_per_token: is " + std::to_string(rows) +
                             "; expected 3 (width - 1) or 1 (they overlap)");
  }
  for (const WindowForm form : {WindowForm::kPacked, WindowForm::kPackedWindows}) {
    expect_refusal_after([](CommitArgs& a) { a.rows_per_token = 1; },
                         "rows_per_token: is 1, but packed intermediate states do not overlap; "
                         "expected 3 (width - 1)",
                         form);
  }
}

TEST(CommitProblem, StateColumnsAndSlots) {
  expect_refusal_after([](CommitArgs& a) { a.base_column = 1; },
                       "state: has 3 columns, but width 4 needs 3 from column 1 (base_column) on");
  expect_refusal_after([](CommitArgs& a) { a.base_column = -1; }, "from column -1");
  expect_refusal_after(
      [](CommitArgs& a) {
        a.slots.reset();
        a.state.shape[1] = 8;
      },
      "state: has 8 slots, but without slots sequence s uses slot s; expected at least 9");
}

TEST(CommitProblem, IntermediateStatesAndStateAreSeparateMemory) {
  expect_refusal_after([](CommitArgs& a) { a.state.data = a.intermediate_states.data; },
                       "state: overlaps intermediate_states");
  expect_refusal_after(
      [](CommitArgs& a) {
        a.intermediate_states.data = static_cast<char*>(a.state.data) + 2 * 13 * 3 * 64 - 4;
      },
      "state: overlaps intermediate_states");
}

TEST(CommitProblem, DevicesAndBackends) {
  const Device other{DeviceType::kCuda, 1};
  expect_refusal_after([&](CommitArgs& a) { a.state.device = other; },
                       "state: is on device 2:1, but intermediate_states is on 1:0");
  expect_refusal_after([&](CommitArgs& a) { a.accepted.device = other; },
                       "accepted: is on device 2:1, but intermediate_states is on 1:0");
  expect_refusal_after([&](CommitArgs& a) { a.slots->device = other; }, "slots: is on device 2:1");
  expect_refusal_after([&](CommitArgs& a) { a.second_slots->device = other; },
                       "second_slots: is on device 2:1");
  expect_refusal_after([&](CommitArgs& a) { a.query_start_loc->device = other; },
                       "query_start_loc: is on device 2:1", WindowForm::kPacked);
  expect_refusal_after([](CommitArgs& a) { a.backend = BackendId::kCuda; }, "backend: 'cuda'");
  expect_refusal_after([](CommitArgs& a) { a.backend = static_cast<BackendId>(77); },
                       "backend: value 77 is not known");
  expect_refusal_after([](CommitArgs& a) { a.threads = -2; },
                       "threads: is -2; expected 0 (all) or more");
}

TEST(CommitPlan, RefusesAddressesThatDoNotFit) {
  CommitCase c;
  c.form = WindowForm::kPacked;
  CommitBuffers tensors(c);
  const CommitArgs args = tensors.host_args(c);
  CommitProblem problem;
  CommitPlan plan;
  EXPECT_EQ(run(plan, pointers(args)).message(), "plan: was not made by make_plan");
  ASSERT_TRUE(make_problem(args, problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  const std::vector<std::uint8_t> before = tensors.state.memory;
  const auto refusal = [&](auto&& change) {
    CommitPointers at = pointers(args);
    change(at);
    return run(plan, at).message();
  };
  EXPECT_EQ(refusal([](auto& at) { at.intermediate_states = nullptr; }),
            "intermediate_states: is null, but the plan has it");
  EXPECT_EQ(refusal([](auto& at) { at.state = nullptr; }), "state: is null, but the plan has it");
  EXPECT_EQ(refusal([](auto& at) { at.accepted = nullptr; }),
            "accepted: is null, but the plan has it");
  EXPECT_EQ(refusal([](auto& at) { at.slots = nullptr; }), "slots: is null, but the plan has it");
  EXPECT_EQ(refusal([](auto& at) { at.second_slots = nullptr; }),
            "second_slots: is null, but the plan has it");
  EXPECT_EQ(refusal([](auto& at) { at.query_start_loc = nullptr; }),
            "query_start_loc: is null, but the plan has it");
  EXPECT_TRUE(tensors.state.memory == before);
}

}  // namespace
}  // namespace shortconv
