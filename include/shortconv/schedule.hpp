#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shortconv/export.h"

namespace shortconv {

/// Tokens and channels per block of the two schedules planned on the host: those of SGLang's kernel
/// (PR 10552).
inline constexpr int kBlockTokens = 8;
inline constexpr int kBlockChannels = 256;

/// Schedule::kBlockList: entry i is block offset[i] of sequence sequence[i].
struct BlockList {
  std::vector<std::int32_t> sequence;
  std::vector<std::int32_t> offset;
};
[[nodiscard]] SHORTCONV_API BlockList plan_block_list(std::span<const std::int64_t> lengths,
                                                      int block_tokens = kBlockTokens);

/// Schedule::kSequenceGrid: every sequence has the blocks of the longest one.
struct SequenceGrid {
  std::int64_t sequences = 0;
  std::int64_t blocks = 0;  ///< of each sequence
  std::int64_t empty = 0;   ///< cells without tokens
};
[[nodiscard]] SHORTCONV_API SequenceGrid plan_sequence_grid(std::span<const std::int64_t> lengths,
                                                            int block_tokens = kBlockTokens);

/// Schedule::kFlat: tiles over the packed rows, from shapes alone.
struct FlatTiles {
  std::int64_t tiles = 0;
  std::int64_t tile_tokens = 0;
};
[[nodiscard]] SHORTCONV_API FlatTiles plan_flat(std::int64_t tokens, std::int64_t tile_tokens);

}  // namespace shortconv
