#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shortconv/export.h"
#include "shortconv/status.hpp"

namespace shortconv {

/// Tokens and channels per block of the schedules kBlockList and kSequenceGrid: those of SGLang's
/// kernel (PR 10552).
inline constexpr int kBlockTokens = 8;
inline constexpr int kBlockChannels = 256;

/// Schedule::kBlockList: entry i is block offset[i] of sequence sequence[i].
struct BlockList {
  std::vector<std::int32_t> sequence;
  std::vector<std::int32_t> offset;
};

/// The blocks of all sequences, in order. `lengths` are their tokens; none is negative.
[[nodiscard]] SHORTCONV_API Status plan_block_list(std::span<const std::int64_t> lengths,
                                                   BlockList& list,
                                                   int block_tokens = kBlockTokens);

}  // namespace shortconv
