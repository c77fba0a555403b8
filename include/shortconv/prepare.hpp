// Index tensors of a step, made on the device from index tensors of the engine, once for all
// layers. Each function is one small launch without a plan: no allocation, no synchronization, no
// lengths on the host, so it can be captured in a graph. The first call on a device loads the
// kernel; call once before a capture, with no rows to write almost nothing. Index tensors are i32
// or i64 each, with any strides.
#pragma once

#include <cstdint>
#include <optional>

#include "shortconv/export.h"
#include "shortconv/problem.hpp"
#include "shortconv/status.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

/// Snapshots for a prefix cache: the state after each full block. The result is a list for
/// PoolArgs::snapshots.
struct BlockSnapshotsArgs {
  TensorRef query_start_loc;      ///< [sequences + 1]; bounds are clamped to [0, tokens]
  TensorRef num_computed_tokens;  ///< [sequences]; tokens of each sequence before this step
  TensorRef block_slots;          ///< [sequences, blocks]; slot for the state after each full block
                                  ///< of the sequence; negative: none
  std::int64_t tokens = 0;        ///< rows of the packed batch
  std::int64_t block_size = 0;    ///< tokens per block, at least 1
  TensorRef snapshots;            ///< [rows >= tokens / block_size + sequences, 3], written

  BackendId backend = BackendId::kAuto;
};

/// Fills all rows of `snapshots` with (sequence, token, slot), or with (-1, 0, -1), which a call
/// ignores. A sequence s with c computed tokens and L tokens in this step has a row (s, m - c,
/// block_slots[s, m / block_size - 1]) for each multiple m of block_size in (c, c + L] whose slot
/// is in the table and not negative. Its rows begin at row query_start_loc[s] / block_size + s. A
/// sequence with a negative c has none. If bounds decrease, rows may be missing, but none is wrong.
[[nodiscard]] SHORTCONV_API Status block_snapshots(const BlockSnapshotsArgs& args,
                                                   void* stream = nullptr);

/// Draft trees as links between tokens, counted from the first token of their sequence; -1: no
/// link. Token 0 is the root, and links lead to later tokens.
struct TreeParentsArgs {
  TensorRef first_child;   ///< [sequences, tokens], or [tokens] with query_start_loc
  TensorRef next_sibling;  ///< the same shape
  std::optional<TensorRef> query_start_loc;  ///< [sequences + 1]: ragged trees
  TensorRef parents;                         ///< the same shape, written

  BackendId backend = BackendId::kAuto;
};

/// Fills `parents` for DraftArgs::parents. A token without exactly one path from the root has
/// parent -1, like the root, and its links are ignored. Links that lead backwards, to their own
/// token or out of the sequence are ignored, and so are siblings of the root. Rows outside all
/// sequences are not written.
[[nodiscard]] SHORTCONV_API Status tree_parents(const TreeParentsArgs& args,
                                                void* stream = nullptr);

}  // namespace shortconv
