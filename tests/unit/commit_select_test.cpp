// What the CUDA backend decides about a commit before any GPU is asked: 16 bytes or one element a
// thread, and a grid that covers every window once.
#include <gtest/gtest.h>

#include "cuda/host/commit.hpp"
#include "op/commit.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::cuda {
namespace {

/// Windows one after the other and a pool, channel-innermost, of bf16.
CommitProblem dense_commit(std::int64_t layers, std::int64_t sequences, std::int64_t channels) {
  CommitProblem p;
  p.device = {DeviceType::kCuda, 0};
  p.state.dtype = DType::kBF16;
  p.width = 4;
  p.layers = layers;
  p.sequences = sequences;
  p.tokens = 5;
  p.channels = channels;
  p.slot_count = 100;
  p.state_columns = 3;
  p.intermediate_states.channel_stride = p.state.channel_stride = 1;
  p.intermediate_states.column_stride = p.state.column_stride = channels;
  p.intermediate_states.token_stride = p.state.slot_stride = 3 * channels;
  p.intermediate_states.sequence_stride = 5 * p.intermediate_states.token_stride;
  p.intermediate_states.layer_stride = sequences * p.intermediate_states.sequence_stride;
  p.state.layer_stride = p.slot_count * p.state.slot_stride;
  return p;
}

/// The same with the window innermost: channels x window without gaps.
CommitProblem window_innermost(std::int64_t channels) {
  CommitProblem p = dense_commit(2, 3, channels);
  p.intermediate_states.channel_stride = p.state.channel_stride = 3;
  p.intermediate_states.column_stride = p.state.column_stride = 1;
  return p;
}

CommitConfig chosen(const CommitProblem& p) {
  CommitConfig choice;
  const Status status = select_commit(with_adjacent_channels(p), choice);
  EXPECT_TRUE(status.ok()) << status.message();
  return choice;
}

bool has_vectors(const CommitProblem& p) { return chosen(p).vectors.blocks > 0; }

TEST(CudaSelectCommit, EveryTypeAndWidthOfTheListsMovesVectors) {
  for (const auto& [dtype, name] : capabilities().dtypes) {
    for (const int width : capabilities().widths) {
      CommitProblem p = dense_commit(2, 3, 512);
      p.state.dtype = dtype;
      p.width = width;
      EXPECT_TRUE(has_vectors(p)) << name << ", width " << width;
    }
  }
}

TEST(CudaSelectCommit, StridesThatBreakVectorsMoveElements) {
  const auto expect_elements = [](auto&& change) {
    CommitProblem p = dense_commit(2, 3, 512);
    EXPECT_TRUE(has_vectors(p));
    change(p.intermediate_states, p.state);
    EXPECT_FALSE(has_vectors(p));
    EXPECT_GT(chosen(p).elements.blocks, 0);
  };
  constexpr std::int64_t kHalf = 4;  // 8 bytes
  expect_elements([](auto& from, auto&) { from.layer_stride += kHalf; });
  expect_elements([](auto& from, auto&) { from.sequence_stride += kHalf; });
  expect_elements([](auto& from, auto&) { from.token_stride += kHalf; });
  expect_elements([](auto& from, auto&) { from.column_stride += kHalf; });
  expect_elements([](auto&, auto& state) { state.layer_stride += kHalf; });
  expect_elements([](auto&, auto& state) { state.slot_stride += kHalf; });
  expect_elements([](auto&, auto& state) { state.column_stride += kHalf; });
  expect_elements([](auto& from, auto&) { from.channel_stride = 2; });
  expect_elements([](auto&, auto& state) { state.channel_stride = 2; });
  EXPECT_FALSE(has_vectors(dense_commit(2, 3, 516)));
}

TEST(CudaSelectCommit, StridesThatAreNeverTakenMayBeAnything) {
  CommitProblem p = dense_commit(1, 1, 512);
  p.tokens = p.slot_count = p.state_columns = 1;
  p.width = 2;
  p.intermediate_states.layer_stride = p.intermediate_states.sequence_stride =
      p.intermediate_states.token_stride = p.intermediate_states.column_stride = 1;
  p.state.layer_stride = p.state.slot_stride = p.state.column_stride = 1;
  EXPECT_TRUE(has_vectors(p));
}

TEST(CudaSelectCommit, IntermediateStatesWithoutGapsAreRowsOfVectors) {
  EXPECT_TRUE(has_vectors(window_innermost(512)));
  EXPECT_FALSE(has_vectors(window_innermost(516)));
  CommitProblem wide = window_innermost(512);  // gaps between one channel's window and the next
  wide.state_columns = wide.state.channel_stride = 5;
  EXPECT_FALSE(has_vectors(wide));
  CommitProblem one_side = window_innermost(512);
  one_side.intermediate_states.channel_stride = 1;
  one_side.intermediate_states.column_stride = 512;
  EXPECT_FALSE(has_vectors(one_side));
}

TEST(CudaSelectCommit, AdjacentChannelsAreTheSameElementsInAnotherOrder) {
  const CommitProblem p = with_adjacent_channels(window_innermost(512));
  EXPECT_EQ(p.intermediate_states.channel_stride, 1);
  EXPECT_EQ(p.state.channel_stride, 1);
  EXPECT_EQ(p.intermediate_states.column_stride, 512);
  EXPECT_EQ(p.state.column_stride, 512);
  CommitProblem back = p;
  back.intermediate_states.channel_stride = back.state.channel_stride = 3;
  back.intermediate_states.column_stride = back.state.column_stride = 1;
  EXPECT_EQ(back, window_innermost(512)) << "nothing else has changed";
  const CommitProblem as_it_was = dense_commit(2, 3, 512);
  EXPECT_EQ(with_adjacent_channels(as_it_was), as_it_was);
}

TEST(CudaSelectCommit, GridsCoverIntermediateStatesAndChannelsFromShapesAlone) {
  for (const std::int64_t channels : {8, 1016, 1024, 1032, 8192}) {
    for (const std::int64_t sequences : {1, 7, 64}) {
      const CommitConfig choice = chosen(dense_commit(36, sequences, channels));
      for (const CommitLaunchConfig* launch : {&choice.vectors, &choice.elements}) {
        const std::int64_t unit = launch == &choice.vectors ? 8 : 1;
        EXPECT_EQ(launch->params.units * unit, channels);
        EXPECT_EQ(launch->params.intermediate_stride_bytes, unit * 2);
        EXPECT_EQ(launch->params.state_stride_bytes, unit * 2);
        const std::int64_t across = launch->params.unit_blocks.divisor();
        EXPECT_GE(across * kCommitThreads, launch->params.units);
        EXPECT_LT((across - 1) * kCommitThreads, launch->params.units);
        EXPECT_EQ(launch->params.sequences.divisor(), static_cast<std::uint32_t>(sequences));
        EXPECT_EQ(launch->blocks, 36 * sequences * across);
        EXPECT_EQ(launch->strips, 1);
      }
    }
  }
  for (const auto& [width, strips] : {std::pair{2, 1}, {9, 1}, {10, 2}, {17, 2}, {64, 8}}) {
    CommitProblem p = dense_commit(1, 1, 8);
    p.width = width;
    EXPECT_EQ(chosen(p).elements.strips, strips) << "width " << width;
  }
  EXPECT_EQ(chosen(dense_commit(0, 5, 8)).elements.blocks, 0);
  EXPECT_EQ(chosen(dense_commit(5, 0, 8)).elements.blocks, 0);
  EXPECT_EQ(chosen(dense_commit(5, 5, 0)).elements.blocks, 0);
}

TEST(CudaSelectCommit, AddressesThatAreNotAlignedMoveElements) {
  const CommitConfig choice = chosen(dense_commit(2, 3, 512));
  alignas(16) static std::uint16_t memory[16];
  const auto vectors = [&](int windows, int state) {
    CommitPointers at;
    at.intermediate_states = memory + windows;
    at.state = memory + state;
    return &launch_for(choice, at) == &choice.vectors;
  };
  EXPECT_TRUE(vectors(0, 8));
  EXPECT_FALSE(vectors(4, 8));
  EXPECT_FALSE(vectors(0, 1));
}

TEST(CudaSelectCommit, RefusesGridsThatAGpuCannotHave) {
  CommitProblem p = dense_commit(1 << 20, 1 << 20, 8);
  CommitConfig choice;
  const Status status = select_commit(p, choice);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(
      status.message().find("intermediate_states: needs 1099511627776 blocks of the commit kernel"),
      std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace shortconv::cuda
