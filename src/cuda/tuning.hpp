// Numbers that were measured rather than derived, each with the measurement. Unless it says
// otherwise: H200, 8192 x 8192 bf16, width 4, SiLU, cold; the copy of the same bytes takes 64.1 us.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shortconv::cuda {

// Tile of the flat schedule. Of a prototype of its inner loop, rows x channels a thread x threads:
// 8 x 4 x 64 took 66.6 us; 8 x 8 x 64: 69.8; 16 x 4 x 64: 71.9; 8 x 2 x 128: 71.6; two tiles a
// block one after the other: 67.9. The kernel takes 66.2 with 32 threads, 66.5 with 64, 66.8 with
// 128.
inline constexpr int kTileTokens = 8;
inline constexpr int kTileChannels = 128;  // of a block
/// Adjacent channels that a thread moves together: 8 bytes a row. fp32 with 16 bytes takes 1.059
/// times the copy for 1024 x 8192 instead of 1.042, at width 6 1.110 on the skewed batch instead of
/// 1.061.
constexpr int tile_group(std::size_t element_bytes) { return 8 / static_cast<int>(element_bytes); }
constexpr int tile_threads(std::size_t element_bytes) {
  return kTileChannels / tile_group(element_bytes);
}

/// Blocks a multiprocessor is to hold, which bounds the registers; more than 32 it cannot. Width 4
/// takes 66.2 us with 32 blocks and 67.7 with 28. Ratios to the copy: width 3, which spills with
/// 32, 1.018 with 28; width 5 with 24 1.088, with 20 1.169; width 8, which spills with 24, 1.749
/// and 1.297. Blocks of fp32 have twice the threads: width 6 with 14 blocks 1.029, with 12 1.035;
/// width 8, which spills with 14, 1.127, with 12 1.111, with 10 1.178.
constexpr int tile_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 16 : width <= 7 ? 14 : 12;
  if (width == 3) return 28;
  return width <= 4 ? 32 : width <= 7 ? 24 : 20;
}

/// The widest window whose tiles convolve what comes in and what begins in one go: width 7 spills
/// so, 1.40 times the copy instead of 1.14.
inline constexpr int kWidestJoined = 6;

/// Blocks of tiles that 132 multiprocessors hold at once.
inline constexpr std::int64_t kWaveOfTiles = 32 * 132;

/// Blocks up to which heads begin all sequences: 64 sequences of 128 tokens x 2048 (17 thousand
/// blocks) take 20.1 us so and 20.6 if tiles begin them, 1319 x 2048 in 5 (3 thousand) 6.3 and 7.0;
/// 64 of 128 x 8192 (70 thousand) 71.0 and 69.0, 256 of 32 x 8192 84.0 and 74.9.
inline constexpr std::int64_t kHeadsBeginUpTo = 8 * kWaveOfTiles;

/// Blocks up to which a tile's threads have 2 channels and heads begin all sequences: 1319 x 2048
/// in 5 (2.7 thousand) takes 5.36 us so, 6.00 with 4 channels; 512 x 8192 (4.2 thousand) 6.79 and
/// 6.94, at width 6 7.73 and 7.37; 1024 x 8192 (8.3 thousand) 11.08 and 10.75. Of fp32, where tiles
/// have 2 channels too, that heads begin all is what differs; not measured again since they have.
inline constexpr std::int64_t kSmallTilesUpTo = kWaveOfTiles;
/// The part of them up to which that holds, in quarters.
constexpr int small_tiles_quarters(std::size_t element_bytes, int width) {
  return element_bytes == 2 && width > 4 ? 3 : 4;
}
inline constexpr int kSmallTileGroup = 2;
inline constexpr int kSmallTileThreads = kTileChannels / kSmallTileGroup;

/// As tile_blocks. 1319 x 2048 takes 5.38 us with 20 blocks, 5.65 with 16, and with 24,
/// which spill, 0.36 more than with 20.
constexpr int small_tile_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 2) return width <= 4 ? 20 : 16;
  return width <= 7 ? 16 : 12;
}

/// Groups of channels that a head takes in turn, at least, where most have nothing to do: while
/// they find that out, all of the GPU waits. 64 sequences of 128 tokens x 8192: 68.5 us with
/// one, 67.7 with 4. More take too long where they have: 137 sequences, some of them short, 73.4 us
/// with 4, 78.8 with 16.
inline constexpr std::uint64_t kFewestHeadRounds = 4;

/// Where sequences have fewer than 8 tokens on average, a block of a tile takes so many
/// neighbouring groups of channels in turn, with one search for all: most have nothing to do. 64
/// sequences of 4 tokens: 6.5 us so, 7.4 with one group a block.
inline constexpr int kShortSequenceRounds = 16;

/// Groups of channels that a block takes in turn of a snapshot.
inline constexpr int kSnapshotRounds = 8;

/// Threads of a block of decode. With permuted slots 256 x 8192 take 10.60 us with 32 and 10.64
/// with 64, window-innermost 10.80 and 11.13; 256 rings 9.33 and 9.10; width 2 7.44 and 6.81, width
/// 3 8.72 and 8.55. Width 5 and fp32 are the same with both.
constexpr int decode_threads(int width, bool rings) { return rings || width < 4 ? 64 : 32; }
inline constexpr int kSmallDecodeThreads = 64;

/// Blocks of decode that a multiprocessor is to hold; 0: as many as come. A few registers more than
/// 64 make three waves of the two in which 256 rings x 8192 are decoded: 9.8 us instead of 9.5.
constexpr int decode_blocks(bool rings) { return rings ? 16 : 0; }

/// Elements of x up to which a thread of decode has 4 channels instead of 16 bytes of them: 64 x
/// 8192 takes 4.46 us so and 4.57 with 16 bytes, 1 x 8192 2.03 and 2.12, 256 x 8192 11.04
/// and 10.66.
inline constexpr std::int64_t kSmallDecode = 64 * 8192;
inline constexpr int kSmallDecodeGroup = 4;

inline constexpr int kDraftThreads = 64;
inline constexpr int kDraftGroup = 4;

/// As tile_blocks.
constexpr int draft_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 10 : 8;
  return tile_blocks(element_bytes, width) / 2;
}

/// Blocks up to which prefill and decode start while the kernel before is ending (programmatic
/// dependent launch), us without -> with: decode of 1 x 8192 1.81 -> 1.35, 64 (2048 blocks) 4.21 ->
/// 3.72, 128 (4096) 5.95 -> 6.96; 16 sequences of 4 tokens (1056) 3.53 -> 3.09, 1319 x 2048 in 5
/// (2720) 5.98 -> 6.24, 8192 x 8192 65.6 -> 79.8. Each block waits once, which costs those that
/// have many. Verify gains however many there are, 256 chains of 4 x 8192 27.4 -> 26.7; trees but
/// for small ones: 64 of 7 x 8192 (2048) 12.2 -> 11.4, x 4096 (1024) 7.7 -> 8.3.
inline constexpr std::int64_t kOverlapUpTo = 16 * 132;
inline constexpr std::int64_t kOverlapTreesFrom = 2048;

// Channel-major: warps a block, and channels that a warp takes in turn with what it found out about
// its tokens.
inline constexpr int kColumnWarps = 4;
inline constexpr int kColumnChannels = 8;

// The general path.
inline constexpr int kGeneralThreads = 128;
inline constexpr int kGeneralTokens = 16;

/// The checked mode: sequences a block. Not tuned.
inline constexpr int kViolationThreads = 256;

}  // namespace shortconv::cuda
