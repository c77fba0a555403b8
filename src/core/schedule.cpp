#include "shortconv/schedule.hpp"

#include <limits>

#include "core/check.hpp"
#include "core/schedule.hpp"

namespace shortconv {
namespace {

std::int64_t blocks_of(std::int64_t tokens, int block_tokens) {
  return tokens == 0 ? 0 : (tokens - 1) / block_tokens + 1;
}

}  // namespace

Status count_blocks(std::span<const std::int64_t> lengths, int block_tokens, std::int64_t& count) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();  // entries are i32
  Checker check;
  check.require(block_tokens >= 1, "block_tokens", "is ", std::int64_t{block_tokens},
                "; expected 1 or more");
  check.require(std::ssize(lengths) <= kMost, "lengths", "has ", std::ssize(lengths),
                " entries; expected at most 2^31 - 1");
  if (!check.ok()) return check.status();
  count = 0;
  for (std::size_t sequence = 0; sequence < lengths.size(); ++sequence) {
    const std::int64_t length = lengths[sequence];
    if (length < 0 || blocks_of(length, block_tokens) > kMost) {
      check.require(false, "lengths", "entry ", static_cast<std::int64_t>(sequence), " is ", length,
                    "; expected 0 to ", kMost * block_tokens, " (2^31 - 1 blocks)");
      return check.status();
    }
    count += blocks_of(length, block_tokens);
  }
  return {};
}

void fill_block_list(std::span<const std::int64_t> lengths, int block_tokens,
                     std::span<std::int32_t> sequence, std::span<std::int32_t> offset) {
  std::size_t entry = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    const std::int64_t blocks = blocks_of(lengths[s], block_tokens);
    for (std::int64_t block = 0; block < blocks; ++block, ++entry) {
      sequence[entry] = static_cast<std::int32_t>(s);
      offset[entry] = static_cast<std::int32_t>(block);
    }
  }
}

Status plan_block_list(std::span<const std::int64_t> lengths, BlockList& list, int block_tokens) {
  std::int64_t count = 0;
  if (Status status = count_blocks(lengths, block_tokens, count); !status.ok()) return status;
  list.sequence.resize(static_cast<std::size_t>(count));
  list.offset.resize(static_cast<std::size_t>(count));
  fill_block_list(lengths, block_tokens, list.sequence, list.offset);
  return {};
}

}  // namespace shortconv
