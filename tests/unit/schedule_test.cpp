#include "shortconv/schedule.hpp"

#include <gtest/gtest.h>

namespace shortconv {
namespace {

using Ints = std::vector<std::int32_t>;

// The worked example of SGLang PR 10552.
const std::vector<std::int64_t> kExample = {1, 9, 2, 17, 4};

TEST(Schedule, BlockListOfTheWorkedExample) {
  const BlockList list = plan_block_list(kExample);
  EXPECT_EQ(list.sequence, (Ints{0, 1, 1, 2, 3, 3, 3, 4}));
  EXPECT_EQ(list.offset, (Ints{0, 0, 1, 0, 0, 1, 2, 0}));
}

TEST(Schedule, SequenceGridOfTheWorkedExample) {
  const SequenceGrid grid = plan_sequence_grid(kExample);
  EXPECT_EQ(grid.sequences, 5);
  EXPECT_EQ(grid.blocks, 3);
  EXPECT_EQ(grid.empty, 7);
}

TEST(Schedule, FlatTilesDependOnTheTotalOnly) {
  EXPECT_EQ(plan_flat(33, 8).tiles, 5);
  EXPECT_EQ(plan_flat(32, 8).tiles, 4);
  EXPECT_EQ(plan_flat(0, 8).tiles, 0);
}

TEST(Schedule, ZeroLengthSequencesHaveNoBlocks) {
  const BlockList list = plan_block_list(std::vector<std::int64_t>{0, 8, 0, 9, 0});
  EXPECT_EQ(list.sequence, (Ints{1, 3, 3}));
  EXPECT_EQ(list.offset, (Ints{0, 0, 1}));
  const SequenceGrid grid = plan_sequence_grid(std::vector<std::int64_t>{0, 0});
  EXPECT_EQ(grid.blocks, 0);
  EXPECT_EQ(grid.empty, 0);
}

// One long sequence among short ones: nearly every cell of the grid is empty, the list and the
// tiles are not.
TEST(Schedule, SkewedBatchIsMostlyEmptyOnTheGrid) {
  std::vector<std::int64_t> lengths(136, 30);
  lengths.push_back(4096);
  const SequenceGrid grid = plan_sequence_grid(lengths);
  EXPECT_EQ(grid.sequences * grid.blocks, 137 * 512);
  EXPECT_EQ(grid.empty, 137 * 512 - 136 * 4 - 512);
  EXPECT_EQ(plan_block_list(lengths).sequence.size(), 136u * 4 + 512);
  EXPECT_EQ(plan_flat(136 * 30 + 4096, 64).tiles, 128);
}

TEST(Schedule, OtherBlockSizes) {
  EXPECT_EQ(plan_block_list(kExample, 16).sequence, (Ints{0, 1, 2, 3, 3, 4}));
  EXPECT_EQ(plan_sequence_grid(kExample, 1).blocks, 17);
}

}  // namespace
}  // namespace shortconv
