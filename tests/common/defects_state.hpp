// Known defects: states, slots, snapshots.
#pragma once

#include <array>
#include <limits>

#include "defects.hpp"
#include "shortconv/prepare.hpp"

namespace shortconv::test {

// A chunk of fewer than width - 1 tokens wrote its state to the slot it had read, which other
// sequences share (vllm 56196).
TEST_P(Defects, ShortChunksLeaveASharedPrefixAlone) {
  for (const std::int64_t width : widths()) {
    for (std::int32_t length = 1; length < std::min<std::int64_t>(width, 9); ++length) {
      Call call = make({0, length, 2 * length}, {.width = width});
      call.read_slots = {3, 3};
      call.write_slots = {0, 1};
      call.flags = {1, 1};
      Call old = call;
      run(call);
      for (const std::int32_t s : {0, 1}) {
        const Line line{.call = old, .begin = s * length, .slot = 3};
        expect_rows(call, line, length);
        expect_state(call, s, line, length);
      }
      expect_untouched(call, old, 3);
      expect_untouched(call, old, 2);
    }
  }
}

// The state after a short first chunk held what the slot's last owner had left, instead of zeros.
TEST_P(Defects, ShortFirstChunksKeepNothingOfARecycledSlot) {
  for (const std::int64_t width : widths()) {
    Call call = make({0, 1}, {.width = width});
    call.flags = {0};
    std::fill(call.state.begin(), call.state.end(), std::numeric_limits<float>::quiet_NaN());
    Call old = call;
    run(call);
    expect_rows(call, {.call = old}, 1);
    expect_state(call, 0, {.call = old}, 1);
  }
}

// The state after a short resumed chunk had zeros where the older inputs belong
// (causal-conv1d-mojo).
TEST_P(Defects, ShortResumedChunksKeepTheOlderInputs) {
  for (const std::int64_t width : widths()) {
    Call call = make({0, 1}, {.width = width});
    call.flags = {1};
    Call old = call;
    run(call);
    expect_rows(call, {.call = old, .slot = 0}, 1);
    expect_state(call, 0, {.call = old, .slot = 0}, 1);
  }
}

// Masking by a product let NaN of a slot that is not resumed from into the sequence.
TEST_P(Defects, SlotsOfNewSequencesAreNotLookedAt) {
  Call call = make({0, 2, 30});
  call.flags = {0, 0};
  std::fill(call.state.begin(), call.state.end(), std::numeric_limits<float>::infinity());
  Call old = call;
  run(call);
  expect_rows(call, {.call = old}, 2);
  expect_rows(call, {.call = old, .begin = 2}, 28);
}

// A sequence without tokens had its slot filled with garbage; such sequences fill the places of a
// captured batch (causal-conv1d's lineage in sglang).
TEST_P(Defects, SequencesWithoutTokensLeaveTheirSlotAlone) {
  Call call = make({0, 0, 3, 3, 12, 12, 12}, {.slots = 8});
  call.flags = {1, 1, 0, 0, 1, 0};
  Call old = call;
  run(call);
  for (const std::int64_t slot : {0, 2, 4, 5, 6, 7}) expect_untouched(call, old, slot);
  expect_rows(call, {.call = old, .slot = 1}, 3);
  expect_state(call, 1, {.call = old, .slot = 1}, 3);
  expect_rows(call, {.call = old, .begin = 3}, 9);
  expect_state(call, 3, {.call = old, .begin = 3}, 9);
}

// Without a barrier, or with the first and the last part of a sequence in different blocks, a state
// was overwritten before all of it had been read (sglang 16899, tensorrt-llm 17522, vllm 50226).
TEST_P(Defects, StatesAreReadBeforeTheyAreOverwritten) {
  for (const std::int64_t channels : {64, 4096}) {
    for (const std::int32_t length : {33, 65, 249, 1025}) {
      if (channels == 4096 && length > 249) continue;
      Call call = make({0, length, 2 * length, 2 * length + 1}, {.channels = channels});
      call.flags = {1, 1, 1};
      call.read_slots = {2, 0, 1};
      call.args.options.threads = 3;
      Call elsewhere = call;
      elsewhere.slots = 8;
      elsewhere.state.resize(2 * call.state.size(), kPoison);
      elsewhere.write_slots = {6, 4, 5};
      Call old = call;
      run(elsewhere);
      run(call);
      ASSERT_TRUE(call.out == elsewhere.out) << length << " x " << channels;
      ASSERT_TRUE(std::equal(old.state.begin(), old.state.end(), elsewhere.state.begin()));
      const auto written = elsewhere.state.begin() + static_cast<std::ptrdiff_t>(old.state.size());
      const auto three_slots = call.state.end() - 3 * channels;
      ASSERT_TRUE(std::equal(call.state.begin(), three_slots, written));
      expect_rows(call, {.call = old, .begin = 0, .slot = 2}, 4);
      expect_state(call, 2, {.call = old, .begin = 0, .slot = 2}, length);
    }
  }
}

// Kernels assumed adjacent windows or dense slots: strided pools were garbled, or the write was
// dropped (sglang's Mamba2 and GDN backends work around it).
TEST_P(Defects, PoolsOfAnyStridesAreReadAndWrittenWhereTheyAre) {
  struct Layout {
    std::int64_t slot, column, channel;
  };
  for (const Layout& layout :
       {Layout{1000, kChannels, 1}, {1000, 1, 3}, {1000, 1, 7}, {200, 45, 1}, {997, 2, 13}}) {
    for (const bool one_token : {false, true}) {
      Call call = make(one_token ? std::vector<std::int32_t>{0, 1, 2}
                                 : std::vector<std::int32_t>{0, 2, 21});
      call.read_slots = {2, 1};
      call.flags = {1, 1};
      Call old = call;  // its pool is dense
      std::vector<float> pages(5000, kPoison), expected;
      const auto at = [&](std::vector<float>& memory, std::int64_t slot, std::int64_t k,
                          std::int64_t c) -> float& {
        return memory[static_cast<std::size_t>(slot * layout.slot + k * layout.column +
                                               c * layout.channel)];
      };
      const auto fill = [&](std::vector<float>& memory, Call& from) {
        for (std::int64_t slot = 0; slot < 4; ++slot) {
          for (std::int64_t k = 0; k < 3; ++k) {
            for (std::int64_t c = 0; c < kChannels; ++c) {
              at(memory, slot, k, c) = from.state_at(slot, k, c);
            }
          }
        }
      };
      fill(pages, old);
      expected = pages;
      ForwardArgs args = call.fill();
      args.pool.state->data = pages.data();
      args.pool.state->strides[0] = layout.slot;
      args.pool.state->strides[1] = layout.column;
      args.pool.state->strides[2] = layout.channel;
      if (one_token) {
        args.op = Op::kDecode;
        args.sequences.query_start_loc.reset();
        args.sequences.has_initial_state.reset();
      }
      run(args);
      for (std::int64_t s = 0; s < 2; ++s) {
        const std::int64_t begin = call.bounds[s], end = call.bounds[s + 1];
        const Line line{.call = old, .begin = begin, .slot = call.read_slots[s]};
        expect_rows(call, line, end - begin);
        for (std::int64_t k = 0; k < 3; ++k) {
          for (std::int64_t c = 0; c < kChannels; ++c) {
            at(expected, call.read_slots[s], k, c) = line.input(end - begin - 3 + k, c);
          }
        }
      }
      ASSERT_TRUE(pages == expected) << "slot stride " << layout.slot << ", column stride "
                                     << layout.column << ", channel stride " << layout.channel;
    }
  }
}

// In a pool with more than width - 1 columns libraries disagree about which ones the history is,
// and one of them about itself (sglang 38622).
TEST_P(Defects, OversizePoolsKeepTheHistoryInTheColumnsThatAreNamed) {
  for (const std::int64_t base : {0, 2, 5}) {
    for (const bool one_token : {false, true}) {
      Call call =
          make(one_token ? std::vector<std::int32_t>{0, 1, 2} : std::vector<std::int32_t>{0, 2, 19},
               {.columns = 8});
      call.args.pool.base_column = base;
      call.flags = {1, 1};
      Call old = call;
      one_token ? decode(call) : run(call);
      for (std::int64_t s = 0; s < 2; ++s) {
        const std::int64_t begin = call.bounds[s], tokens = call.bounds[s + 1] - begin;
        const Line line{.call = old, .begin = begin, .slot = s, .base = base};
        expect_rows(call, line, tokens);
        expect_state(call, s, line, tokens, base);
        for (std::int64_t column = 0; column < 8; ++column) {
          if (column >= base && column < base + 3) continue;
          ASSERT_EQ(call.state_at(s, column, 5), old.state_at(s, column, 5)) << column;
        }
      }
    }
  }
}

// The positions of circular states were accepted and ignored (sglang 38622).
TEST_P(Defects, CacheSeqlensOfCircularBuffersAreUsed) {
  for (const std::int32_t position : {0, 1, 4, 5, 6, 1000003}) {
    Call call = make({0, 1}, {.columns = 5});
    ForwardArgs args = call.fill();
    args.op = Op::kDecode;
    args.sequences.query_start_loc.reset();
    std::vector<std::int32_t> positions = {position};
    args.pool.cache_seqlens = TensorRef::contiguous(positions.data(), DType::kI32, {1});
    Call old = call;
    run(args);
    const auto column = [&](std::int64_t number) { return (position + number + 5) % 5; };
    for (std::int64_t c = 0; c < call.channels; ++c) {
      double sum = 0;
      for (std::int64_t tap = 0; tap < 4; ++tap) {
        const float v = tap == 3 ? old.x_at(0, c) : old.state_at(0, column(tap - 3), c);
        sum += call.weight[static_cast<std::size_t>(c * 4 + tap)] * static_cast<double>(v);
      }
      ASSERT_EQ(call.out_at(0, c), static_cast<float>(sum)) << "position " << position;
      for (std::int64_t k = 0; k < 5; ++k) {
        const float expected = k == column(0) ? old.x_at(0, c) : old.state_at(0, k, c);
        ASSERT_EQ(call.state_at(0, k, c), expected) << "position " << position << ", column " << k;
      }
    }
  }
}

// Padding was recognised by one number alone, and other negative slots were used (vllm 34685).
TEST_P(Defects, AnyNegativeSlotIsPadding) {
  constexpr std::int32_t kLeast = std::numeric_limits<std::int32_t>::min();
  Call call = make({0, 3, 4, 12, 13});
  call.read_slots = {-2, -1, kLeast, 3};
  call.flags = {1, 1, 1, 1};
  Call old = call;
  run(call);
  for (std::int64_t row = 0; row < 12; ++row) expect_value(call, row, 0.0f);
  for (const std::int64_t slot : {0, 1, 2}) expect_untouched(call, old, slot);
  expect_rows(call, {.call = old, .begin = 12, .slot = 3}, 1);
}

// Padded rows of a captured decode all wrote to slot 0 (vllm 52364).
TEST_P(Defects, TheNullSlotIsNeitherReadNorWritten) {
  for (const bool one_token : {false, true}) {
    Call call = make({0, 1, 2, 3, 4});
    call.read_slots = {2, 0, 0, 0};
    call.flags = {1, 1, 1, 1};
    call.args.pool.null_slot = 0;
    std::fill(call.state.begin(), call.state.begin() + 3 * kChannels,
              std::numeric_limits<float>::infinity());
    Call old = call;
    one_token ? decode(call) : run(call);
    expect_rows(call, {.call = old, .slot = 2}, 1);
    for (const std::int64_t row : {1, 2, 3}) expect_value(call, row, 0.0f);
    for (const std::int64_t slot : {0, 1, 3}) expect_untouched(call, old, slot);
  }
}

// The batched form wrote final states to the slots 0, 1, 2 and so on, whatever the slots were, and
// ignored padding (sglang's CPU operator).
TEST_P(Defects, RowsOfADenseBatchGoToTheirOwnSlots) {
  Call call = make({0, 5, 10, 15}, {.slots = 6});
  call.read_slots = {5, -1, 1};
  call.flags = {1, 1, 0};
  ForwardArgs args = call.fill();
  args.sequences.query_start_loc.reset();
  for (TensorRef* tensor : {&args.x, &args.out}) {
    *tensor = TensorRef::contiguous(tensor->data, DType::kF32, {3, 5, kChannels});
  }
  Call old = call;
  run(args);
  expect_rows(call, {.call = old, .begin = 0, .slot = 5}, 5);
  expect_state(call, 5, {.call = old, .begin = 0, .slot = 5}, 5);
  expect_rows(call, {.call = old, .begin = 10}, 5);
  expect_state(call, 1, {.call = old, .begin = 10}, 5);
  for (const std::int64_t slot : {0, 2, 3, 4}) expect_untouched(call, old, slot);
}

// A dense batch with initial states was computed as if they were zeros (fla, backend 'cuda').
TEST_P(Defects, DenseBatchesStartFromTheirInitialStates) {
  Call call = make({0, 6, 12});
  ForwardArgs args = call.fill();
  args.sequences.query_start_loc.reset();
  args.sequences.initial_state = InitialState::kAll;
  for (TensorRef* tensor : {&args.x, &args.out}) {
    *tensor = TensorRef::contiguous(tensor->data, DType::kF32, {2, 6, kChannels});
  }
  Call old = call;
  run(args);
  for (const std::int64_t s : {0, 1}) {
    expect_rows(call, {.call = old, .begin = 6 * s, .slot = s}, 6);
  }
}

// Trying variants out on the caller's tensors advanced the states (fla 860, 893).
TEST_P(Defects, PlanningTouchesNothing) {
  Call call = make({0, 3, 9});
  call.flags = {1, 1};
  call.fill();
  Call old = call;
  for (int repeat = 0; repeat < 3; ++repeat) {
    Problem problem;
    Plan plan;
    ASSERT_TRUE(make_problem(call.args, problem).ok());
    ASSERT_TRUE(make_plan(problem, plan).ok());
  }
  ASSERT_TRUE(call.state == old.state);
  ASSERT_TRUE(call.out == old.out);
  run(call);
  expect_rows(call, {.call = old, .slot = 0}, 3);
}

// The window of a boundary less than width - 1 tokens into a chunk was taken from the rows before
// it, which are another sequence's, or cut off at the first row (vllm's block states, sglang's
// tracked windows).
TEST_P(Defects, SnapshotsEarlyInAChunkReachBackIntoTheState) {
  for (const std::int64_t width : widths()) {
    Call call = make({0, 20, 40}, {.width = width, .slots = 8});
    call.flags = {1, 1};
    std::vector<std::int32_t> snapshots;
    const std::int32_t early = std::min<std::int32_t>(static_cast<std::int32_t>(width) - 1, 3);
    for (std::int32_t token = 0; token < early; ++token) {
      snapshots.insert(snapshots.end(), {0, token, 2 + token, 1, token, 5 + token});
    }
    take(call, snapshots);
    Call old = call;
    run(call);
    for (std::int64_t token = 0; token < early; ++token) {
      expect_state(call, 2 + token, {.call = old, .begin = 0, .slot = 0}, token);
      expect_state(call, 5 + token, {.call = old, .begin = 20, .slot = 1}, token);
    }
  }
}

// The same for a sequence that begins: zeros come before its first token, not its slot.
TEST_P(Defects, SnapshotsEarlyInANewSequenceReachBackIntoZeros) {
  Call call = make({0, 9, 18}, {.slots = 6});
  call.flags = {0, 0};
  std::vector<std::int32_t> snapshots = {1, 0, 2, 1, 1, 3, 1, 2, 4};
  take(call, snapshots);
  Call old = call;
  run(call);
  for (const std::int64_t token : {0, 1, 2}) {
    expect_state(call, 2 + token, {.call = old, .begin = 9}, token);
  }
}

// A boundary was stored by the block of tokens that begins there: a chunk too short to have one, or
// one that ends there, never stored it (vllm's block states).
TEST_P(Defects, ChunksTooShortToOwnASnapshotTakeIt) {
  for (std::int32_t length = 1; length <= 9; ++length) {
    Call call = make({0, 7, 7 + length}, {.slots = 16});
    call.flags = {1, 1};
    std::vector<std::int32_t> snapshots;
    for (std::int32_t token = 1; token <= length; ++token) {
      snapshots.insert(snapshots.end(), {1, token, 3 + token});
    }
    take(call, snapshots);
    Call old = call;
    run(call);
    for (std::int64_t token = 1; token <= length; ++token) {
      expect_state(call, 3 + token, {.call = old, .begin = 7, .slot = 1}, token);
    }
    expect_untouched(call, old, 3);
    expect_untouched(call, old, 4 + length);
  }
}

// The position of a boundary was counted in blocks of the packed batch instead of the sequence
// (sglang 31833).
TEST_P(Defects, SnapshotsCountFromTheFirstTokenOfTheirSequence) {
  Call call = make({0, 5, 42, 111, 130}, {.slots = 12});
  call.flags = {1, 0, 1, 0};
  std::vector<std::int32_t> snapshots = {0, 4, 4, 1, 32, 5, 2, 64, 6, 2, 32, 7, 3, 16, 8, 3, 8, 9};
  take(call, snapshots);
  Call old = call;
  run(call);
  for (std::size_t i = 0; i < snapshots.size(); i += 3) {
    const std::int32_t s = snapshots[i];
    const Line line{.call = old, .begin = call.bounds[s], .slot = call.flags[s] != 0 ? s : -1};
    expect_state(call, snapshots[i + 2], line, snapshots[i + 1]);
  }
  for (const std::int64_t slot : {10, 11}) expect_untouched(call, old, slot);
}

// A captured step read the rest of a buffer that was made for more sequences, and overwrote the
// slots that an earlier step had named there (sglang 32555).
TEST_P(Defects, RowsOfAListThatNameNoSequenceAreIgnored) {
  Call call = make({0, 10, 10}, {.slots = 8});
  call.read_slots = {0, -1};
  call.flags = {1, 1};
  std::vector<std::int32_t> snapshots = {0, 8,  5, -1, 0, -1, 1, 0, 6, 2, 4,
                                         7, 99, 4, 3,  0, 11, 2, 0, 4, -1};
  take(call, snapshots);
  Call old = call;
  run(call);
  expect_state(call, 5, {.call = old, .slot = 0}, 8);
  for (const std::int64_t slot : {1, 2, 3, 4, 6, 7}) expect_untouched(call, old, slot);
}

// The states of all blocks that a step fills, over several steps of any length, are those of a run
// that ends there: tables of an engine, without any length on the host.
TEST_P(Defects, BlockStatesAreThoseOfARunThatEndsThere) {
  constexpr std::int64_t kBlock = 4, kBlocks = 8;
  const std::vector<std::vector<std::int32_t>> steps = {
      {0, 3, 12}, {0, 1, 2}, {0, 8, 9}, {0, 0, 7}, {0, 9, 10}};
  std::vector<std::int32_t> computed = {0, 0}, table;
  for (std::int32_t i = 0; i < 2 * kBlocks; ++i) table.push_back(2 + i);  // 0, 1: running states
  std::vector<std::vector<float>> rows(2);                                // of each sequence
  std::vector<float> pool(static_cast<std::size_t>(18 * 3 * kChannels), kPoison);
  for (const auto& bounds : steps) {
    Call call = make(bounds, {.slots = 18});
    call.state = pool;
    for (float& value : call.x) value += 3.0f * static_cast<float>(computed[0] + computed[1]);
    call.flags = {computed[0] > 0, computed[1] > 0};
    std::vector<std::int32_t> snapshots(static_cast<std::size_t>(3 * (call.tokens / kBlock + 2)));
    take(call, snapshots);
    BlockSnapshotsArgs prepare;
    prepare.query_start_loc = *call.fill().sequences.query_start_loc;
    prepare.num_computed_tokens = TensorRef::contiguous(computed.data(), DType::kI32, {2});
    prepare.block_slots = TensorRef::contiguous(table.data(), DType::kI32, {2, kBlocks});
    prepare.tokens = call.tokens;
    prepare.block_size = kBlock;
    prepare.snapshots = *call.args.pool.snapshots;
    ASSERT_TRUE(block_snapshots(prepare).ok());
    run(call);
    pool = call.state;
    for (std::size_t s = 0; s < 2; ++s) {
      rows[s].insert(rows[s].end(), call.x.begin() + bounds[s] * kChannels,
                     call.x.begin() + bounds[s + 1] * kChannels);
      computed[s] += bounds[s + 1] - bounds[s];
    }
  }
  for (std::int64_t s = 0; s < 2; ++s) {
    for (std::int64_t block = 0; block < kBlocks; ++block) {
      const std::int64_t end = (block + 1) * kBlock, slot = table[s * kBlocks + block];
      for (std::int64_t i = 0; i < 3 * kChannels;
           ++i) {  // its elements lie as the rows before `end` do
        const float expected = end <= computed[s]
                                   ? rows[s][static_cast<std::size_t>((end - 3) * kChannels + i)]
                                   : kPoison;
        ASSERT_EQ(pool[static_cast<std::size_t>(slot * 3 * kChannels + i)], expected)
            << "sequence " << s << ", block " << block;
      }
    }
  }
}

}  // namespace shortconv::test
