// Index preparation: one row of a list of snapshots, the parents of one sequence. Invalid values
// (bounds, links or slots out of range) never cause an access outside a tensor.
#pragma once

#include <cstdint>

#include "core/prepare.hpp"
#include "op/sequence.hpp"

namespace shortconv {

SHORTCONV_HOST_DEVICE inline std::int64_t bound_of(const IndexTensor& query_start_loc,
                                                   std::int64_t tokens, std::int64_t sequence) {
  return clamped(query_start_loc.load(0, sequence), 0, tokens);
}

/// First row of a sequence in the list. At most ceil(L / block_size) of L tokens end a block, and
/// floor(end / block_size) - floor(begin / block_size) + 1 rows are never fewer, so sequences do
/// not share rows.
SHORTCONV_HOST_DEVICE inline std::int64_t first_row(const BlockSnapshots& p,
                                                    std::int64_t sequence) {
  return bound_of(p.query_start_loc, p.tokens, sequence) / p.block_size + sequence;
}

/// Computes each row separately, so each row is written exactly once for any bounds.
SHORTCONV_HOST_DEVICE inline Snapshot boundary_at(const BlockSnapshots& p, std::int64_t row) {
  constexpr Snapshot kNone{-1, 0, -1};
  const std::int64_t sequence =
      find_last(p.sequences, row, [&](std::int64_t s) { return first_row(p, s); });
  if (sequence < 0) return kNone;
  const std::int64_t begin = bound_of(p.query_start_loc, p.tokens, sequence);
  const std::int64_t end = bound_of(p.query_start_loc, p.tokens, sequence + 1);
  const std::int64_t computed = p.num_computed_tokens.load(0, sequence);
  const std::int64_t number = row - first_row(p, sequence);  // of the block boundary in this step
  if (computed < 0 || end <= begin) return kNone;

  // No product or sum overflows 64 bits, however large the values are.
  const std::int64_t length = end - begin, full = computed / p.block_size;
  if (number > length / p.block_size || number >= p.blocks - full) return kNone;
  const std::int64_t to_boundary = p.block_size - computed % p.block_size;
  if (to_boundary > length - number * p.block_size) return kNone;
  const std::int64_t slot = p.block_slots.load(sequence, full + number);
  // A pool whose index tensors are i32 has no larger slot.
  if (slot < 0 || (p.snapshots.dtype == DType::kI32 && slot > INT32_MAX)) return kNone;
  return {sequence, number * p.block_size + to_boundary, slot};
}

SHORTCONV_HOST_DEVICE inline void store_snapshot(const BlockSnapshots& p, std::int64_t row) {
  const Snapshot snapshot = boundary_at(p, row);
  p.snapshots.store(row, 0, snapshot.sequence);
  p.snapshots.store(row, 1, snapshot.token);
  p.snapshots.store(row, 2, snapshot.slot);
}

/// Links lead to later tokens. In token order, the parent of a token is therefore final before the
/// links of the token are followed, and `parents` is the only memory required.
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
