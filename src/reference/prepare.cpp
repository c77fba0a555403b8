// Index preparation: one sequence, one token at a time.
#include <algorithm>

#include "reference/reference.hpp"

namespace shortconv::reference {
namespace {

std::int64_t bound(const IndexTensor& query_start_loc, std::int64_t tokens, std::int64_t sequence) {
  return std::clamp<std::int64_t>(query_start_loc.load(0, sequence), 0, tokens);
}

void store_row(const BlockSnapshots& p, std::int64_t row, std::int64_t sequence, std::int64_t token,
               std::int64_t slot) {
  p.snapshots.store(row, 0, sequence);
  p.snapshots.store(row, 1, token);
  p.snapshots.store(row, 2, slot);
}

}  // namespace

Status block_snapshots(const BlockSnapshots& p, void*) {
  for (std::int64_t row = 0; row < p.rows; ++row) store_row(p, row, -1, 0, -1);
  for (std::int64_t s = 0; s < p.sequences; ++s) {
    const std::int64_t begin = bound(p.query_start_loc, p.tokens, s);
    const std::int64_t length = bound(p.query_start_loc, p.tokens, s + 1) - begin;
    const std::int64_t computed = p.num_computed_tokens.load(0, s);
    if (computed < 0) continue;
    std::int64_t row = begin / p.block_size + s;
    std::int64_t block = computed / p.block_size;  // being filled
    std::int64_t held = computed % p.block_size;   // tokens in it
    if (block >= p.blocks) continue;
    for (std::int64_t token = 1; token <= length; ++token) {
      if (++held < p.block_size) continue;
      const std::int64_t slot = block < p.blocks ? p.block_slots.load(s, block) : -1;
      const bool fits = p.snapshots.dtype == DType::kI64 || slot <= INT32_MAX;
      if (slot >= 0 && fits) store_row(p, row, s, token, slot);
      ++row;
      ++block;
      held = 0;
    }
  }
  return {};
}

Status tree_parents(const TreeParents& p, void*) {
  if (p.tokens == 0) return {};  // for any number of sequences
  for (std::int64_t s = 0; s < p.sequences; ++s) {
    const bool ragged = p.query_start_loc.data != nullptr;
    const std::int64_t begin = ragged ? bound(p.query_start_loc, p.tokens, s) : 0;
    const std::int64_t end = ragged ? bound(p.query_start_loc, p.tokens, s + 1) : p.tokens;
    for (std::int64_t token = 0; token < end - begin; ++token) {
      // All links to the token: from a parent, or from a sibling with a parent.
      std::int64_t parent = -1, links = 0;
      for (std::int64_t from = 0; from < token; ++from) {
        const std::int64_t above = p.parents.load(s, begin + from);
        if (from > 0 && above < 0) continue;
        if (p.first_child.load(s, begin + from) == token) {
          parent = from;
          ++links;
        }
        if (from > 0 && p.next_sibling.load(s, begin + from) == token) {
          parent = above;
          ++links;
        }
      }
      p.parents.store(s, begin + token, links == 1 ? parent : -1);
    }
  }
  return {};
}

}  // namespace shortconv::reference
