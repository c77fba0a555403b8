// Compile-time constants of the kernels that were measured rather than derived, each with its
// measurement: H200, 8192 x 8192 bf16, width 4, SiLU, cold, unless stated otherwise. The copy of
// the same bytes takes 64.1 us. Thresholds of the launch are in host/policy.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shortconv::cuda {

// Tile of the flat schedule. A prototype of its inner loop, tokens x channels a thread x threads:
//   8 x 4 x 64: 66.6 us      16 x 4 x 64: 71.9      two tiles a block, one after the other: 67.9
//   8 x 8 x 64: 69.8         8 x 2 x 128: 71.6
// The kernel takes 66.2 us with 32 threads, 66.5 with 64, 66.8 with 128.
inline constexpr int kTileTokens = 8;
inline constexpr int kTileChannels = 128;  // of a block
/// Adjacent channels of a thread: 8 bytes a row. fp32 with 16 bytes takes 1.059 times the copy for
/// 1024 x 8192 instead of 1.042, and at width 6 1.110 on the skewed batch instead of 1.061.
constexpr int tile_group(std::size_t element_bytes) { return 8 / static_cast<int>(element_bytes); }
constexpr int tile_threads(std::size_t element_bytes) {
  return kTileChannels / tile_group(element_bytes);
}

/// Minimum blocks of a multiprocessor for __launch_bounds__, which limits the registers.
///   width 4: 66.2 us with 32 blocks, 67.7 with 28
///   width 3, which spills with 32: 1.018 times the copy with 28
///   width 5: 1.088 with 24, 1.169 with 20
///   width 8, which spills with 24: 1.749 with 24, 1.297 with 20
///   fp32, twice the threads: width 6 1.029 with 14, 1.035 with 12; width 8, which spills with 14,
///   1.127 with 14, 1.111 with 12, 1.178 with 10
constexpr int tile_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 16 : width <= 7 ? 14 : 12;
  if (width == 3) return 28;
  return width <= 4 ? 32 : width <= 7 ? 24 : 20;
}

/// As tile_blocks, for tiles with gates, whose threads hold twice the input rows and 8 rows of
/// output gates. 8192 x 2048 of width 3 in 8 sequences takes 32.9 us with 20 blocks; 33.3 with 16
/// and the output gates loaded together with the rows; the copy 33.1. Width 4 spills with 20.
constexpr int gated_tile_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 10 : 8;
  return width <= 3 ? 20 : 16;
}

/// As tile_blocks, for fp32 states beside 16-bit rows. Width 4 spills with 32 and with 24.
inline constexpr int kF32StateTileBlocks = 28;

/// Maximum width whose tiles convolve the sequence that enters the tile and the one that starts in
/// it in one pass. Width 7 spills: 1.40 times the copy instead of 1.14.
inline constexpr int kMaxJoinedWidth = 6;

/// Blocks of channels that a block convolves where heads are normalized, and that a block copies,
/// in calls with groups. 8192 tokens of a gated delta net take 72.9 us with 1, 71.2 with 2, 73.3
/// with 4; q, k and v of 12288 channels without norms 98.0, 98.9 and 102.5. The number of copied
/// ones was not measured alone.
inline constexpr int kTileRounds = 2;
inline constexpr int kCopyRounds = 4;

inline constexpr int kSmallTileGroup = 2;
inline constexpr int kSmallTileThreads = kTileChannels / kSmallTileGroup;

/// As tile_blocks. 1319 x 2048 takes 5.38 us with 20 blocks, 5.65 with 16; with 24, which spill,
/// 0.36 more than with 20.
constexpr int small_tile_blocks(std::size_t element_bytes) { return element_bytes == 2 ? 20 : 16; }

/// The kernel for short sequences: channels of a block, whose threads share nothing. 256 sequences
/// of 1 token x 2048 take 3.86 us with 512, 4.35 with 256, 5.05 with 128; 16 of 4 x 8192, which are
/// few blocks, 3.77, 3.51 and 3.05.
inline constexpr int kShortSequenceChannels = 512, kFewShortSequenceChannels = 128;
constexpr int short_sequence_threads(std::size_t element_bytes) {
  return kShortSequenceChannels / tile_group(element_bytes);
}
/// As tile_blocks.
constexpr int short_sequence_blocks(std::size_t element_bytes, int width) {
  return tile_blocks(element_bytes, width) * kTileChannels / kShortSequenceChannels;
}
/// Tokens of a sequence that its sequence-start block processes.
inline constexpr int kMaxShortTokens = 32;
/// Channels that a tile block processes, one group after the other; one search serves all of them.
/// 64 sequences of 4 tokens: 6.5 us, 7.4 with 128 channels.
inline constexpr int kShortTileChannels = 2048;

/// Groups of channels that a block processes for one snapshot.
inline constexpr int kSnapshotRounds = 8;

constexpr int most_decode_threads(bool circular) { return circular ? 64 : 256; }

/// Minimum blocks of a multiprocessor for decode; 0: no limit. Some registers more than 64 make 256
/// circular buffers x 8192 run in three waves instead of two: 9.8 us instead of 9.5.
constexpr int decode_blocks(bool circular) { return circular ? 16 : 0; }

/// Channels of a thread of small decodes, and of states with a shifted column, which are 32 bytes
/// then: two accesses of 16 without a shared sector. With PDL, 512 x 8192 with a shifted column
/// takes 23.1 us with 4 channels, 27.2 with 16 bytes of x, 23.3 with 4 channels in accesses of 8
/// bytes, 24.0 with 2 channels; 64 x 8192 3.75, -, 4.25, 4.30.
inline constexpr int kSmallDecodeGroup = 4;

/// As tile_blocks, for tiles with groups. The kernel whose start blocks take all sequences spills 8
/// bytes with 32. A version of the other that spilled 40 took 125 us for 12288 channels, not 99.
constexpr int group_tile_blocks(bool start_blocks_take_all) {
  return start_blocks_take_all ? 28 : 32;
}

/// Heads whose gates a block computes for the rows of a tile, two gates a thread. Not tuned, as the
/// next.
inline constexpr int kGateBlockHeads = 8;

inline constexpr int kGroupDecodeThreads = 64;

inline constexpr int kDraftThreads = 64;
inline constexpr int kDraftGroup = 4;

/// As tile_blocks.
constexpr int draft_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 10 : 8;
  return tile_blocks(element_bytes, width) / 2;
}

constexpr int gated_draft_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return 4;
  return width <= 4 ? 8 : 6;
}
/// For fp32 states beside 16-bit rows. Width 4 spills 316 bytes with 16.
inline constexpr int kF32StateDraftBlocks = 12;

// Channels first: warps of a block, channels of a warp, and channels whose loads are in flight
// together.
inline constexpr int kChannelsFirstWarps = 4;
inline constexpr int kWarpChannels = 8;
inline constexpr int kChannelBatch = 4;
/// As tile_blocks. 8192 x 8192 takes 97 us with 8 blocks, 114 with 5, which fp32 needs to not
/// spill.
constexpr int channels_first_blocks(std::size_t element_bytes) {
  return element_bytes == 2 ? 8 : 5;
}

// The general kernels. Constants without a figure were not tuned.
inline constexpr int kGeneralThreads = 128;
/// As tile_blocks, the next ones too. Width 0: any. Width 4 spills 1 KB with 8 blocks, 100 bytes
/// with 5.
constexpr int general_min_blocks(int width) { return width == 0 ? 4 : 5; }
/// Tokens of which a thread has the inputs in registers.
inline constexpr int kGeneralStripTokens = 8;
/// Shared memory of a thread whose window has no compiled width: its inputs, and the taps.
constexpr std::int32_t general_window_bytes(int history, int width) {
  return (history + kGeneralStripTokens + width) * static_cast<std::int32_t>(sizeof(float));
}
/// Words between the taps in shared memory of a block's channels. One more than the channels, so
/// that threads with adjacent taps of a channel store to different banks.
constexpr int shared_tap_stride(int channels) { return channels + 1; }
/// Verify: most tokens of a sequence whose inputs are in shared memory, and tokens of a tree whose
/// windows are.
inline constexpr int kMaxStagedTokens = 24, kTreeWindowTokens = 16;
/// 64 trees of 7 tokens x 8192, fp32 weights, took with 5, 7 and 8 blocks (versions before the last
/// one): width 5 36.1, 33.5 and 32.1 us, width 8 46.9, 40.0 and 39.1; width 64 385, 402 and 495.
/// The gates of a strip, which came later, spill with 8.
constexpr int general_verify_blocks(int width) { return width == 0 ? 5 : 7; }
/// Sequences of a block of the decode kernel that are looked up together.
inline constexpr int kDecodeSequences = 16;
/// Channels of a thread of the decode kernel, and its minimum blocks. A decode of 256 x 8192 with
/// fp32 weights: width 5 20.3 us with 4 channels and 5 blocks, 24.5 with 2 and 6, 26.5 with 2 and
/// 8; width 8 37.6, 34.0 and 49.1. Width 12 takes 66 us with 2 channels and 73 with one, width 64
/// 388 and 332.
constexpr int general_decode_channels(int width) { return width != 0 && width <= 5 ? 4 : 2; }
constexpr int general_decode_blocks(int width) { return width != 0 && width <= 5 ? 5 : 6; }
/// The kernel for whole sequences: channels of a block; more where sequences are short. In place,
/// 64 sequences of 128 tokens x 8192 took 174 us with 128 channels and 208 with 32, in blocks of up
/// to 384 threads, 256 of 32 tokens 230 and 287. Sequences of more tokens were not measured with
/// 128.
inline constexpr int kWholeChannels = 32, kShortWholeChannels = 128;
inline constexpr int kMaxShortWholeTokens = 128;
/// Most threads of a block. 8192 x 8192 of width 4 takes 155 us with two blocks of 320 threads a
/// multiprocessor, 170 if they have 80 registers instead of 96, 165 with 384 threads, 191 with 448.
/// With 512 a thread has 64 registers, and the tokens of the next step are spilled. 64 sequences of
/// 128 tokens, in blocks of 128 channels, take 172 with 384 threads, 155 with three blocks of 256.
inline constexpr int kMaxWholeThreads = 320, kMaxShortWholeThreads = 256;
/// Without a compiled width, so that the inputs of 63 taps before a step and its taps fit into 48
/// KB.
inline constexpr int kMaxWideWholeThreads = 256;
/// Average tokens from which a call without a compiled width runs this kernel, in place or not:
/// 8192 x 8192 takes 220 us instead of 273 with width 12, 418 instead of 992 with width 64. But 64
/// sequences of 128 tokens take 541 instead of 302 and 1618 instead of 1098. Between these lengths
/// nothing was measured.
inline constexpr int kMinWideTokens = 1024;
constexpr int max_whole_threads(int width, int channels) {
  if (width == 0) return kMaxWideWholeThreads;
  return channels == kShortWholeChannels ? kMaxShortWholeThreads : kMaxWholeThreads;
}
constexpr int min_whole_blocks(int width, int channels) {
  if (width == 0) return 1;
  return channels == kShortWholeChannels ? 3 : 2;
}

/// The checked mode: sequences of a block. Not tuned.
inline constexpr int kViolationThreads = 256;

}  // namespace shortconv::cuda
