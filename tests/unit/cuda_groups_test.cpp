// Which kernel computes a call with groups on a GPU. No GPU needed.
#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "cuda/host/group_tiles.hpp"
#include "cuda/tuning.hpp"
#include "cuda_problems.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kKeyHeads = 16, kHeads = 32, kDim = 128, kBlock = 768;

GroupLayout group(std::int64_t heads, std::int64_t first_channel, const HeadMap& input) {
  GroupLayout layout;
  layout.input = input;
  layout.heads = heads;
  layout.head_dim = kDim;
  layout.first_channel = first_channel;
  layout.out.dtype = DType::kBF16;
  layout.out.present = true;
  layout.out.token_stride = heads * kDim;
  layout.out.head_stride = kDim;
  layout.out.channel_stride = 1;
  return layout;
}

/// Qwen3-Next's interleaved rows of q, k and v, with z copied, and gates.
GroupedProblem interleaved(std::int64_t tokens) {
  GroupedProblem p;
  p.forward = packed_batch(tokens, (2 * kKeyHeads + kHeads) * kDim, 1);
  p.forward.out.present = false;
  p.forward.x.token_stride = p.columns = kKeyHeads * kBlock;
  const auto map = [](std::int64_t offset, std::int64_t block_heads) {
    return HeadMap{offset, kDim, block_heads, kBlock};
  };
  p.group_count = 4;
  p.groups[0] = group(kKeyHeads, 0, map(0, 1));
  p.groups[1] = group(kKeyHeads, kKeyHeads * kDim, map(kDim, 1));
  p.groups[2] = group(kHeads, 2 * kKeyHeads * kDim, map(2 * kDim, 2));
  p.groups[3] = group(kHeads, 0, map(4 * kDim, 2));
  p.groups[0].normalize = p.groups[1].normalize = true;
  p.groups[3].copy = true;
  p.has_gates = true;
  p.gates.heads = kHeads;
  p.gates.a.dtype = p.gates.b.dtype = DType::kBF16;
  p.gates.a.channel_stride = p.gates.b.channel_stride = 1;
  p.gates.a_map = p.gates.b_map = {0, 1, 2, 4};
  return p;
}

GroupTileConfig config_of(const GroupedProblem& p) {
  return select_group_tiles(p, kH200, policy_for(kH200));
}

TEST(GroupTiles, OneLaunchForTheFrontOfADeltaNet) {
  const GroupTileConfig config = config_of(interleaved(8192));
  EXPECT_EQ(config.convolved_blocks, 64u);
  EXPECT_EQ(config.channel_blocks, 96u);
  EXPECT_TRUE(config.has_gates);
  EXPECT_EQ(config.kernel, GroupKernel::kTiles);
  const std::int64_t tiles = 8192 / kTileTokens;
  EXPECT_EQ(config.launch.blocks,
            config.launch.params.start_blocks +
                tiles * (64 / kTileRounds + 32 / kCopyRounds + kHeads / kGateBlockHeads));
}

TEST(GroupTiles, SmallCallsHaveABlockForEachBlockOfChannels) {
  const GroupTileConfig config = config_of(interleaved(64));
  EXPECT_EQ(config.tile_rounds, 1u);
  EXPECT_EQ(config.copy_rounds, 1u);
  EXPECT_EQ(config.convolving_blocks, 64u);
}

TEST(GroupTiles, OneTokenASequenceWithoutNormsIsADecode) {
  GroupedProblem p = interleaved(64);
  const Problem packed = p.forward;
  p.forward = decode_batch(packed.channels, 64);
  p.forward.out.present = false;
  p.forward.x = packed.x;
  p.forward.x.sequence_stride = packed.x.token_stride;
  EXPECT_EQ(config_of(p).kernel, GroupKernel::kFewTiles);
  p.has_gates = false;
  p.groups[0].normalize = p.groups[1].normalize = false;
  const GroupTileConfig config = config_of(p);
  EXPECT_EQ(config.kernel, GroupKernel::kDecode);
  EXPECT_EQ(config.launch.blocks, 64 * 96 / (kGroupDecodeThreads / 32));
}

TEST(GroupTiles, OtherCallsHaveSeparateLaunches) {
  const std::vector<std::pair<const char*, std::function<void(GroupedProblem&)>>> changes = {
      {"width 3", [](GroupedProblem& p) { p.forward.width = 3; }},
      {"residual", [](GroupedProblem& p) { p.forward.epilogue = Epilogue::kResidual; }},
      {"fp32 rows",
       [](GroupedProblem& p) {
         p.forward.x.dtype = p.forward.out.dtype = p.forward.weight.dtype = DType::kF32;
       }},
      {"fp32 weights", [](GroupedProblem& p) { p.forward.weight.dtype = DType::kF32; }},
      {"columns off the vectors", [](GroupedProblem& p) { p.groups[1].input.offset += 2; }},
      {"rows off the vectors", [](GroupedProblem& p) { p.forward.x.token_stride += 2; }},
      {"an output off the vectors", [](GroupedProblem& p) { p.groups[2].out.token_stride += 1; }},
      {"heads in reverse", [](GroupedProblem& p) { p.groups[2].out.head_stride = -kDim; }},
      {"an input scale", [](GroupedProblem& p) { p.groups[2].input_scale = 2; }},
      {"no channels", [](GroupedProblem& p) { p.groups[0].head_dim = 0; }},
  };
  EXPECT_GT(config_of(interleaved(512)).launch.blocks, 0);
  for (const auto& [name, change] : changes) {
    GroupedProblem p = interleaved(512);
    change(p);
    EXPECT_EQ(config_of(p).launch.blocks, 0) << name;
  }
}

TEST(GroupTiles, NormsOfWideHeadsAndOfATinyEpsHaveALaunchOfTheirOwn) {
  GroupedProblem p = interleaved(512);
  EXPECT_TRUE(is_normalized_in_tiles(p.groups[0]));
  const std::uint32_t convolved = config_of(p).convolved_blocks;
  p.groups[0].l2_norm.eps = 1e-40f;
  EXPECT_FALSE(is_normalized_in_tiles(p.groups[0]));
  EXPECT_EQ(config_of(p).convolved_blocks, convolved);
  p.groups[1].head_dim = 256;
  EXPECT_FALSE(is_normalized_in_tiles(p.groups[1]));
  EXPECT_GT(config_of(p).launch.blocks, 0);
}

TEST(GroupTiles, NarrowCopiedColumnsHaveALaunchOfTheirOwn) {
  GroupedProblem p = interleaved(512);
  EXPECT_FALSE(has_own_launch(p.groups[3]));
  p.groups[3].head_dim = 2;
  EXPECT_TRUE(has_own_launch(p.groups[3]));
  const GroupTileConfig config = config_of(p);
  EXPECT_GT(config.launch.blocks, 0);
  EXPECT_EQ(config.channel_blocks, config.convolved_blocks);
}

TEST(GroupTiles, GatesOfOtherTypesHaveALaunchOfTheirOwn) {
  GroupedProblem p = interleaved(512);
  p.gates.a.dtype = DType::kF32;
  const GroupTileConfig config = config_of(p);
  EXPECT_GT(config.launch.blocks, 0);
  EXPECT_FALSE(config.has_gates);
}

/// Every slot of every block leads to the channel, column and output of its head.
TEST(GroupTiles, SlotsHaveTheColumnsOfTheirHeads) {
  const GroupedProblem p = interleaved(8192);
  const GroupTileParams params = make_group_tile_params(p, config_of(p), {});
  for (std::uint32_t block = 0; block < params.channel_blocks; ++block) {
    const std::size_t number = params.group_of_block[block];
    const TileGroup& group = params.groups[number];
    const GroupLayout& layout = p.groups[number];
    for (std::uint32_t slot = 0; slot < kTileChannels; slot += 4) {
      const std::uint32_t at = (block - group.first_block) * kTileChannels + slot;
      const std::uint32_t head = group.head_slots.divide(at);
      const std::uint32_t d = at - head * group.head_slots.divisor();
      const HeadColumns& columns = group.columns;
      const std::uint32_t in = columns.block_heads.divide_above_1(head);
      const std::int64_t column =
          columns.column + in * columns.block_stride +
          (head - in * columns.block_heads.divisor()) * columns.head_stride + d;
      const std::int64_t real_head = at / kDim;
      const HeadMap& map = layout.input;
      EXPECT_EQ(column, map.offset + real_head / map.block_heads * map.block_stride +
                            real_head % map.block_heads * map.head_stride + at % kDim);
      EXPECT_EQ(group.first_channel + std::int64_t{head} * group.head_dim + d,
                layout.first_channel + at);
    }
  }
}

}  // namespace
}  // namespace shortconv::cuda
