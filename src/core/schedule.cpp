#include "shortconv/schedule.hpp"

#include <algorithm>

namespace shortconv {
namespace {

std::int64_t chunks_of(std::int64_t tokens, std::int64_t chunk_tokens) {
  return tokens <= 0 ? 0 : (tokens - 1) / chunk_tokens + 1;
}

}  // namespace

BlockList plan_block_list(std::span<const std::int64_t> lengths, int chunk_tokens) {
  BlockList list;
  std::int64_t total = 0;
  for (std::int64_t length : lengths) total += chunks_of(length, chunk_tokens);
  list.sequence.reserve(static_cast<std::size_t>(total));
  list.offset.reserve(static_cast<std::size_t>(total));
  for (std::size_t sequence = 0; sequence < lengths.size(); ++sequence) {
    const std::int64_t chunks = chunks_of(lengths[sequence], chunk_tokens);
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      list.sequence.push_back(static_cast<std::int32_t>(sequence));
      list.offset.push_back(static_cast<std::int32_t>(chunk));
    }
  }
  return list;
}

SequenceGrid plan_sequence_grid(std::span<const std::int64_t> lengths, int chunk_tokens) {
  SequenceGrid grid{.sequences = static_cast<std::int64_t>(lengths.size())};
  std::int64_t used = 0;
  for (std::int64_t length : lengths) {
    grid.chunks = std::max(grid.chunks, chunks_of(length, chunk_tokens));
    used += chunks_of(length, chunk_tokens);
  }
  grid.empty = grid.sequences * grid.chunks - used;
  return grid;
}

FlatTiles plan_flat(std::int64_t tokens, std::int64_t tile_tokens) {
  return {.tiles = chunks_of(tokens, tile_tokens), .tile_tokens = tile_tokens};
}

}  // namespace shortconv
