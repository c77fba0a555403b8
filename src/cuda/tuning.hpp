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

/// The same with gates, of which a thread holds as many rows again and the 8 of the results. 8192 x
/// 2048 of width 3 in 8 sequences takes 32.9 us with 20 blocks, 33.3 if the gates of the results go
/// out with the rows, for which 16 are enough; the copy 33.1. Width 4 would spill with 20.
constexpr int gated_tile_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return 10;
  return width <= 3 ? 20 : 16;
}

/// The same with states of fp32, which a thread holds beside its rows. Width 4 spills with 32 and
/// with 24. Not measured.
inline constexpr int kF32StateTileBlocks = 28;

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
/// 6.94; 1024 x 8192 (8.3 thousand) 11.08 and 10.75. Of fp32, where tiles have 2 channels too, that
/// heads begin all is what differs; not measured again since they have.
inline constexpr std::int64_t kSmallTilesUpTo = kWaveOfTiles;
inline constexpr int kSmallTileGroup = 2;
inline constexpr int kSmallTileThreads = kTileChannels / kSmallTileGroup;

/// As tile_blocks. 1319 x 2048 takes 5.38 us with 20 blocks, 5.65 with 16, and with 24,
/// which spill, 0.36 more than with 20.
constexpr int small_tile_blocks(std::size_t element_bytes) { return element_bytes == 2 ? 20 : 16; }

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

/// Threads of a block of decode, of `groups` of channels and `elements` of x. Small blocks start
/// sooner, large ones lose less when they let the next kernel start. Overlapped, with 64, 128 and
/// 256 threads: 1 x 8192 takes 1.15, 1.17, 1.26 us, 16 2.13, 2.18, 2.37, 32 2.69, 2.49, 2.53, 64
/// 4.01, 3.35, 3.35, 128 5.49, 5.48, 5.30, 256 10.24, 10.19, 9.91, 512 18.88, 18.94, 18.77.
constexpr int most_decode_threads(bool rings) { return rings ? 64 : 256; }
constexpr int decode_threads(std::int64_t groups, std::int64_t elements, bool rings) {
  const int wanted = rings || elements <= 16 * 8192        ? 64
                     : elements <= std::int64_t{64} * 8192 ? 128
                                                           : 256;
  const std::int64_t all = (groups + 31) / 32 * 32;
  return all < wanted ? static_cast<int>(all) : wanted;
}

/// Blocks of decode that a multiprocessor is to hold; 0: as many as come. A few registers more than
/// 64 make three waves of the two in which 256 rings x 8192 are decoded: 9.8 us instead of 9.5.
constexpr int decode_blocks(bool rings) { return rings ? 16 : 0; }

/// Elements of x up to which a thread of decode has 4 channels instead of 16 bytes of them: 64 x
/// 8192 takes 4.46 us so and 4.57 with 16 bytes, 1 x 8192 2.03 and 2.12, 256 x 8192 11.04
/// and 10.66. With an older column it always has 4: in windows these are 32 bytes, two accesses of
/// 16, and neighbours share no sector. Overlapped, 512 x 8192 takes 23.1 us so, with 16 bytes of x,
/// 64 of windows, 27.2, with 4 channels in accesses of 8 bytes 23.3, with 2 channels 24.0; 64 x
/// 8192 3.75, -, 4.25, 4.30.
inline constexpr std::int64_t kSmallDecode = 64 * 8192;
inline constexpr int kSmallDecodeGroup = 4;

inline constexpr int kDraftThreads = 64;
inline constexpr int kDraftGroup = 4;

/// As tile_blocks.
constexpr int draft_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 10 : 8;
  return tile_blocks(element_bytes, width) / 2;
}

constexpr int gated_draft_blocks(std::size_t element_bytes) { return element_bytes == 2 ? 8 : 4; }

/// Of a kernel's blocks so many, the last ones, let the next kernel of the stream start, see
/// overlap.cuh. us without overlap, then with none of the blocks, 528, 1056, 2112 and all:
///   8192 x 8192      65.5   65.4   65.3   65.2   65.2   79.8
///   256 x 32 x 8192  73.7   73.5   72.9   72.9   72.7   84.8
///   skewed           72.9   72.6   72.8   72.3   72.4   83.0
///   1024 x 8192      10.73  10.60  10.38  10.30  10.25  10.84
///   512 x 8192       6.79   6.63   6.40   6.18   6.25   7.21
///   64 x 4 x 8192    5.95   5.79   5.74   5.70   5.60   6.71
inline constexpr std::uint32_t kLastBlocks = 16 * 132;
/// Blocks from which drafts and trees let the next kernel start: 64 trees of 7 x 8192 (2112) take
/// 11.57 -> 11.11 us with 528 -> 2112 last blocks, x 4096 (1056) 7.17 -> 8.21.
inline constexpr std::int64_t kBothOverlapOfDraftsFrom = 2048;

// Channel-major: warps a block, and channels that a warp takes in turn with what it found out about
// its tokens.
inline constexpr int kColumnWarps = 4;
inline constexpr int kColumnChannels = 8;
inline constexpr int kColumnBatch = 4;  // of them whose loads are under way together
/// As tile_blocks. 8192 x 8192 channel-major takes 97 us with 8 blocks and 114 with 5, which is for
/// those that would spill with 8.
constexpr int column_blocks(std::size_t element_bytes) { return element_bytes == 2 ? 8 : 5; }

// The general path. A thread takes up to so many packed rows, one after the other, but fewer where
// less than kGeneralBlocks blocks would be left. Width 12: a decode of 8 x 8192 takes 77 us with 16
// rows and 13 so, of 64 155 and 62; 1319 x 2048 in 5 129 and 121, with half as many blocks 128,
// with twice as many 125.
inline constexpr int kGeneralThreads = 128;
inline constexpr std::int64_t kMostGeneralTokens = 16;
inline constexpr std::int64_t kGeneralBlocks = 16 * 132;

/// The checked mode: sequences a block. Not tuned.
inline constexpr int kViolationThreads = 256;

}  // namespace shortconv::cuda
