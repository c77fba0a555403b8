// How the rows of a backward call are divided into the partial sums of the gradients of weights.
#include <gtest/gtest.h>

#include <string>

#include "cuda/backward_tuning.hpp"
#include "cuda/host/backward.hpp"

namespace shortconv::cuda {
namespace {

BackwardProblem problem_of(std::int64_t tokens, std::int64_t channels, std::int64_t sequences = 1) {
  BackwardProblem p;
  p.tokens = tokens;
  p.channels = channels;
  p.sequences = sequences;
  return p;
}

TEST(BackwardPartition, StripsFollowOneAnotherAndHoldEveryRow) {
  for (const std::int64_t channels : {1, 512, 4096, 5120, 12288, 16897, 100000}) {
    for (const std::int64_t tokens : {0, 1, 7, 8, 63, 64, 129, 1000, 4096, 9001, 131072}) {
      for (const std::int64_t sequences : {std::int64_t{1}, tokens / 9 + 1}) {
        const BackwardPartition found = backward_partition(problem_of(tokens, channels, sequences));
        const std::string text = std::to_string(tokens) + " x " + std::to_string(channels) +
                                 " in " + std::to_string(sequences);
        std::int64_t row = 0;
        for (std::int64_t unit = 0; unit < found.units; ++unit) {
          ASSERT_LT(row, tokens) << text << ": unit " << unit << " has no rows";
          for (int strip = 0; strip < kUnitStrips; ++strip) {
            ASSERT_EQ(found.first_row(unit, strip), row) << text << ": unit " << unit;
            ASSERT_EQ(row % 8, 0) << text << ": copies of 16 bytes would not be aligned";
            row += found.strip_rows(unit);
          }
        }
        ASSERT_GE(row, tokens) << text;
      }
    }
  }
}

TEST(BackwardPartition, ShorterStripsFillUpTheLastWaveOfBlocks) {
  const BackwardPartition half_a_wave = backward_partition(problem_of(4096, 12288));
  EXPECT_EQ(half_a_wave.strip_rows(0), 128);
  EXPECT_EQ(half_a_wave.long_units, 2);
  EXPECT_EQ(half_a_wave.strip_rows(half_a_wave.units - 1), 64);
  EXPECT_EQ(half_a_wave.units, 6);
  const BackwardPartition nearly_full = backward_partition(problem_of(8192, 8192));
  EXPECT_EQ(nearly_full.strip_rows(nearly_full.units - 1), 128);
}

TEST(BackwardPartition, StripsFollowTheMeasurements) {
  const auto rows = [](std::int64_t tokens, std::int64_t channels, std::int64_t sequences = 1) {
    return backward_partition(problem_of(tokens, channels, sequences)).strip_rows(0);
  };
  EXPECT_EQ(rows(4096, 5120), 96);
  EXPECT_EQ(rows(7000, 4096), 128);
  EXPECT_EQ(rows(9000, 2048, 1000), 48) << "short sequences";
  EXPECT_EQ(rows(9000, 2048), 96);
  EXPECT_EQ(rows(128, 20480), 16) << "more groups of channels than multiprocessors";
  EXPECT_EQ(rows(1000, 20480), 96);
  const BackwardPartition many_waves = backward_partition(problem_of(33000, 8192));
  EXPECT_EQ(many_waves.long_units, 0);
  EXPECT_EQ(many_waves.strip_rows(many_waves.units - 1), 128);
  EXPECT_EQ(backward_partition(problem_of(0, 0)).units, 0);
}

TEST(BackwardPartition, SmallCallsSpreadOverTheMultiprocessors) {
  const BackwardPartition found = backward_partition(problem_of(1024, 5120));
  EXPECT_EQ(found.units * 40, 120);
  EXPECT_EQ(found.strip_rows(0), 48);
}

TEST(BackwardPartition, PartialSumsOfLongCallsTakeAtMostTwoPercentOfX) {
  for (const std::int64_t channels : {4096, 5120, 8192, 12288}) {
    for (const std::int64_t tokens : {4096, 8192, 32768}) {
      BackwardProblem p = problem_of(tokens, channels);
      p.width = 4;
      p.grad_weight.present = true;
      EXPECT_LE(partial_sum_bytes(p) * 50, tokens * channels * 2) << tokens << " x " << channels;
    }
  }
}

TEST(BackwardPartition, BlocksOfTheGeneralKernelFitIntoSharedMemory) {
  for (const std::int32_t most : {64 * 1024, 99 * 1024, 227 * 1024}) {
    for (int width = 2; width <= 64; ++width) {
      for (const int dilation : {1, 63 / (width - 1)}) {
        const int history = (width - 1) * dilation;
        const int channels = general_backward_channels(width, history, most);
        EXPECT_LE(general_backward_bytes(width, history, channels), most)
            << width << " taps, dilation " << dilation << ", " << most << " bytes";
        if (history <= 12 && most > 64 * 1024) {
          EXPECT_EQ(channels, 32) << width << " taps";
        }
      }
    }
  }
}

}  // namespace
}  // namespace shortconv::cuda
