// Known defects: draft tokens, their windows, what is committed of them.
#pragma once

#include "defects.hpp"

namespace shortconv::test {

/// Drafts of several sequences with a window for each token, in one layer of a pool.
struct Drafts {
  Call call;
  std::int64_t sequences, each;
  bool window_innermost = false, overlap = false;
  std::vector<float> windows;
  std::vector<std::int32_t> accepted;

  Drafts(Call made, std::int64_t sequence_count)
      : call(std::move(made)), sequences(sequence_count), each(call.tokens / sequence_count) {}

  ForwardArgs verify() {
    const std::int64_t rows = call.width - 1, channels = call.channels;
    const std::int64_t all = overlap ? each + rows - 1 : each * rows;
    windows.assign(static_cast<std::size_t>(sequences * all * channels), kPoison);
    ForwardArgs args = call.fill();
    args.op = Op::kVerify;
    args.sequences.query_start_loc.reset();
    for (TensorRef* tensor : {&args.x, &args.out}) {
      *tensor = TensorRef::contiguous(tensor->data, DType::kF32, {sequences, each, channels});
    }
    args.drafts.intermediate_states =
        TensorRef::contiguous(windows.data(), DType::kF32, {sequences, each, rows, channels});
    std::int64_t* strides = args.drafts.intermediate_states->strides;
    strides[0] = all * channels;
    strides[1] = overlap ? channels : rows * channels;
    if (window_innermost) {  // [sequences, channels, all] or [sequences, each, channels, rows]
      strides[2] = 1;
      strides[1] = overlap ? 1 : rows * channels;
      strides[3] = overlap ? all : rows;
    }
    return args;
  }
  CommitArgs commit() {
    const std::int64_t rows = call.width - 1, channels = call.channels;
    const std::int64_t all = overlap ? each + rows - 1 : each * rows;
    CommitArgs args;
    args.width = static_cast<std::int32_t>(call.width);
    args.rows_per_token = static_cast<std::int32_t>(overlap ? 1 : rows);
    args.intermediate_states =
        TensorRef::contiguous(windows.data(), DType::kF32, {1, sequences, all, channels});
    if (window_innermost) {
      args.intermediate_states.strides[2] = 1;
      args.intermediate_states.strides[3] = all;
    }
    args.state = TensorRef::contiguous(call.state.data(), DType::kF32,
                                       {1, call.slots, call.columns, channels});
    args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {sequences});
    if (!call.read_slots.empty()) {
      args.slots = TensorRef::contiguous(call.read_slots.data(), DType::kI32, {sequences});
    }
    return args;
  }
};

// Verification left all drafts in the committed state, so that a row whose commit was left out had
// a wrong one (sglang).
TEST_P(Defects, VerifyLeavesCommittedStatesAlone) {
  Drafts drafts(make({0, 4, 8}), 2);
  Call old = drafts.call;
  run(drafts.verify());
  for (const std::int64_t slot : {0, 1, 2, 3}) expect_untouched(drafts.call, old, slot);
  for (const std::int64_t s : {0, 1}) {
    expect_rows(drafts.call, {.call = old, .begin = 4 * s, .slot = s}, 4);
  }
}

// Rejected drafts stayed in the state, and the next step continued from them (vllm 44296, 50272).
// Where windows overlap, drafts that were accepted in part gave states that were shifted among the
// channels in one of the two layouts; drafts accepted as a whole hid it (sglang 26888).
TEST_P(Defects, RejectedDraftsLeaveNoTrace) {
  for (const bool window_innermost : {false, true}) {
    for (const bool overlap : {false, true}) {
      if (window_innermost && !overlap) continue;  // such windows are committed in packed form
      for (std::int32_t accepted = 0; accepted < 4; ++accepted) {
        Drafts drafts(make({0, 4, 8}), 2);
        drafts.window_innermost = window_innermost;
        drafts.overlap = overlap;
        drafts.accepted = {accepted, 3 - accepted};
        drafts.call.read_slots = {3, 1};
        Call old = drafts.call;
        run(drafts.verify());
        const Status status = GetParam().commit(drafts.commit());
        ASSERT_TRUE(status.ok()) << status.message();
        for (std::int64_t s = 0; s < 2; ++s) {
          const std::int64_t slot = drafts.call.read_slots[s];
          const Line line{.call = old, .begin = 4 * s, .slot = slot};
          expect_state(drafts.call, slot, line, drafts.accepted[s] + 1);
        }
        for (const std::int64_t slot : {0, 2}) expect_untouched(drafts.call, old, slot);

        Call next = make({0, 1, 2});  // as if the rejected ones had never been there
        next.read_slots = drafts.call.read_slots;
        next.state = drafts.call.state;
        Call before = next;
        decode(next);
        for (std::int64_t s = 0; s < 2; ++s) {
          expect_rows(next, {.call = before, .begin = s, .slot = next.read_slots[s]}, 1);
        }
      }
    }
  }
}

// Overlapping windows were used for trees, where siblings need windows of their own (sglang 28302).
TEST_P(Defects, IntermediateStatesOfTreesMayNotOverlap) {
  Drafts drafts(make({0, 4}), 1);
  drafts.overlap = true;
  std::vector<std::int32_t> parents = {-1, 0, 0, 1};
  ForwardArgs args = drafts.verify();
  args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {1, 4});
  const Status status = GetParam().forward(args);
  ASSERT_EQ(status.code(), Code::kInvalidArgument);
  ASSERT_NE(status.message().find("intermediate_states: overlap"), std::string::npos)
      << status.message();
}

// A token was convolved with the token before it in memory instead of its parent, and so was its
// window.
TEST_P(Defects, SiblingsDoNotSeeEachOther) {
  Drafts drafts(make({0, 6}), 1);
  std::vector<std::int32_t> parents = {-1, 0, 0, 2, 1, 3};
  ForwardArgs args = drafts.verify();
  args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {1, 6});
  Call old = drafts.call;
  run(args);
  const std::vector<std::vector<std::int64_t>> lines = {{0},       {0, 1},    {0, 2},
                                                        {0, 2, 3}, {0, 1, 4}, {0, 2, 3, 5}};
  for (std::size_t token = 0; token < lines.size(); ++token) {
    const auto length = static_cast<std::int32_t>(lines[token].size());
    Call path = make({0, length});
    for (std::int64_t i = 0; i < length; ++i) {
      for (std::int64_t c = 0; c < kChannels; ++c) path.x_at(i, c) = old.x_at(lines[token][i], c);
    }
    const Line line{.call = path, .slot = 0};
    for (std::int64_t c = 0; c < kChannels; ++c) {
      ASSERT_EQ(drafts.call.out_at(static_cast<std::int64_t>(token), c), line.output(length - 1, c))
          << "token " << token;
      for (std::int64_t k = 0; k < 3; ++k) {
        ASSERT_EQ(drafts.windows[(token * 3 + static_cast<std::size_t>(k)) * kChannels +
                                 static_cast<std::size_t>(c)],
                  line.input(length - 3 + k, c))
            << "token " << token << ", column " << k;
      }
    }
  }
}

// A step without drafts after one with accepted drafts read the state from its first column, which
// was stale: only verification knew the offset (vllm 40738 and others). An accepted number of 0
// read the column before the first one.
TEST_P(Defects, OffsetsOfAcceptedDraftsHoldInEveryMode) {
  for (const Op op : {Op::kForward, Op::kDecode, Op::kVerify}) {
    Call call = make({0, 1, 2, 3, 4}, {.columns = 6});
    call.flags = {1, 1, 1, 1};
    call.read_offsets = {0, 2, 3, -1};
    ForwardArgs args = call.fill();
    args.op = op;
    if (op == Op::kDecode) {
      args.sequences.query_start_loc.reset();
      args.sequences.has_initial_state.reset();
    }
    Call old = call;
    run(args);
    for (std::int64_t s = 0; s < 4; ++s) {
      const Line line{.call = old,
                      .begin = s,
                      .slot = s,
                      .base = std::max<std::int64_t>(call.read_offsets[s], 0)};
      expect_rows(call, line, 1);
      if (op == Op::kVerify) {
        expect_untouched(call, old, s);
      } else {
        expect_state(call, s, line, 1);
      }
    }
  }
}

// The same where verification leaves its windows in the pool itself, which has a column more for
// each draft but the first: a step without drafts goes on from the accepted ones.
TEST_P(Defects, RollingStatesContinueWithoutDrafts) {
  constexpr std::int64_t kDrafts = 4;
  for (std::int32_t offset = 0; offset < kDrafts; ++offset) {
    for (std::int32_t accepted = 0; accepted < kDrafts; ++accepted) {
      Call call = make({0, kDrafts, 2 * kDrafts}, {.columns = 3 + kDrafts - 1});
      call.read_slots = {3, 1};
      call.read_offsets = {offset, 3 - offset};
      Call old = call;
      ForwardArgs args = call.fill();
      args.op = Op::kVerify;
      args.drafts.intermediate_slots = args.pool.read_slots;
      args.drafts.intermediate_states = args.pool.state;
      args.drafts.intermediate_states->ndim = 4;
      const std::int64_t shape[] = {call.slots, kDrafts, 3, kChannels};
      const std::int64_t* pool = args.pool.state->strides;
      const std::int64_t strides[] = {pool[0], pool[1], pool[1], pool[2]};
      std::copy(std::begin(shape), std::end(shape), args.drafts.intermediate_states->shape);
      std::copy(std::begin(strides), std::end(strides), args.drafts.intermediate_states->strides);
      run(args);
      Call next = make({0, 1, 2}, {.columns = call.columns});
      next.read_slots = call.read_slots;
      next.read_offsets = {accepted, 3 - accepted};
      next.state = call.state;
      Call before = next;
      decode(next);
      for (std::int64_t s = 0; s < 2; ++s) {
        const std::int64_t slot = call.read_slots[s];
        const Line drafts{
            .call = old, .begin = s * kDrafts, .slot = slot, .base = call.read_offsets[s]};
        expect_rows(call, drafts, kDrafts);
        expect_state(before, slot, drafts, next.read_offsets[s] + 1, next.read_offsets[s]);
        const Line line{.call = before, .begin = s, .slot = slot, .base = next.read_offsets[s]};
        expect_rows(next, line, 1);
        expect_state(next, slot, line, 1);
      }
    }
  }
}

// The state of ragged drafts was taken to be as long as the longest of them, and not written in
// full for the others (vllm, without accepted numbers).
TEST_P(Defects, RaggedDraftsWithUpdateStateKeepTheWholeState) {
  Call call = make({0, 1, 6, 8});
  call.flags = {1, 1, 1};
  call.args.op = Op::kVerify;
  call.args.drafts.update_state = true;
  Call old = call;
  run(call);
  for (std::int64_t s = 0; s < 3; ++s) {
    const std::int64_t begin = call.bounds[s], tokens = call.bounds[s + 1] - begin;
    expect_rows(call, {.call = old, .begin = begin, .slot = s}, tokens);
    expect_state(call, s, {.call = old, .begin = begin, .slot = s}, tokens);
  }
}

// Rows that fill up a captured commit kept the slots of an earlier step (sglang 32555): nothing is
// accepted, so nothing is written, to either set of slots.
TEST_P(Defects, PaddedRowsOfACommitWriteNothing) {
  for (const bool packed : {false, true}) {
    Drafts drafts(make({0, 2, 4, 6}, {.slots = 8}), 3);
    drafts.accepted = {1, -1, -2};
    drafts.call.read_slots = {2, 4, 5};
    std::vector<std::int32_t> tracked = {3, 6, -1};
    Call old = drafts.call;
    run(drafts.verify());
    CommitArgs args = drafts.commit();
    if (packed) {
      args.intermediate_states =
          TensorRef::contiguous(drafts.windows.data(), DType::kF32, {1, 6, 3, kChannels});
      args.query_start_loc = TensorRef::contiguous(drafts.call.bounds.data(), DType::kI32, {4});
    }
    args.second_slots = TensorRef::contiguous(tracked.data(), DType::kI32, {3});
    const Status status = GetParam().commit(args);
    ASSERT_TRUE(status.ok()) << status.message();
    for (const std::int64_t slot : {2, 3}) {
      expect_state(drafts.call, slot, {.call = old, .begin = 0, .slot = 2}, 2);
    }
    for (const std::int64_t slot : {0, 1, 4, 5, 6, 7}) expect_untouched(drafts.call, old, slot);
  }
}

}  // namespace shortconv::test
