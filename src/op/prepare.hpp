// Index preparation: what one row of a list of snapshots says, the parents of one sequence.
// Bad values (bounds, links, slots out of range) never lead outside of a tensor.
#pragma once

#include <cstdint>

#include "core/prepare.hpp"
#include "op/sequence.hpp"

namespace shortconv {

SHORTCONV_HOST_DEVICE inline std::int64_t bound_of(const IndexTensor& query_start_loc,
                                                   std::int64_t tokens, std::int64_t sequence) {
  return clamped(query_start_loc.load(0, sequence), 0, tokens);
}

/// Where the rows of a sequence begin. Of L tokens at most ceil(L / block_tokens) end a block, and
/// floor(end / block_tokens) - floor(begin / block_tokens) + 1 is never less: none needs a row of
/// the next one.
SHORTCONV_HOST_DEVICE inline std::int64_t first_row(const BlockSnapshots& p,
                                                    std::int64_t sequence) {
  return bound_of(p.query_start_loc, p.tokens, sequence) / p.block_tokens + sequence;
}

/// Rows are looked at one by one, so each is written once whatever the bounds are.
SHORTCONV_HOST_DEVICE inline Snapshot boundary_at(const BlockSnapshots& p, std::int64_t row) {
  constexpr Snapshot kNone{-1, 0, -1};
  std::int64_t low = 0, high = p.sequences;  // the last sequence whose rows begin at or before row
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (first_row(p, middle) <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const std::int64_t sequence = low - 1;
  if (sequence < 0) return kNone;
  const std::int64_t begin = bound_of(p.query_start_loc, p.tokens, sequence);
  const std::int64_t end = bound_of(p.query_start_loc, p.tokens, sequence + 1);
  const std::int64_t computed = p.computed_tokens.load(0, sequence);
  const std::int64_t number = row - first_row(p, sequence);  // of the boundary in this step
  if (computed < 0 || end <= begin) return kNone;

  // No product or sum leaves 64 bits, however large the values are.
  const std::int64_t length = end - begin, full = computed / p.block_tokens;
  if (number > length / p.block_tokens || number >= p.blocks - full) return kNone;
  const std::int64_t to_boundary = p.block_tokens - computed % p.block_tokens;
  if (to_boundary > length - number * p.block_tokens) return kNone;
  const std::int64_t slot = p.block_slots.load(sequence, full + number);
  if (slot < 0) return kNone;
  return {sequence, number * p.block_tokens + to_boundary, slot};
}

SHORTCONV_HOST_DEVICE inline void store_snapshot(const BlockSnapshots& p, std::int64_t row) {
  Snapshot snapshot = boundary_at(p, row);
  // A pool cannot have a slot that its indices cannot name.
  const bool narrow = p.snapshots.dtype == DType::kI32;
  if (narrow && snapshot.slot > INT32_MAX) snapshot = {-1, 0, -1};
  p.snapshots.store(row, 0, snapshot.sequence);
  p.snapshots.store(row, 1, snapshot.token);
  p.snapshots.store(row, 2, snapshot.slot);
}

/// Links lead to later tokens, so that in their order each token is settled before its own links
/// are followed, and `parents` itself is all the memory it takes.
SHORTCONV_HOST_DEVICE inline void store_parents(const TreeParents& p, std::int64_t sequence) {
  constexpr std::int64_t kNone = -1, kSeveral = -2;
  std::int64_t begin = 0, tokens = p.tokens;
  if (p.query_start_loc.data != nullptr) {
    begin = bound_of(p.query_start_loc, p.tokens, sequence);
    tokens = bound_of(p.query_start_loc, p.tokens, sequence + 1) - begin;
  }
  for (std::int64_t token = 0; token < tokens; ++token) {
    p.parents.store(sequence, begin + token, kNone);
  }
  const auto follow = [&](const IndexTensor& links, std::int64_t token, std::int64_t parent) {
    const std::int64_t to = links.load(sequence, begin + token);
    if (to <= token || to >= tokens) return;
    const bool reached = p.parents.load(sequence, begin + to) != kNone;
    p.parents.store(sequence, begin + to, reached ? kSeveral : parent);
  };
  for (std::int64_t token = 0; token < tokens; ++token) {
    const std::int64_t parent = p.parents.load(sequence, begin + token);
    if (parent == kSeveral) p.parents.store(sequence, begin + token, kNone);
    if (parent >= 0) follow(p.next_sibling, token, parent);
    if (parent >= 0 || token == 0) follow(p.first_child, token, token);
  }
}

}  // namespace shortconv
