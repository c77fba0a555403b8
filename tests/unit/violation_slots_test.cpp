// The checked mode: slots that several sequences, snapshots or intermediate states use.
#include <gtest/gtest.h>

#include <algorithm>

#include "checked_mode.hpp"

namespace shortconv {
namespace {

class CheckedSlots : public CheckedCalls {};
INSTANTIATE_TEST_SUITE_P(Backends, CheckedSlots,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

TEST_P(CheckedSlots, WriteSlotShared) {
  Call call = make({0, 1, 2, 3, 4});
  call.read_slots = {0, 1, 2, 3};
  call.write_slots = {2, 1, 2, 2};
  expect(call, {{Violation::kWriteSlotShared, {2, 2}}});
  call.write_slots = {-1, -1, 3, 3};
  expect(call, {{Violation::kWriteSlotShared, {1, 3}}});
  call.write_slots.clear();  // as read_slots
  call.read_slots = {1, 1, 0, 0};
  expect(call, {{Violation::kWriteSlotShared, {2, 1}}});
}

TEST_P(CheckedSlots, OnlyLiveSequencesShare) {
  Call call = make({0, 0, 2, 2, 4});  // numbers 0 and 2 have no tokens
  call.read_slots = {1, 1, 1, 0};
  expect(call, {});
  Call skipped = make({0, 1, 2, 3});
  skipped.read_slots = {-1, 2, 3};
  skipped.write_slots = {1, 1, 3};
  expect(skipped, {});
  skipped.write_slots = {1, -7, -7};
  expect(skipped, {});
  Call null = make({0, 1, 2});
  null.args.pool.null_slot = 1;
  null.read_slots = {0, 2};
  null.write_slots = {1, 1};
  expect(null, {});
  null.write_slots = {8, 8};  // neither is written
  expect(null, {{Violation::kWriteSlotOutside, {2, 0}}});
}

// Pools of more slots than a table of bits would have.
TEST_P(CheckedSlots, SlotsFarApartAreDistinct) {
  Call call = make({0, 1, 2, 3, 4, 5});
  call.channels = 1;
  call.slots = 200000;
  call.resize(5);
  call.read_slots = {0, 65536, 131072, 64, 4096};
  expect(call, {});
  call.read_slots = {0, 65536, 131072, 64, 65536};
  expect(call, {{Violation::kWriteSlotShared, {1, 4}}});
}

// Beams that continue from one sequence: whoever writes the common slot changes what others read.
TEST_P(CheckedSlots, ReadSlotWritten) {
  Call call = make({0, 1, 2, 3, 4});
  call.flags = {1, 1, 1, 1};
  call.read_slots = {2, 2, 2, 0};
  call.write_slots = {0, 1, 3, -1};  // a slot for each beam, but number 3 still reads slot 0
  expect(call, {{Violation::kReadSlotWritten, {1, 3}}});
  call.write_slots = {2, 1, 3, 0};  // the first beam stays where the others read
  expect(call, {{Violation::kReadSlotWritten, {2, 1}}});
  call.write_slots = {3, 1, -1, 0};
  expect(call, {});
  call.write_slots = {2, 2, 1, 0};
  expect(call, {{Violation::kWriteSlotShared, {1, 1}}, {Violation::kReadSlotWritten, {1, 2}}});
  call.flags = {1, 1, 0, 1};  // a new sequence reads nothing
  expect(call, {{Violation::kWriteSlotShared, {1, 1}}});
  call.write_slots = {2, 9, 3, 0};
  call.flags = {1, 1, 1, 1};
  call.bounds = {0, 0, 2, 3, 4};  // number 0 has no tokens and writes nothing
  expect(call, {{Violation::kWriteSlotOutside, {1, 1}}});
}

// Rolling states are columns of the state, so that a capture changes what others read.
TEST_P(CheckedSlots, ReadSlotIsCapturedByAnotherSequence) {
  Call call = make({0, 2, 4});
  call.args.op = Op::kVerify;
  call.columns = 5;
  call.resize(4);
  call.read_slots = {0, 1};
  std::vector<std::int32_t> slots = {0, 1};
  call.fill();
  TensorRef& captured = call.args.drafts.intermediate_states.emplace(*call.args.pool.state);
  captured.ndim = 4;
  const std::int64_t shape[] = {4, 3, 3, 3}, strides[] = {15, 3, 3, 1};
  std::copy(shape, shape + 4, captured.shape);
  std::copy(strides, strides + 4, captured.strides);
  call.args.drafts.intermediate_slots = TensorRef::contiguous(slots.data(), DType::kI32, {2});
  const auto expect_here = [&](const Expected& expected) {  // not a copy: the state is captured
    Report report;
    call.args.options.violations = report.view();
    call.run();
    report.expect(expected);
  };
  expect_here({});
  slots = {1, 2};
  expect_here({{Violation::kReadSlotWritten, {1, 1}}});
  slots = {2, 3};
  expect_here({});
}

TEST_P(CheckedSlots, DraftsWriteNoSlotUnlessToldTo) {
  Call call = make({0, 2, 4});
  call.args.op = Op::kVerify;
  call.read_slots = {1, 1};
  expect(call, {});
  call.args.drafts.update_state = true;
  expect(call, {{Violation::kWriteSlotShared, {1, 1}}});
}

TEST_P(CheckedSlots, SnapshotSlots) {
  std::vector<std::int32_t> rows;
  const auto expect_of = [&](Call call, const std::vector<std::int32_t>& list,
                             const Expected& expected) {
    rows = list;
    call.args.pool.snapshots = TensorRef::contiguous(
        rows.data(), DType::kI32, {static_cast<std::int64_t>(rows.size()) / 3, 3});
    expect(call, expected);
  };
  Call call = make({0, 3, 3, 5, 6});
  call.slots = 12;
  call.resize(6);
  call.read_slots = {0, 1, 2, -1};
  // Several of a sequence, the final state where it goes anyway, and rows that are left out.
  expect_of(call, {2, 1, 5,  0, 0, 6, 2, 2, 2, 0, 1, 7, -1, 0, -1, 0, 4,
                   5, 0, -1, 5, 4, 0, 5, 1, 0, 5, 3, 0, 5,  2, 0,  -7},
            {});
  expect_of(call, {0, 0, 12, 0, 3, 1 << 30, 0, 4, 99, 1, 0, 99, 3, 1, 99, -1, 0, 99, 4, 0, 99},
            {{Violation::kSnapshotSlotOutside, {2, 0}}});
  expect_of(call, {0, 0, 5, 2, 1, 6, 2, 0, 5, 0, 1, 5}, {{Violation::kSnapshotSlotShared, {2, 2}}});
  expect_of(call, {2, 2, 2, 2, 2, 2, 2, 1, 2}, {});  // not taken
  expect_of(call, {2, 2, 2, 2, 0, 7, 0, 0, 7, 0, 0, 12},
            {{Violation::kSnapshotSlotOutside, {1, 3}}, {Violation::kSnapshotSlotShared, {1, 2}}});
  call.args.pool.null_slot = 7;
  expect_of(call, {2, 0, 7, 0, 0, 7}, {});
  call.args.pool.null_slot = 40;  // outside of the pool, but the caller's word for none
  expect_of(call, {2, 0, 40, 0, 0, 41}, {{Violation::kSnapshotSlotOutside, {1, 1}}});
  // More rows than sequences, and the other way round.
  std::vector<std::int32_t> many;
  for (std::int32_t i = 0; i < 40; ++i) many.insert(many.end(), {0, i % 4, i == 37 ? 44 : 4 + i});
  call.slots = 50;
  call.resize(6);
  expect_of(call, many, {});
  many[2] = 44;
  expect_of(call, many, {{Violation::kSnapshotSlotShared, {1, 37}}});
  call.bounds = {0, 3, 3, 5, 9};
  expect_of(call, {0, 0, 5}, {{Violation::kBoundOutside, {1, 4}}});
}

TEST_P(CheckedSlots, SnapshotSlotInUse) {
  Call call = make({0, 3, 5, 6});
  call.slots = 9;
  call.resize(6);
  call.flags = {1, 1, 0};
  call.read_slots = {0, 1, 2};
  call.write_slots = {3, 4, 5};
  std::vector<std::int32_t> rows = {0, 1, 6, 0, 2, 0, 1, 1, 1};  // also where the own history was
  const auto expect_rows = [&](const Expected& expected) {
    call.args.pool.snapshots = TensorRef::contiguous(
        rows.data(), DType::kI32, {static_cast<std::int64_t>(rows.size()) / 3, 3});
    expect(call, expected);
  };
  expect_rows({});
  rows = {0, 1, 6, 0, 2, 1, 1, 1, 5, 0, 0, 2};  // read by 1, written by 2; 2 starts from zeros
  expect_rows({{Violation::kSnapshotSlotInUse, {2, 1}}});
  rows = {0, 1, 3, 0, 2, 4, 2, 0, 0};
  expect_rows({{Violation::kSnapshotSlotInUse, {2, 1}}});
}

TEST_P(CheckedSlots, IntermediateSlots) {
  Call call = make({0, 2, 2, 4, 5, 6});
  call.args.op = Op::kVerify;
  call.slots = 9;
  call.resize(6);
  call.read_slots = {0, 1, 2, 3, -1};
  std::vector<float> windows(4 * 2 * 3 * 3);
  std::vector<std::int32_t> slots;
  call.args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kF32, {4, 2, 3, 3});
  const auto expect_of = [&](const std::vector<std::int32_t>& list, const Expected& expected) {
    slots = list;
    call.args.drafts.intermediate_slots = TensorRef::contiguous(slots.data(), DType::kI32, {5});
    expect(call, expected);
  };
  expect_of({3, 3, 0, 1, 3}, {});  // numbers 1 and 4 capture nothing
  expect_of({-1, -1, -1, 2, -9}, {});
  expect_of({4, 4, 0, 99, 99}, {{Violation::kIntermediateSlotOutside, {3, 0}}});
  expect_of({2, 0, 1, 2, 2}, {{Violation::kIntermediateSlotShared, {1, 3}}});
  expect_of({2, 0, 2, 2, 4}, {{Violation::kIntermediateSlotShared, {2, 2}}});
  call.args.pool.null_slot = 2;
  call.read_slots = {0, 1, 4, 3, -1};
  expect_of({2, 0, 1, 2, 0}, {});
  expect_of({2, 0, 1, 1, 0}, {{Violation::kIntermediateSlotShared, {1, 3}}});
  call.args.pool.null_slot = 77;
  expect_of({77, 0, 77, 78, 0}, {{Violation::kIntermediateSlotOutside, {1, 3}}});
}

}  // namespace
}  // namespace shortconv
