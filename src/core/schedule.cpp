#include "shortconv/schedule.hpp"

#include <algorithm>

namespace shortconv {
namespace {

std::int64_t blocks_of(std::int64_t tokens, std::int64_t block_tokens) {
  return tokens <= 0 ? 0 : (tokens - 1) / block_tokens + 1;
}

}  // namespace

BlockList plan_block_list(std::span<const std::int64_t> lengths, int block_tokens) {
  BlockList list;
  std::int64_t total = 0;
  for (std::int64_t length : lengths) total += blocks_of(length, block_tokens);
  list.sequence.reserve(static_cast<std::size_t>(total));
  list.offset.reserve(static_cast<std::size_t>(total));
  for (std::size_t sequence = 0; sequence < lengths.size(); ++sequence) {
    const std::int64_t blocks = blocks_of(lengths[sequence], block_tokens);
    for (std::int64_t block = 0; block < blocks; ++block) {
      list.sequence.push_back(static_cast<std::int32_t>(sequence));
      list.offset.push_back(static_cast<std::int32_t>(block));
    }
  }
  return list;
}

SequenceGrid plan_sequence_grid(std::span<const std::int64_t> lengths, int block_tokens) {
  SequenceGrid grid{.sequences = static_cast<std::int64_t>(lengths.size())};
  std::int64_t used = 0;
  for (std::int64_t length : lengths) {
    grid.blocks = std::max(grid.blocks, blocks_of(length, block_tokens));
    used += blocks_of(length, block_tokens);
  }
  grid.empty = grid.sequences * grid.blocks - used;
  return grid;
}

FlatTiles plan_flat(std::int64_t tokens, std::int64_t tile_tokens) {
  return {.tiles = blocks_of(tokens, tile_tokens), .tile_tokens = tile_tokens};
}

}  // namespace shortconv
