#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shortconv/export.h"

namespace shortconv {

/// Tokens and channels of one block of the two host-planned schedules, those of SGLang's kernel (PR
/// 10552).
inline constexpr int kChunkTokens = 8;
inline constexpr int kChunkChannels = 256;

/// Schedule::kBlockList: entry i is chunk offset[i] (of kChunkTokens) of sequence sequence[i].
struct BlockList {
  std::vector<std::int32_t> sequence;
  std::vector<std::int32_t> offset;
};
[[nodiscard]] SHORTCONV_API BlockList plan_block_list(std::span<const std::int64_t> lengths,
                                                      int chunk_tokens = kChunkTokens);

/// Schedule::kSequenceGrid: every sequence gets as many chunks as the longest one needs.
struct SequenceGrid {
  std::int64_t sequences = 0;
  std::int64_t chunks = 0;
  std::int64_t empty = 0;  ///< cells with no token in them
};
[[nodiscard]] SHORTCONV_API SequenceGrid plan_sequence_grid(std::span<const std::int64_t> lengths,
                                                            int chunk_tokens = kChunkTokens);

/// Schedule::kFlat: tiles over the packed rows, from shapes alone.
struct FlatTiles {
  std::int64_t tiles = 0;
  std::int64_t tile_tokens = 0;
};
[[nodiscard]] SHORTCONV_API FlatTiles plan_flat(std::int64_t tokens, std::int64_t tile_tokens);

}  // namespace shortconv
