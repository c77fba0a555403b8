// The two steps of plan_block_list, for callers with memory of their own.
#pragma once

#include <cstdint>
#include <span>

#include "shortconv/status.hpp"

namespace shortconv {

/// Entries of a list, without making it.
[[nodiscard]] Status count_blocks(std::span<const std::int64_t> lengths, int block_tokens,
                                  std::int64_t& count);

/// `sequence` and `offset` have as many entries as count_blocks says.
void fill_block_list(std::span<const std::int64_t> lengths, int block_tokens,
                     std::span<std::int32_t> sequence, std::span<std::int32_t> offset);

}  // namespace shortconv
