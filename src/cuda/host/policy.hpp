// Launch thresholds for a device.
#pragma once

#include <cstdint>
#include <string>

namespace shortconv::cuda {

struct DeviceProperties {
  int multiprocessors = 0;
  int architecture = 0;  // 90: compute capability 9.0

  friend bool operator==(const DeviceProperties&, const DeviceProperties&) = default;
};

/// Thresholds that were measured, with their measurement: H200 (132 multiprocessors), bf16, width
/// 4, SiLU, cold. Numbers of blocks are for each multiprocessor.
struct TuningPolicy {
  /// Blocks of tiles that a multiprocessor holds at once: the unit of a wave.
  std::int64_t wave_blocks = 32;

  /// Waves up to which sequence-start blocks take all sequences. 64 sequences of 128 tokens x 2048
  /// (17 thousand blocks) take 20.1 us with them and 20.6 without, 1319 x 2048 in 5 (3
  /// thousand) 6.3 and 7.0; 64 of 128 x 8192 (70 thousand) 71.0 and 69.0, 256 of 32 x 8192 84.0
  /// and 74.9.
  std::int64_t start_blocks_take_all_waves = 8;

  /// Tokens a sequence, on average, below which sequence-start blocks process the first
  /// kMaxShortTokens of each, unless small tiles do. 64 sequences of 9 x 8192 take 9.1 us with them
  /// and 12.0 without, of 17 14.2 and 16.6, 256 of 17 x 8192 45.9 and 50.0.
  std::int64_t short_sequence_tokens = 24;

  /// Warps of a multiprocessor, one for each sequence and 128 channels, below which small tiles
  /// take the batches of short_sequence_tokens: 64 sequences of 17 x 3072 (1536 warps) take 7.7 us
  /// with small tiles and 10.6 with sequence-start blocks, 64 of 9 x 4096 (2048 warps) 7.3 and 6.4.
  std::int64_t short_sequence_warps = 15;

  /// Warps of a multiprocessor below which the blocks for short sequences are small, unless all
  /// have one token. The first is for averages below 8 tokens, the second for longer ones. 128
  /// sequences of 2 x 1024 (1024 warps) take 2.74 us with small blocks and 2.94 with large ones, 32
  /// of 4 x 5120 (1280) 3.67 and 3.24; 64 of 17 x 6144 (3072) 12.3 and 13.1, 128 of 17 x 4096
  /// (4096) 14.6 and 14.2.
  std::int64_t small_shortest_sequence_warps = 9;
  std::int64_t small_short_sequence_warps = 28;

  /// Waves up to which small tiles (2 channels a thread) are used. 1319 x 2048 in 5 (2.7 thousand
  /// blocks) takes 5.36 us with 2 channels, 6.00 with 4; 512 x 8192 (4.2 thousand) 6.79 and 6.94;
  /// 1024 x 8192 (8.3 thousand) 11.08 and 10.75.
  std::int64_t small_tile_waves = 1;

  /// Minimum groups of channels of a sequence-start block where most of them find nothing to do,
  /// which all of the GPU waits for. 64 sequences of 128 tokens x 8192: 68.5 us with one, 67.7 with
  /// 4. More take too long where there is work: 137 sequences, some short, 73.4 us with 4, 78.8
  /// with 16.
  std::int64_t min_start_rounds = 4;

  /// Elements of x up to which decode has 4 channels a thread instead of 16 bytes. 64 x 8192 takes
  /// 4.46 us with 4 channels and 4.57 with 16 bytes, 1 x 8192 2.03 and 2.12, 256 x 8192 11.04 and
  /// 10.66.
  std::int64_t small_decode_elements = 64 * 8192;

  /// Blocks of 256 threads of decode that a multiprocessor holds at once, and the part of these
  /// waves, in percent, that they have to fill: above small_decode_elements decode has 16 bytes of
  /// channels a thread there, and 4 channels elsewhere. With PDL, 16 bytes and 4 channels: 64 x
  /// 12288 4.77 and 4.14 us, 128 x 5120 4.25 and 3.56, 128 x 8192 5.23 and 5.82, 256 x 5120 7.11
  /// and 6.77, 256 x 8192 9.78 and 9.90.
  std::int64_t decode_wave_blocks = 4;
  std::int64_t decode_wave_percent = 93;

  /// Elements of x up to which decode has blocks of 64 and of 128 threads; above 256. Small blocks
  /// start sooner, large ones lose less when they let the next kernel start. With PDL, 64, 128 and
  /// 256 threads: 1 x 8192 takes 1.15, 1.17, 1.26 us, 16 2.13, 2.18, 2.37, 32 2.69, 2.49, 2.53, 64
  /// 4.01, 3.35, 3.35, 128 5.49, 5.48, 5.30, 256 10.24, 10.19, 9.91, 512 18.88, 18.94, 18.77.
  std::int64_t decode_elements_64_threads = 16 * 8192;
  std::int64_t decode_elements_128_threads = 64 * 8192;

  /// Last blocks of a kernel that let the next one start, device/pdl.cuh. us without PDL, then with
  /// 0, 4, 8, 16 and all blocks a multiprocessor:
  ///   8192 x 8192      65.5   65.4   65.3   65.2   65.2   79.8
  ///   256 x 32 x 8192  73.7   73.5   72.9   72.9   72.7   84.8
  ///   skewed           72.9   72.6   72.8   72.3   72.4   83.0
  ///   1024 x 8192      10.73  10.60  10.38  10.30  10.25  10.84
  ///   512 x 8192       6.79   6.63   6.40   6.18   6.25   7.21
  ///   64 x 4 x 8192    5.95   5.79   5.74   5.70   5.60   6.71
  std::int64_t pdl_last_blocks = 16;

  /// Blocks, in all, from which drafts and trees let the next kernel start. 64 trees of 7 x 8192
  /// (2112) take 11.57 us without and 11.11 with it, x 4096 (1056) 7.17 and 8.21.
  std::int64_t pdl_drafts_from = 2048;

  /// Waves from which a block of a call with groups convolves kTileRounds blocks of channels, or
  /// copies kCopyRounds. Not tuned.
  std::int64_t group_rounds_waves = 4;

  /// The general kernel: packed rows of a thread, but fewer where less than general_blocks would be
  /// left. 8192 x 8192 of width 4 takes 148 us with 32 rows, 124 with 64, 119 with 128; 256
  /// sequences of 32 tokens 188, 187 and 196.
  std::int64_t general_rows = 64;
  std::int64_t general_blocks = 16;

  friend bool operator==(const TuningPolicy&, const TuningPolicy&) = default;
};

inline constexpr TuningPolicy kHopperPolicy{};

/// Only Hopper was measured: the other architectures use its policy.
[[nodiscard]] const TuningPolicy& policy_for(const DeviceProperties& properties);

/// One line.
[[nodiscard]] std::string to_string(const TuningPolicy& policy);

}  // namespace shortconv::cuda
