// What the CUDA backend decides about a commit before any GPU is asked: 16 bytes or one element a
// thread, and a grid that covers every window once.
#include <gtest/gtest.h>

#include "cuda/commit.hpp"
#include "op/commit.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::cuda {
namespace {

/// Windows one after the other and a pool, channel-innermost, of bf16.
CommitProblem dense_commit(std::int64_t layers, std::int64_t sequences, std::int64_t channels) {
  CommitProblem p;
  p.device = {DeviceType::kCuda, 0};
  p.dtype = DType::kBF16;
  p.width = 4;
  p.layers = layers;
  p.sequences = sequences;
  p.tokens = 5;
  p.channels = channels;
  p.slots = 100;
  p.state_columns = 3;
  p.windows_channel = p.state_channel = 1;
  p.windows_row = p.state_column = channels;
  p.windows_token = p.state_slot = 3 * channels;
  p.windows_sequence = 5 * p.windows_token;
  p.windows_layer = sequences * p.windows_sequence;
  p.state_layer = p.slots * p.state_slot;
  return p;
}

/// The same with the window innermost: channels x window without gaps.
CommitProblem window_innermost(std::int64_t channels) {
  CommitProblem p = dense_commit(2, 3, channels);
  p.windows_channel = p.state_channel = 3;
  p.windows_row = p.state_column = 1;
  return p;
}

CommitChoice chosen(const CommitProblem& p) {
  CommitChoice choice;
  const Status status = select_commit(with_adjacent_channels(p), choice);
  EXPECT_TRUE(status.ok()) << status.message();
  return choice;
}

bool has_vectors(const CommitProblem& p) { return chosen(p).vectors.blocks > 0; }

TEST(CudaSelectCommit, EveryTypeAndWidthOfTheListsMovesVectors) {
  for (const auto& [dtype, name] : capabilities().dtypes) {
    for (const int width : capabilities().widths) {
      CommitProblem p = dense_commit(2, 3, 512);
      p.dtype = dtype;
      p.width = width;
      EXPECT_TRUE(has_vectors(p)) << name << ", width " << width;
    }
  }
}

TEST(CudaSelectCommit, StridesThatBreakVectorsMoveElements) {
  for (std::int64_t CommitProblem::* stride :
       {&CommitProblem::windows_layer, &CommitProblem::windows_sequence,
        &CommitProblem::windows_token, &CommitProblem::windows_row, &CommitProblem::state_layer,
        &CommitProblem::state_slot, &CommitProblem::state_column}) {
    CommitProblem p = dense_commit(2, 3, 512);
    EXPECT_TRUE(has_vectors(p));
    p.*stride += 4;  // 8 bytes
    EXPECT_FALSE(has_vectors(p));
    EXPECT_GT(chosen(p).elements.blocks, 0);
  }
  for (std::int64_t CommitProblem::* stride :
       {&CommitProblem::windows_channel, &CommitProblem::state_channel}) {
    CommitProblem p = dense_commit(2, 3, 512);
    p.*stride = 2;
    EXPECT_FALSE(has_vectors(p));
  }
  EXPECT_FALSE(has_vectors(dense_commit(2, 3, 516)));
}

TEST(CudaSelectCommit, StridesThatAreNeverTakenMayBeAnything) {
  CommitProblem p = dense_commit(1, 1, 512);
  p.tokens = p.slots = p.state_columns = 1;
  p.width = 2;
  p.windows_layer = p.windows_sequence = p.windows_token = p.windows_row = 1;
  p.state_layer = p.state_slot = p.state_column = 1;
  EXPECT_TRUE(has_vectors(p));
}

TEST(CudaSelectCommit, WindowsWithoutGapsAreRowsOfVectors) {
  EXPECT_TRUE(has_vectors(window_innermost(512)));
  EXPECT_FALSE(has_vectors(window_innermost(516)));
  CommitProblem wide = window_innermost(512);  // gaps between one channel's window and the next
  wide.state_columns = wide.state_channel = 5;
  EXPECT_FALSE(has_vectors(wide));
  CommitProblem one_side = window_innermost(512);
  one_side.windows_channel = 1;
  one_side.windows_row = 512;
  EXPECT_FALSE(has_vectors(one_side));
}

TEST(CudaSelectCommit, AdjacentChannelsAreTheSameElementsInAnotherOrder) {
  const CommitProblem p = with_adjacent_channels(window_innermost(512));
  EXPECT_EQ(p.windows_channel, 1);
  EXPECT_EQ(p.state_channel, 1);
  EXPECT_EQ(p.windows_row, 512);
  EXPECT_EQ(p.state_column, 512);
  CommitProblem back = p;
  back.windows_channel = back.state_channel = 3;
  back.windows_row = back.state_column = 1;
  EXPECT_EQ(back, window_innermost(512)) << "nothing else has changed";
  const CommitProblem as_it_was = dense_commit(2, 3, 512);
  EXPECT_EQ(with_adjacent_channels(as_it_was), as_it_was);
}

TEST(CudaSelectCommit, GridsCoverWindowsAndChannelsFromShapesAlone) {
  for (const std::int64_t channels : {8, 1016, 1024, 1032, 8192}) {
    for (const std::int64_t sequences : {1, 7, 64}) {
      const CommitChoice choice = chosen(dense_commit(36, sequences, channels));
      for (const CommitLaunch* launch : {&choice.vectors, &choice.elements}) {
        const std::int64_t unit = launch == &choice.vectors ? 8 : 1;
        EXPECT_EQ(launch->grid.units * unit, channels);
        EXPECT_EQ(launch->grid.windows_step, unit * 2);
        EXPECT_EQ(launch->grid.state_step, unit * 2);
        const std::int64_t across = launch->grid.unit_blocks.divisor();
        EXPECT_GE(across * kCommitThreads, launch->grid.units);
        EXPECT_LT((across - 1) * kCommitThreads, launch->grid.units);
        EXPECT_EQ(launch->grid.sequences.divisor(), static_cast<std::uint32_t>(sequences));
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
  const CommitChoice choice = chosen(dense_commit(2, 3, 512));
  alignas(16) static std::uint16_t memory[16];
  const auto vectors = [&](int windows, int state) {
    return &launch_for(choice, {.windows = memory + windows, .state = memory + state}) ==
           &choice.vectors;
  };
  EXPECT_TRUE(vectors(0, 8));
  EXPECT_FALSE(vectors(4, 8));
  EXPECT_FALSE(vectors(0, 1));
}

TEST(CudaSelectCommit, RefusesGridsThatAGpuCannotHave) {
  CommitProblem p = dense_commit(1 << 20, 1 << 20, 8);
  CommitChoice choice;
  const Status status = select_commit(p, choice);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(status.message().find("windows: needs 1099511627776 blocks of the commit kernel"),
            std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace shortconv::cuda
