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
inline constexpr int kTileGroup = 4;
inline constexpr int kTileThreads = 32;

/// Blocks a multiprocessor is to hold, which bounds the registers. Width 4: 32 blocks take 66.2 us,
/// 28: 67.7; more than 32 it cannot hold. Width 3, which spills with 32: 69.9 and 67.3. Width 8: 24
/// blocks 83.5, 20: 86.9, 16: 97.7. fp32 rows need twice the registers.
constexpr int tile_blocks(std::size_t element_bytes, int width) {
  if (element_bytes == 4) return width <= 4 ? 24 : 16;
  return width == 3 ? 28 : width <= 4 ? 32 : 24;
}

/// Average tokens of a sequence below which a tile searches before it loads. 1024 sequences of 8
/// tokens: 118.9 us so, 133.8 the other way round; 256 of 32: 84.6 and 84.8; one of 4096 among 136
/// short ones (60 on average): 82.5 and 77.6.
inline constexpr int kSearchFirstBelow = 24;

/// Then a block takes so many neighbouring groups of channels in turn, with one search for
/// all: 93.1 us instead of 114.0 for 1024 sequences of 8 tokens.
inline constexpr int kSearchFirstRounds = 16;

inline constexpr int kDecodeThreads = 64;

/// Elements of x up to which a thread of decode has 4 channels instead of 16 bytes of them: 64 x
/// 8192 takes 4.46 us so and 4.57 with 16 bytes, 1 x 8192 2.03 and 2.12, 256 x 8192 11.04
/// and 10.66.
inline constexpr std::int64_t kSmallDecode = 64 * 8192;
inline constexpr int kSmallDecodeGroup = 4;

// Channel-major: warps a block, and channels that a warp takes in turn with what it found out about
// its tokens.
inline constexpr int kColumnWarps = 4;
inline constexpr int kColumnChannels = 8;

// The general path.
inline constexpr int kGeneralThreads = 128;
inline constexpr int kGeneralTokens = 16;

}  // namespace shortconv::cuda
