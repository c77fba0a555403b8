// How a shape is divided into partial sums.
//
// The bits of the gradients of weights follow from it, so it never depends on the device. The
// numbers were measured on an H200 (bf16, width 4, SiLU), which has two blocks on each of 132
// multiprocessors at a time: docs/tuning-log.md has calls with strips of 16 to 248 rows. A block
// alone on its multiprocessor takes 0.155 us for each row of its strips, and the call 6 us more, so
// no multiprocessor should have a block more than the others.
#include <algorithm>

#include "cuda/backward_tuning.hpp"
#include "cuda/host/backward.hpp"
#include "cuda/host/numbers.hpp"

namespace shortconv::cuda {
namespace {

/// Longer strips read fewer rows twice, but 160 to 248 rows gain nothing on long calls.
constexpr std::int64_t kMaxRows = 128;
/// Copies of 16 bytes are 8 tokens of 16 bits where tokens are adjacent, so strips start there.
constexpr std::int64_t kRowStep = 8;
/// 1000 sequences of 9 tokens x 2048 take 72 us in strips of 128 rows and 48 in strips of 48:
/// sequences that begin make each row expensive, and more warps hide that.
constexpr std::int64_t kShortSequenceTokens = 32, kShortSequenceRows = 48;
/// Blocks of strips of kMaxRows. Between the 160 of 4096 x 5120 and the 224 of 7000 x 4096:
constexpr std::int64_t kFewBlocks = 208, kRowsOfFewBlocks = 96;
constexpr std::int64_t kWave = 2 * kMultiprocessors;
constexpr std::int64_t kFullWavePercent = 85;  // from here on a wave counts as full

BackwardPartition even(std::int64_t tokens, std::int64_t rows) {
  return {.units = divide_up(tokens, rows * kUnitStrips),
          .long_units = 0,
          .long_rows = narrow(rows),
          .short_rows = narrow(rows)};
}

}  // namespace

BackwardPartition backward_partition(const BackwardProblem& p) {
  const std::int64_t groups = divide_up(p.channels, 128);
  const bool has_short_sequences = p.tokens / kShortSequenceTokens < p.sequences;
  // A block for each multiprocessor, or one unit if there are more groups; if such strips are not
  // too long.
  const std::int64_t units =
      std::max<std::int64_t>(kMultiprocessors / std::max<std::int64_t>(groups, 1), 1);
  const std::int64_t steps = divide_up(p.tokens, units * kUnitStrips * kRowStep);
  std::int64_t rows = std::max<std::int64_t>(steps, 1) * kRowStep;
  if (has_short_sequences) rows = std::min(rows, kShortSequenceRows);
  if (rows <= (groups <= kMultiprocessors ? kMaxRows : kRowsOfFewBlocks)) {
    return even(p.tokens, rows);
  }
  // 4096 x 5120 takes 41 us in 240 blocks, of strips of 96 rows, and 47 in 160, of 128 rows.
  const std::int64_t blocks = groups * divide_up(p.tokens, kMaxRows * kUnitStrips);
  if (blocks <= kFewBlocks) return even(p.tokens, kRowsOfFewBlocks);
  // Shorter strips at the end fill up the last wave of blocks: 4096 x 12288, 1.5 waves, takes 84 us
  // instead of 96. In a wave alone, in one that is nearly full, or as one of many they only cost
  // time: 7000 x 4096, 0.85 waves, takes 54 to 58 us instead of 52, 32768 x 4096, 3.9 waves, 213
  // instead of 208.
  const std::int64_t rest = blocks % kWave;
  const bool is_full = rest == 0 || rest * 100 > kWave * kFullWavePercent;
  if (blocks <= kWave || blocks > 4 * kWave || is_full) return even(p.tokens, kMaxRows);
  const std::int64_t unit = kMaxRows * kUnitStrips, long_units = p.tokens / unit / 2;
  return {.units = long_units + divide_up(p.tokens - long_units * unit, unit / 2),
          .long_units = long_units,
          .long_rows = narrow(kMaxRows),
          .short_rows = narrow(kMaxRows / 2)};
}

}  // namespace shortconv::cuda
