// The checked mode: each violation alone and in company, what is none, and that the report is all
// that it writes. The reference has rules of its own, so random batches compare two
// implementations.
#include "shortconv/violation.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "checked_mode.hpp"
#include "common/random.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv {
namespace {

class CheckedMode : public CheckedCalls {};
INSTANTIATE_TEST_SUITE_P(Backends, CheckedMode,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

TEST_P(CheckedMode, GoodBatchesHaveNone) {
  expect(make({0, 2, 5}), {});
  expect(make({0, 5}), {});
  expect(make({2, 3, 3, 3, 4}, 9), {});  // rows of nobody, sequences without tokens
  Call slots = make({0, 1, 2, 4});
  slots.read_slots = {3, 3, 0};
  slots.write_slots = {1, 2, 0};
  slots.flags = {1, 1, 0};
  slots.read_offsets = {0, 0, 0};
  expect(slots, {});
  Call no_pool = make({0, 1, 2});
  no_pool.state.clear();
  no_pool.read_slots = {1 << 30, 1 << 30};  // nothing to be outside of, and no state to share
  expect(no_pool, {});
}

TEST_P(CheckedMode, BoundOutside) {
  expect(make({-1, 2, 6}, 5), {{Violation::kBoundOutside, {2, 0}}});
  expect(make({0, 2, 6, 7}, 5), {{Violation::kBoundOutside, {2, 2}}});
  expect(make({0, 2, 1 << 30}, 5), {{Violation::kBoundOutside, {1, 2}}});
}

TEST_P(CheckedMode, BoundsDecrease) {
  expect(make({0, 4, 2, 5}), {{Violation::kBoundsDecrease, {1, 2}}});
  expect(make({5, 4, 4, 0}, 5), {{Violation::kBoundsDecrease, {2, 1}}});
  // Clamped they would both be 5.
  expect(make({0, 9, 8}, 5),
         {{Violation::kBoundOutside, {2, 1}}, {Violation::kBoundsDecrease, {1, 2}}});
}

TEST_P(CheckedMode, ReadSlotOutside) {
  Call call = make({0, 1, 2, 2, 3, 4});
  call.read_slots = {0, 4, 1 << 30, 3, -1};  // that of a sequence without tokens is a slot too
  expect(call, {{Violation::kReadSlotOutside, {2, 1}}});
  call.read_slots = {0, 1, 2, 3, 4};
  expect(call, {{Violation::kReadSlotOutside, {1, 4}}});
}

TEST_P(CheckedMode, PaddingIsNoViolation) {
  Call call = make({0, 1, 2, 3, 4, 5});
  call.args.pool.null_slot = 9;  // outside of the pool, but the caller's word for padding
  call.read_slots = {9, -1, 9, -5, -2147483647};
  expect(call, {});
  call.write_slots = {4, 7, 1, 1, 1};  // of sequences that are skipped: nobody looks
  call.flags = {1, 1, 1, 1, 1};
  call.read_offsets = {-1, 5, 5, 5, 5};
  expect(call, {});
}

TEST_P(CheckedMode, WriteSlotOutside) {
  Call call = make({0, 1, 2, 3, 4});
  call.args.pool.null_slot = 9;
  call.read_slots = {0, 1, 2, 3};
  call.write_slots = {-1, 4, 9, 5};
  expect(call, {{Violation::kWriteSlotOutside, {2, 1}}});
}

TEST_P(CheckedMode, ReadOffsetOutside) {
  Call call = make({0, 1, 2, 3, 3});
  call.columns = 6;
  call.args.pool.base_column = 1;  // offsets 0 to 2
  call.resize(3);
  call.flags = {1, 1, 1, 1};
  call.read_offsets = {2, 3, -1, 9};  // the last one has no tokens
  expect(call, {{Violation::kReadOffsetOutside, {2, 1}}});
  call.flags = {1, 0, 1, 1};  // a new sequence reads nothing
  expect(call, {{Violation::kReadOffsetOutside, {1, 2}}});
  call.read_slots = {0, 1, -1, 2};
  expect(call, {});
  call.read_slots = {0, 1, 2, 3};
  call.write_slots = {0, 1, -1, 3};  // outputs still come from a history
  expect(call, {{Violation::kReadOffsetOutside, {1, 2}}});
}

TEST_P(CheckedMode, ParentNotBefore) {
  Call call = make({0, 2, 4, 7});
  call.args.op = Op::kVerify;
  std::vector<std::int32_t> parents = {-1, 0, -1, -1, -1, 0, 1};
  call.args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {7});
  expect(call, {});
  parents = {-1, 0, -1, 1, -1, 0, -2};  // itself, and below -1
  expect(call, {{Violation::kParentNotBefore, {2, 1}}});
  call.read_slots = {0, -1, 2};  // padding has no parents
  expect(call, {{Violation::kParentNotBefore, {1, 2}}});
}

TEST_P(CheckedMode, SeveralAtOnceAreCountedApart) {
  Call call = make({-3, 2, 1, 4, 5, 12, 12, 12}, 8);
  call.columns = 4;
  call.resize(8);
  call.read_slots = {0, 1, 2, 77, 3, 3, -1};
  call.write_slots = {0, 1, 0, 0, 0, 99, 0};
  call.flags = {1, 1, 1, 1, 1, 1, 1};
  call.read_offsets = {2, 2, 2, 2, 0, 0, 2};
  expect(call, {{Violation::kBoundOutside, {4, 0}},
                {Violation::kBoundsDecrease, {1, 2}},
                {Violation::kReadSlotOutside, {1, 3}},
                {Violation::kWriteSlotOutside, {1, 5}},
                {Violation::kWriteSlotShared, {2, 2}},
                {Violation::kReadOffsetOutside, {2, 0}}});
}

TEST_P(CheckedMode, IndicesOf64BitsAndAnyStride) {
  constexpr std::int64_t kBig = std::int64_t{1} << 40;  // 0 in its lower half
  std::vector<std::int64_t> bounds = {0, kBig, 1, kBig, 2, kBig, kBig + 3};
  std::vector<std::int64_t> read = {2, kBig, 0}, write = {2, 2, kBig + 1};
  std::vector<std::int64_t> offsets = {kBig, 7, 7, 0, 7, 7, -kBig};
  std::vector<std::uint8_t> flags = {0, 9, 0, 9, 1, 9};
  Call call = make({0, 1, 2, 3});
  ForwardArgs args = call.fill();
  const auto strided = [](void* first, std::int64_t count, std::int64_t stride, DType dtype) {
    TensorRef view = TensorRef::contiguous(first, dtype, {count});
    view.strides[0] = stride;
    return view;
  };
  args.sequences.query_start_loc = strided(bounds.data(), 4, 2, DType::kI64);
  args.pool.read_slots = strided(&read[2], 3, -1, DType::kI64);    // 0, 2^40, 2
  args.pool.write_slots = strided(&write[2], 3, -1, DType::kI64);  // 2^40 + 1, 2, 2
  args.pool.read_offsets = strided(offsets.data(), 3, 3, DType::kI64);
  args.sequences.has_initial_state = strided(flags.data(), 3, 2, DType::kBool);  // the last one
  for (const auto& [row, column] :
       {std::pair{2, 1}, std::pair{1, 14}, std::pair{-3, 1}, std::pair{2, -5}}) {
    Report report(row, column);
    args.options.violations = report.view();
    const Status status = forward(args);
    ASSERT_TRUE(status.ok()) << status.message();
    report.expect({{Violation::kBoundOutside, {1, 3}},
                   {Violation::kReadSlotOutside, {1, 1}},
                   {Violation::kWriteSlotOutside, {1, 0}},
                   {Violation::kReadOffsetOutside, {1, 2}}});
  }
}

TEST_P(CheckedMode, ReportMayLieAtAnyAddressOfTheHost) {
  std::vector<char> memory(8 * (2 * kViolations + 1), 0x5a);
  Call call = make({0, 9}, 5);
  call.args.options.violations =
      TensorRef::contiguous(memory.data() + 3, DType::kI64, {kViolations, 2});
  call.run();
  std::array<std::int64_t, 2> row;
  std::memcpy(row.data(), memory.data() + 3, sizeof row);
  EXPECT_EQ(row, (std::array<std::int64_t, 2>{1, 1}));
  EXPECT_EQ(memory[2], 0x5a);
  EXPECT_EQ(memory[3 + 16 * kViolations], 0x5a);
}

TEST_P(CheckedMode, DecodeAndDenseBatches) {
  Call call = make({0, 1, 2, 3, 4});
  call.read_slots = {2, 4, 2, 0};
  call.read_offsets = {0, 0, 0, 1};  // resumed, as all of a decode call are
  ForwardArgs args = call.fill();
  args.op = Op::kDecode;
  args.sequences.query_start_loc.reset();
  const Expected expected = {{Violation::kReadSlotOutside, {1, 1}},
                             {Violation::kWriteSlotShared, {1, 2}},
                             {Violation::kReadOffsetOutside, {1, 3}}};
  Report decode;
  args.options.violations = decode.view();
  ASSERT_TRUE(forward(args).ok());
  decode.expect(expected, "decode");

  Call dense = make({0, 8});
  ForwardArgs batch = dense.fill();
  for (TensorRef* rows : {&batch.x, &batch.out}) {
    *rows = TensorRef::contiguous(rows->data, DType::kF32, {4, 2, 3});
  }
  batch.sequences.query_start_loc.reset();
  batch.pool.read_slots = args.pool.read_slots;
  batch.pool.read_offsets = args.pool.read_offsets;
  batch.sequences.initial_state = InitialState::kAll;
  Report dense_report;
  batch.options.violations = dense_report.view();
  ASSERT_TRUE(forward(batch).ok());
  dense_report.expect(expected, "dense");
}

// Dense batches without tokens, too: no sequence of them is live.
TEST_P(CheckedMode, EmptyCallsAreReportedToo) {
  Call no_tokens = make({0, 0, 1}, 0);
  no_tokens.read_slots = {4, 4};
  no_tokens.write_slots = {1, 1};
  expect(no_tokens, {{Violation::kBoundOutside, {1, 2}}, {Violation::kReadSlotOutside, {2, 0}}});
  Call no_channels = make({0, 2, 1, 4});
  no_channels.channels = 0;
  no_channels.resize(4);
  no_channels.state.assign(1, 0.0f);  // not absent
  no_channels.read_slots = {1, 3, 1};
  expect(no_channels,
         {{Violation::kBoundsDecrease, {1, 2}}, {Violation::kWriteSlotShared, {1, 2}}});
  expect(make({0}, 0), {});
  expect(make({3}, 0), {{Violation::kBoundOutside, {1, 0}}});

  ForwardArgs dense = no_tokens.fill();
  for (TensorRef* rows : {&dense.x, &dense.out}) {
    *rows = TensorRef::contiguous(rows->data, DType::kF32, {2, 0, 3});
  }
  dense.sequences.query_start_loc.reset();
  Report report;
  dense.options.violations = report.view();
  ASSERT_TRUE(forward(dense).ok());
  report.expect({{Violation::kReadSlotOutside, {2, 0}}});
}

TEST_P(CheckedMode, ChangesNothingElse) {
  for (const bool in_place : {false, true}) {
    Call plain = make({1, 2, 4, 4, 9, 7, 12}, 10);
    plain.columns = 5;
    plain.resize(10);
    plain.read_slots = {0, 1, -1, 2, 1, 9};
    plain.write_slots = {0, 3, 1, 8, 1, 9};
    plain.flags = {1, 0, 1, 1, 1, 1};
    plain.read_offsets = {-1, 0, 1, 7, 2, 2};
    Call checked = plain;
    const auto run = [&](Call& call) {
      ForwardArgs args = call.fill();
      args.options.threads = 1;  // rows of two sequences, in place, depend on who is first
      if (in_place) args.out = args.x;
      const Status status = forward(args);
      ASSERT_TRUE(status.ok()) << status.message();
    };
    Report report;
    checked.args.options.violations = report.view();
    run(plain);
    run(checked);
    EXPECT_EQ(checked.x, plain.x);
    EXPECT_EQ(checked.out, plain.out);
    EXPECT_EQ(checked.state, plain.state);
    EXPECT_EQ(checked.bounds, plain.bounds);
    EXPECT_EQ(checked.read_slots, plain.read_slots);
    EXPECT_EQ(checked.write_slots, plain.write_slots);
    report.expect({{Violation::kBoundOutside, {1, 6}},
                   {Violation::kBoundsDecrease, {1, 5}},
                   {Violation::kReadSlotOutside, {1, 5}},
                   {Violation::kWriteSlotOutside, {1, 3}},
                   {Violation::kReadOffsetOutside, {2, 0}}},
                  in_place ? "in place" : "");
  }
}

TEST_P(CheckedMode, PlansWithoutItWriteNoReport) {
  Call call = make({0, 9}, 5);
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  std::array<std::int64_t, 2 * kViolations> words;
  words.fill(kGarbage);
  TensorPointers at = pointers(call.args);
  at.violations = words.data();
  ASSERT_TRUE(run(plan, at).ok());
  for (const std::int64_t word : words) EXPECT_EQ(word, kGarbage);
}

TEST_P(CheckedMode, EverySchedule) {
  Call call = make({0, 3, 3, 30, 29}, 30);
  call.read_slots = {1, 0, 1, 2};
  const Expected expected = {{Violation::kBoundsDecrease, {1, 4}},
                             {Violation::kWriteSlotShared, {1, 2}}};
  expect(call, expected, "flat");
  call.args.options.schedule = Schedule::kSequenceGrid;
  call.args.options.max_seqlen = 27;
  expect(call, expected, "sequence-grid");
  const std::vector<std::int64_t> lengths = {3, 0, 27, 0};
  BlockList list;
  ASSERT_TRUE(plan_block_list(lengths, list).ok());
  const auto entries = static_cast<std::int64_t>(list.sequence.size());
  call.args.options.schedule = Schedule::kBlockList;
  call.args.options.block_sequence =
      TensorRef::contiguous(list.sequence.data(), DType::kI32, {entries});
  call.args.options.block_offset =
      TensorRef::contiguous(list.offset.data(), DType::kI32, {entries});
  expect(call, expected, "block-list");
}

// Small ranges, so that everything happens, often together.
TEST(Violations, BothBackendsReportTheSameOnRandomBatches) {
  tools::Random random(20);
  std::array<int, kViolations> seen{};
  for (int repetition = 0; repetition < 3000; ++repetition) {
    const std::int64_t sequences = random.between(0, 12), rows = random.between(0, 15);
    std::vector<std::int32_t> bounds(static_cast<std::size_t>(sequences) + 1);
    for (std::int64_t i = 0; i <= sequences; ++i) {
      const std::int64_t bound = random.chance(0.1)
                                     ? random.between(-2, rows + 2)
                                     : rows * i / (sequences + 1) + random.between(0, 1);
      bounds[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(bound);
    }
    Call call(bounds, rows);
    call.slots = 14;
    call.columns = 5;
    call.resize(rows);
    if (random.chance(1.0 / 3)) call.args.pool.null_slot = random.between(-1, 16);
    if (random.chance(0.2)) call.args.pool.base_column = random.between(0, 2);
    const auto fill = [&]<typename T>(std::vector<T>& values, std::int64_t low, std::int64_t high) {
      if (random.chance(0.5)) return;
      values.resize(static_cast<std::size_t>(sequences));
      for (T& value : values) value = static_cast<T>(random.between(low, high));
    };
    fill(call.read_slots, -1, 15);
    fill(call.write_slots, -1, 15);
    fill(call.read_offsets, -1, 3);
    fill(call.flags, 0, 1);
    std::vector<std::int32_t> parents(static_cast<std::size_t>(rows));
    if (call.write_slots.empty() && random.chance(0.5)) {
      for (auto& parent : parents) {
        parent = static_cast<std::int32_t>(random.between(-1, 1) - (random.chance(0.1) ? 1 : 0));
      }
      call.args.op = Op::kVerify;
      call.args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {rows});
    }
    std::vector<std::int32_t> rows_of_list, intermediate_slots;
    std::vector<float> windows(6 * 2 * 3 * 3);
    if (call.args.op == Op::kVerify) {
      for (std::int64_t s = 0; s < sequences; ++s) {
        intermediate_slots.push_back(static_cast<std::int32_t>(random.between(-1, 7)));
      }
      call.args.drafts.intermediate_states =
          TensorRef::contiguous(windows.data(), DType::kF32, {6, 2, 3, 3});
      call.args.drafts.intermediate_slots =
          TensorRef::contiguous(intermediate_slots.data(), DType::kI32, {sequences});
    } else if (random.chance(0.5)) {
      const std::int64_t count = random.between(0, 20);
      for (std::int64_t i = 0; i < count; ++i) {
        for (const std::int64_t last : {sequences, std::int64_t{3}, std::int64_t{16}}) {
          rows_of_list.push_back(static_cast<std::int32_t>(random.between(-1, last)));
        }
      }
      call.args.pool.snapshots =
          TensorRef::contiguous(rows_of_list.data(), DType::kI32, {count, 3});
    }
    std::array<Report, 2> reports;
    for (std::size_t i = 0; i < 2; ++i) {
      Call copy = call;
      copy.args.options.backend = i == 0 ? BackendId::kReference : BackendId::kCpu;
      copy.args.options.threads = 1;
      copy.args.options.violations = reports[i].view();
      copy.run();
    }
    for (int v = 0; v < kViolations; ++v) {
      const auto violation = static_cast<Violation>(v);
      const Found reference = reports[0].of(violation);
      ASSERT_EQ(reports[1].of(violation).count, reference.count) << name(violation) << repetition;
      ASSERT_EQ(reports[1].of(violation).first, reference.first) << name(violation) << repetition;
      if (reference.count > 0) ++seen[static_cast<std::size_t>(v)];
    }
  }
  for (int v = 0; v < kViolations; ++v) {
    EXPECT_GT(seen[static_cast<std::size_t>(v)], 50) << name(static_cast<Violation>(v));
  }
}

}  // namespace
}  // namespace shortconv
