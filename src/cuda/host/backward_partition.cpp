// How a shape is divided into partial sums.
//
// The bits of the gradients of weights follow from it, so it never depends on the device. The
// numbers were measured on an H200 (bf16, width 4, SiLU), which has two blocks on each of 132
// multiprocessors at a time. There the time of a block with a multiprocessor of its own is 0.155 us
// a row of its strips, and 6 us more for the call; what matters is that no multiprocessor is left
// with a block more than the others. The table is in docs/tuning-log.md.
#include <algorithm>

#include "cuda/backward_tuning.hpp"
#include "cuda/host/backward.hpp"
#include "cuda/host/numbers.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kMultiprocessors = 132;
/// Longer strips read fewer rows twice, but 160 to 248 rows gain nothing on long calls.
constexpr std::int64_t kMaxRows = 128;
/// Copies of 16 bytes are 8 tokens of 16 bits where tokens are adjacent, so strips start there.
constexpr std::int64_t kRowStep = 8;
/// Of 300 to 1000 sequences of 9 tokens, strips of 48 rows take up to a third less time than longer
/// ones: sequences that begin make each row expensive, and more warps hide that.
constexpr std::int64_t kShortSequenceTokens = 32, kShortSequenceRows = 48;

BackwardPartition even(std::int64_t tokens, std::int64_t rows) {
  return {.units = divide_up(tokens, rows * kUnitStrips),
          .long_units = 0,
          .long_rows = narrow(rows),
          .short_rows = narrow(rows)};
}

}  // namespace

BackwardPartition backward_partition(const BackwardProblem& p) {
  const std::int64_t groups = divide_up(p.channels, 128);
  const bool has_short_sequences = p.tokens < kShortSequenceTokens * p.sequences;
  // A block for each multiprocessor, if such strips are not too long.
  if (const std::int64_t units = kMultiprocessors / std::max<std::int64_t>(groups, 1); units > 0) {
    const std::int64_t steps = divide_up(p.tokens, units * kUnitStrips * kRowStep);
    std::int64_t rows = std::max<std::int64_t>(steps, 1) * kRowStep;
    if (has_short_sequences) rows = std::min(rows, kShortSequenceRows);
    if (rows <= kMaxRows) return even(p.tokens, rows);
  }
  // 4096 x 5120 takes 41 us in 240 blocks of such strips, and 47 in 160 of 128 rows.
  const std::int64_t blocks = groups * divide_up(p.tokens, kMaxRows * kUnitStrips);
  if (blocks <= 208) return even(p.tokens, 96);
  // 7000 x 4096 takes 52 us in 224 blocks of such strips, and 54 to 58 if some are shorter.
  if (blocks <= 240) return even(p.tokens, kMaxRows);
  // Shorter strips at the end fill up the last wave of blocks: 4096 x 12288, 1.5 waves, takes 84 us
  // instead of 96. Where that wave is nearly full, or one of many, they only cost time: 32768 x
  // 4096, 3.9 waves, takes 213 us instead of 208.
  constexpr std::int64_t kWave = 2 * kMultiprocessors;
  const std::int64_t rest = blocks % kWave;
  if (blocks > 4 * kWave || rest == 0 || rest > kWave * 85 / 100) return even(p.tokens, kMaxRows);
  const std::int64_t unit = kMaxRows * kUnitStrips, long_units = p.tokens / unit / 2;
  return {.units = long_units + divide_up(p.tokens - long_units * unit, unit / 2),
          .long_units = long_units,
          .long_rows = narrow(kMaxRows),
          .short_rows = narrow(kMaxRows / 2)};
}

std::int64_t partial_sum_bytes(const BackwardProblem& p) {
  if (!wants_sums(p)) return 0;
  return backward_partition(p).units * (p.width + 1) * p.channels *
         static_cast<std::int64_t>(sizeof(float));
}

}  // namespace shortconv::cuda
