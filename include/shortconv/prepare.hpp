#pragma once

#include <cstdint>
#include <optional>

#include "shortconv/export.h"
#include "shortconv/problem.hpp"
#include "shortconv/status.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

// Index tensors of a step, made on the device from those an engine has there, once for all layers.
// One small launch each: no allocation, no waiting, no lengths on the host, so they may be captured
// in a graph. The first call on a device loads the kernel; one without rows does that and writes
// next to nothing, so make it before a capture. Nothing is planned. Index tensors are i32 or i64
// each, of any strides.

/// Which states a prefix cache wants of this step: those after each full block. With them
/// ForwardArgs::snapshots is filled.
struct BlockSnapshotsArgs {
  TensorRef query_start_loc;      ///< [sequences + 1]; bounds count as clamped to [0, tokens]
  TensorRef computed_tokens;      ///< [sequences]; tokens each one had before this step
  TensorRef block_slots;          ///< [sequences, blocks]; where the state after each full block of
                                  ///< the sequence goes; negative: nowhere
  std::int64_t tokens = 0;        ///< rows of the packed batch
  std::int64_t block_tokens = 0;  ///< tokens of a block, from 1
  TensorRef snapshots;            ///< [rows >= tokens / block_tokens + sequences, 3], written

  BackendId backend = BackendId::kAuto;
};

/// Fills all rows of `snapshots` with (sequence, token, slot), or with (-1, 0, -1), which no call
/// takes for a snapshot. With c tokens computed before and L in this step, sequence s has a row (s,
/// m - c, block_slots[s, m / block_tokens - 1]) for each multiple m of block_tokens in (c, c + L]
/// whose slot is in the table and not negative; it lies in rows query_start_loc[s] / block_tokens +
/// s and on. A sequence with a negative c has none. Where bounds decrease, rows may be missing, but
/// none is wrong.
[[nodiscard]] SHORTCONV_API Status block_snapshots(const BlockSnapshotsArgs& args,
                                                   void* stream = nullptr);

/// Draft trees as links between tokens, counted from the first of their sequence; -1: there is
/// none. Token 0 is the root, and links lead to later tokens.
struct TreeParentsArgs {
  TensorRef first_child;   ///< [sequences, tokens], or [tokens] with query_start_loc
  TensorRef next_sibling;  ///< the same shape
  std::optional<TensorRef> query_start_loc;  ///< [sequences + 1]: ragged trees
  TensorRef parents;                         ///< the same shape, written

  BackendId backend = BackendId::kAuto;
};

/// Fills `parents` as ForwardArgs::parents wants them. A token that does not come from the root by
/// exactly one way has parent -1, as the root has, and its links count for nothing; so do links
/// that lead backwards, to themselves or out of the sequence, and siblings of the root. Rows
/// outside of all sequences are left as they are.
[[nodiscard]] SHORTCONV_API Status tree_parents(const TreeParentsArgs& args,
                                                void* stream = nullptr);

}  // namespace shortconv
