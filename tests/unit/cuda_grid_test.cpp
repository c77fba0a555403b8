// Grids that cover every row and channel once.
#include <gtest/gtest.h>

#include <vector>

#include "cuda/host/general.hpp"
#include "cuda/host/prepare.hpp"
#include "cuda/tuning.hpp"
#include "cuda_problems.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kGeneralBlocks = kHopperPolicy.general_blocks * kH200.multiprocessors;

TEST(CudaGrid, FastDivisorDividesEverythingBelow2To31) {
  for (std::uint32_t divisor :
       {1u, 2u, 3u, 5u, 7u, 31u, 32u, 33u, 640u, 641u, 65535u, 65536u, 1000003u, 0x7fffffffu}) {
    const FastDivisor fast(divisor);
    EXPECT_EQ(fast.divisor(), divisor);
    for (std::uint64_t quotient : {0ull, 1ull, 2ull, 1000ull, 123457ull, 0x7fffffffull / divisor}) {
      for (std::int64_t distance = -2; distance <= 2; ++distance) {
        const std::int64_t value = static_cast<std::int64_t>(quotient * divisor) + distance;
        if (value < 0 || value > 0x7fffffff) continue;
        EXPECT_EQ(fast.divide(static_cast<std::uint32_t>(value)),
                  static_cast<std::uint32_t>(value) / divisor)
            << value << " / " << divisor;
      }
    }
  }
}

TEST(CudaGrid, PoliciesThatDifferPrintDifferently) {
  using Threshold = std::int64_t TuningPolicy::*;
  constexpr Threshold kThresholds[] = {
      &TuningPolicy::wave_blocks,
      &TuningPolicy::start_blocks_take_all_waves,
      &TuningPolicy::short_sequence_tokens,
      &TuningPolicy::short_sequence_warps,
      &TuningPolicy::small_shortest_sequence_warps,
      &TuningPolicy::small_short_sequence_warps,
      &TuningPolicy::small_tile_waves,
      &TuningPolicy::min_start_rounds,
      &TuningPolicy::small_decode_elements,
      &TuningPolicy::decode_wave_blocks,
      &TuningPolicy::decode_wave_percent,
      &TuningPolicy::decode_elements_64_threads,
      &TuningPolicy::decode_elements_128_threads,
      &TuningPolicy::pdl_last_blocks,
      &TuningPolicy::pdl_drafts_from,
      &TuningPolicy::group_rounds_waves,
      &TuningPolicy::general_rows,
      &TuningPolicy::general_blocks,
  };
  static_assert(sizeof kThresholds / sizeof *kThresholds * sizeof(std::int64_t) ==
                sizeof(TuningPolicy));
  for (const Threshold threshold : kThresholds) {
    TuningPolicy other = kHopperPolicy;
    ++(other.*threshold);
    EXPECT_FALSE(other == kHopperPolicy);
    EXPECT_NE(to_string(other), to_string(kHopperPolicy));
  }
}

TEST(CudaGrid, SnapshotsInXAreBlocksBeforeTheOthers) {
  Problem p = packed_batch(1000, 4096, 7);
  const auto choose = [&] {
    KernelConfig choice;
    EXPECT_TRUE(select(p, kH200, policy_for(kH200), choice).ok());
    return choice;
  };
  const KernelConfig without = choose();
  EXPECT_EQ(without.aligned.params.snapshot_blocks, 0u);
  p.snapshot_count = 5;
  const KernelConfig with = choose();
  const std::uint32_t each = 4096 / (kTileChannels * kSnapshotRounds);
  EXPECT_EQ(with.aligned.params.snapshot_channel_blocks.divisor(), each);
  EXPECT_EQ(with.aligned.params.snapshot_blocks, 5 * each);
  EXPECT_EQ(with.aligned.blocks, without.aligned.blocks + 5 * each);
  EXPECT_EQ(with.fallback.blocks, without.fallback.blocks + 5 * (4096 / kGeneralThreads));
}

TEST(CudaGrid, GridsCoverRowsAndChannels) {
  for (const std::int64_t tokens : {1, 7, 8, 9, 1000, 100000}) {
    for (const std::int64_t channels : {4, 252, 256, 260, 8192}) {
      const LaunchConfig tiles = chosen(packed_batch(tokens, channels, 3)).aligned;
      const bool short_sequences = tiles.kernel() == Kernel::kShortSequences;
      const std::int64_t group = short_sequences ? std::int64_t{tiles.threads} * 4 : kTileChannels;
      const auto covers = [&](std::int64_t blocks, std::int64_t rounds) {
        const std::int64_t each = rounds * group;
        return blocks * each >= channels && (blocks - 1) * each < channels;
      };
      const std::int64_t across = tiles.params.channel_blocks.divisor();
      EXPECT_TRUE(covers(across, short_sequences ? kShortTileChannels / group : 1));
      const std::int64_t heads = tiles.params.start_channel_blocks.divisor();
      EXPECT_TRUE(covers(heads, tiles.params.start_rounds));
      EXPECT_EQ(tiles.params.start_blocks, 3 * heads);
      const std::int64_t body = (tiles.blocks - tiles.params.start_blocks) / across;
      EXPECT_GE(body * kTileTokens, tokens);
      EXPECT_LT((body - 1) * kTileTokens, tokens);
    }
  }
}

TEST(CudaGrid, StartBlocksAreAWaveUnlessTheyStartAllSequences) {
  for (const std::int64_t sequences : {1, 2, 63, 64, 65, 66, 67, 256, 340}) {
    const LaunchConfig tiles = chosen(packed_batch(8192, 8192, sequences)).aligned;
    EXPECT_EQ(tiles.kernel(), Kernel::kTiles);
    EXPECT_FALSE(tiles.params.start_blocks_take_all);
    EXPECT_LE(tiles.params.start_blocks, kWave) << sequences;
    EXPECT_EQ(tiles.params.start_rounds & (tiles.params.start_rounds - 1), 0u) << sequences;
    EXPECT_GE(tiles.params.start_rounds, kHopperPolicy.min_start_rounds) << sequences;
  }
  const LaunchConfig small = chosen(packed_batch(1319, 2048, 5)).aligned;
  EXPECT_EQ(small.kernel(), Kernel::kSmallTiles);
  EXPECT_TRUE(small.params.start_blocks_take_all);
  EXPECT_EQ(small.params.start_rounds, 1u);
  EXPECT_LE(small.blocks, kWave);
  const LaunchConfig larger = chosen(packed_batch(2100, 2048, 5)).aligned;
  EXPECT_EQ(larger.kernel(), Kernel::kTiles);
  EXPECT_GT(larger.blocks, kWave);
  EXPECT_TRUE(larger.params.start_blocks_take_all);
  const std::int64_t most = kHopperPolicy.short_sequence_tokens;
  const LaunchConfig decodes = chosen(packed_batch(256 * most - 1, 8192, 256)).aligned;
  EXPECT_EQ(decodes.kernel(), Kernel::kShortSequences);
  EXPECT_TRUE(decodes.params.start_blocks_take_all);
  EXPECT_EQ(decodes.params.start_rounds, 1u);
  EXPECT_EQ(kernel_of(packed_batch(256 * most, 8192, 256)), Kernel::kTiles);
  Problem room = packed_batch(8192, 8192, 8192);  // for more sequences than there are
  room.state.present = false;
  EXPECT_EQ(kernel_of(room), Kernel::kTiles);
}

TEST(CudaGrid, PromptsAmongDraftsAreCutIntoTiles) {
  Problem p = packed_batch(64 * 4, 512, 64);
  p.op = Op::kVerify;
  EXPECT_EQ(kernel_of(p), Kernel::kDrafts);
  EXPECT_FALSE(chosen(p).aligned.params.start_blocks_take_all);
  EXPECT_EQ(chosen(p).aligned.blocks, 65 * 2);  // one fills the rows outside
  p.tokens += 1000;
  EXPECT_TRUE(chosen(p).aligned.params.start_blocks_take_all);
  EXPECT_EQ(chosen(p).aligned.blocks, (64 + 157) * 2);
  EXPECT_EQ(variant_of(p), Variant::kExtended);
  p.intermediate_slots.present = true;  // may be the pool that the history is in
  EXPECT_FALSE(chosen(p).aligned.params.start_blocks_take_all);
}

TEST(CudaGrid, BlocksOfDecodeHaveNoMoreWarpsThanChannels) {
  EXPECT_EQ(chosen(decode_batch(8192, 1)).aligned.threads, 64);
  EXPECT_EQ(chosen(decode_batch(8192, 64)).aligned.threads, 128);
  EXPECT_EQ(chosen(decode_batch(8192, 256)).aligned.threads, 256);
  EXPECT_EQ(chosen(decode_batch(8192, 256)).aligned.blocks, 256 * 4);
  EXPECT_EQ(chosen(decode_batch(320, 4096)).aligned.threads, 96) << "80 groups of 4 channels";
  EXPECT_EQ(chosen(decode_batch(320, 4096)).aligned.blocks, 4096);
}

TEST(CudaGrid, DenseBatchesOfLongSequencesNeedNoStartBlocks) {
  Problem p = packed_batch(10000, 8192, 10);
  p.query_start_loc.present = false;
  p.sequence_tokens = 1000;
  EXPECT_EQ(chosen(p).aligned.params.start_blocks, 0u);
  p.sequence_tokens = 4;
  p.sequences = 2500;
  EXPECT_EQ(chosen(p).aligned.params.start_blocks, 2500u * 8192 / kShortSequenceChannels);
}

TEST(CudaGrid, BlocksOfShortSequencesAreSmallWhereThereAreFew) {
  const auto threads = [](std::int64_t tokens, std::int64_t sequences,
                          std::int64_t channels = 8192) {
    const LaunchConfig launch = chosen(packed_batch(tokens, channels, sequences)).aligned;
    EXPECT_EQ(launch.kernel(), Kernel::kShortSequences);
    return launch.threads;
  };
  const int few = kFewShortSequenceChannels / 4, many = kShortSequenceChannels / 4;
  EXPECT_EQ(threads(16 * 4, 16), few);
  EXPECT_EQ(threads(64 * 4, 64), many);
  EXPECT_EQ(threads(16, 16), many) << "one token each";
  EXPECT_EQ(threads(64 * 17, 64, 4096), few) << "longer sequences: below 28 warps";
  EXPECT_EQ(threads(128 * 17, 128, 4096), many);
}

TEST(CudaGrid, DenseBatchesOfShortSequencesNeedStartBlocks) {
  Problem p = packed_batch(4 * 2500, 8192, 2500);
  p.query_start_loc.present = false;
  p.sequence_tokens = 4;
  p.epilogue = Epilogue::kResidual;  // not in the kernel for short sequences
  const LaunchConfig tiles = chosen(p).aligned;
  EXPECT_EQ(tiles.kernel(), Kernel::kTiles);
  EXPECT_FALSE(tiles.params.start_blocks_take_all);
  const std::int64_t groups = 8192 / kTileChannels;
  EXPECT_GE(tiles.params.start_blocks * tiles.params.start_rounds, 2500 * groups);
}

TEST(CudaGrid, GridsFollowFromShapesAlone) {
  const Problem p = packed_batch(1000, 512, 7);
  Problem other = p;
  other.initial_state = InitialState::kAll;
  EXPECT_EQ(chosen(p).aligned.blocks, chosen(other).aligned.blocks);
}

TEST(CudaGrid, BlockSchedulesAddAUnitForRowsOutsideOfSequences) {
  Problem p = packed_batch(1000, 512, 7);
  p.schedule = Schedule::kBlockList;
  p.block_count = 130;
  EXPECT_EQ(chosen(p).aligned.blocks, (130 + 1) * 512 / kBlockChannels);
  p.schedule = Schedule::kSequenceGrid;
  p.max_seqlen = 81;
  EXPECT_EQ(chosen(p).aligned.blocks, (7 * 11 + 1) * 512 / kBlockChannels);
}

TEST(CudaGrid, ThreadsOfTheGeneralKernelTakeFewerRowsOfSmallCalls) {
  const auto rows = [](std::int64_t tokens, std::int64_t channels) {
    Problem p = packed_batch(tokens, channels, 1);
    p.width = 9;
    const LaunchConfig launch = chosen(p).aligned;
    const std::int64_t blocks = (channels + kGeneralThreads - 1) / kGeneralThreads;
    const std::int64_t taken = launch.params.unit_tokens;
    EXPECT_EQ(launch.blocks, (tokens + taken - 1) / taken * blocks);
    EXPECT_TRUE(taken == 1 || launch.blocks >= kGeneralBlocks) << tokens << " x " << channels;
    EXPECT_TRUE(taken == kHopperPolicy.general_rows ||
                (tokens + 2 * taken - 1) / (2 * taken) * blocks < kGeneralBlocks)
        << tokens << " x " << channels;
    return taken;
  };
  EXPECT_EQ(rows(1, 1), 1);
  EXPECT_EQ(rows(64, 2048), 1);
  EXPECT_EQ(rows(16384, 2048), kHopperPolicy.general_rows);
  for (std::int64_t tokens = 1; tokens < 100000; tokens = tokens * 3 / 2 + 1) rows(tokens, 2047);
}

TEST(CudaGrid, BlocksOfTheGeneralDecodeKernelTakeAllSequencesInOneWave) {
  for (const std::int64_t sequences : {1, 7, 256, 4096, 100003}) {
    for (const std::int64_t channels : {1, 513, 8192}) {
      Problem p = decode_batch(channels, sequences);
      for (const int width : {2, 5, 8, 12}) {
        p.width = width;
        p.dilation = width == 2 ? 2 : 1;
        p.weight.dtype = DType::kF16;  // that of x is bf16
        const LaunchConfig launch = chosen(p).aligned;
        ASSERT_EQ(launch.kernel(), Kernel::kGeneralDecode);
        const int block_channels = kGeneralThreads * general_decode_channels(sized_width(p));
        const std::int64_t blocks = (channels + block_channels - 1) / block_channels;
        const std::int64_t taken = launch.params.unit_tokens, units = launch.blocks / blocks;
        EXPECT_EQ(launch.blocks % blocks, 0);
        EXPECT_GE(units * taken, sequences);
        EXPECT_LT((units - 1) * taken, sequences);
        const std::int64_t wave =
            std::int64_t{general_decode_blocks(sized_width(p))} * kH200.multiprocessors;
        EXPECT_TRUE(taken == 1 || launch.blocks <= wave + blocks) << sequences << " x " << channels;
      }
    }
  }
}

TEST(CudaGrid, DecodeAndVerifyNeedNoMoreSharedMemoryThanTheirFunctionsAskFor) {
  for (int width = kMinWidth; width <= kMaxWidth; ++width) {
    for (const std::int64_t tokens : {1, 7, 8, 9, 23, 24, 25, 1000}) {
      Problem p = decode_batch(512, 3);
      p.op = Op::kVerify;
      p.tokens = 3 * tokens;
      p.sequence_tokens = tokens;
      p.width = width;
      p.parents.present = true;
      const int staged = staged_tokens(p);
      EXPECT_TRUE(staged >= tokens || staged == kMaxStagedTokens) << tokens;
      for (const bool gate : {false, true}) {
        p.output_gate.present = gate;
        EXPECT_LE(general_shared_bytes(p, Kernel::kGeneralVerify, kGeneralThreads),
                  max_general_verify_shared_bytes());
      }
    }
    Problem decode = decode_batch(512, 3);
    decode.width = width;
    EXPECT_LE(general_shared_bytes(decode, Kernel::kGeneralDecode, kGeneralThreads),
              max_general_decode_shared_bytes());
  }
  constexpr std::int32_t kLeast = 99 * 1024;  // what sm_86, sm_89 and sm_120 have
  EXPECT_LE(max_general_verify_shared_bytes(), kLeast);
  EXPECT_LE(max_general_decode_shared_bytes(), kLeast - 1024) << "and the rows and slots";
}

TEST(CudaGrid, SnapshotsAreSeparateUnitsUnlessInPlace) {
  Problem p = packed_batch(100000, 512, 7);
  p.width = 9;  // of the general kernel
  p.snapshot_count = 11;
  const std::int64_t units = 100000 / kHopperPolicy.general_rows + 1;
  EXPECT_EQ(chosen(p).aligned.blocks, (units + 11) * 512 / kGeneralThreads);
  p.in_place = true;  // a unit for each sequence, and one for the rows outside of all
  EXPECT_EQ(chosen(p).aligned.blocks, (7 + 1) * 512 / kWholeChannels);
}

TEST(CudaGrid, RefusesGridsThatAGpuCannotHave) {
  Problem p = packed_batch(std::int64_t{1} << 40, 8, 1);
  p.width = 9;
  KernelConfig choice;
  const Status status = select(p, kH200, policy_for(kH200), choice);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("blocks of kernel 'general'"), std::string::npos)
      << status.message();
}

TEST(CudaGrid, RefusesTreesOfMoreTokensThanTheKernelsNumber) {
  Problem p = decode_batch(8, 1);
  p.op = Op::kVerify;
  p.parents.present = true;
  p.tokens = p.sequence_tokens = kMaxTreeTokens;
  KernelConfig choice;
  EXPECT_TRUE(select(p, kH200, policy_for(kH200), choice).ok());
  p.tokens = p.sequence_tokens = kMaxTreeTokens + 1;
  const Status status = select(p, kH200, policy_for(kH200), choice);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.message(),
            "x: has trees of up to 2147483648 tokens; expected at most 2147483647 on the backend "
            "'cuda'");
  p.sequences = 1024;  // each with fewer
  p.sequence_tokens = kMaxTreeTokens / 512;
  p.tokens = p.sequences * p.sequence_tokens;
  EXPECT_TRUE(select(p, kH200, policy_for(kH200), choice).ok());
}

TEST(CudaGrid, PreparationHasAThreadForEachItem) {
  for (const std::int64_t items : {0, 1, kPrepareThreads, kPrepareThreads + 1, 1 << 20}) {
    const std::int64_t blocks = prepare_blocks(items);
    EXPECT_GE(blocks * kPrepareThreads, items);
    EXPECT_LT((blocks - 1) * kPrepareThreads, items);
  }
}

/// Without an attribute of the function a launch has up to 48 KB.
TEST(CudaGrid, PrefillInPlaceNeedsNoMoreSharedMemoryThanEveryLaunchHas) {
  for (int width = kMinWidth; width <= kMaxWidth; ++width) {
    for (int dilation = 1; (width - 1) * dilation < kMaxWidth; ++dilation) {
      for (const std::int64_t tokens : {1, 4, 25, 100, 129, 100000}) {
        Problem p = packed_batch(tokens, 512, 1);
        p.in_place = true;
        p.width = width;
        p.dilation = dilation;
        const std::int32_t threads = whole_sequences_threads(p);
        EXPECT_EQ(threads % whole_sequences_channels(p), 0) << "width " << width << ", " << tokens;
        EXPECT_LE(general_shared_bytes(p, Kernel::kWholeSequences, threads), 48 * 1024)
            << "width " << width << ", dilation " << dilation << ", " << tokens << " tokens";
        EXPECT_LE(general_shared_bytes(p, Kernel::kGeneral, kGeneralThreads),
                  max_general_shared_bytes(kGeneralThreads));
      }
    }
  }
}

}  // namespace
}  // namespace shortconv::cuda
