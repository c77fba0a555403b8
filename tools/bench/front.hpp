// The front of a layer: how the rows of its projection are divided into groups, and what is
// computed of them.
#pragma once

#include <cstdint>
#include <vector>

#include "shortconv/groups.hpp"

namespace shortconv::tools::bench {

struct FrontGroup {
  std::int64_t heads = 0, head_dim = 0;
  HeadMap input;
  bool copy = false, normalize = false;

  [[nodiscard]] std::int64_t channels() const { return heads * head_dim; }
};

struct Front {
  std::int64_t columns = 0;  // of a row of x
  std::vector<FrontGroup> groups;
  bool is_packed = false;  // the outputs of the convolved groups are columns of one tensor
  // Gates of these heads, from rows [b | a] in blocks of `gate_block_heads` heads; 0: none.
  std::int64_t gate_heads = 0, gate_block_heads = 0;

  [[nodiscard]] std::int64_t convolved_channels() const;
  [[nodiscard]] std::int64_t copied_channels() const;
};

/// A gated delta net with heads of 128: Qwen3-Next's interleaved rows [q | k | v | z] of each key
/// head, or flat rows [q | k | v | z].
struct DeltaFrontOptions {
  std::int64_t key_heads = 16, value_heads = 32;
  bool is_interleaved = true;
  bool copies_z = false;
};
[[nodiscard]] Front delta_front(const DeltaFrontOptions& options);
/// The same for one token of each sequence: neither norms nor gates, and the outputs of the
/// convolution are one row, as consumers of packed rows take them; z is copied.
[[nodiscard]] Front delta_decode_front(const DeltaFrontOptions& options);
/// Kimi's delta attention: q, k and v of `heads` heads of 128.
[[nodiscard]] Front kda_front(std::int64_t heads);
/// Mamba-2: rows [z | x | B | C | dt], of which x, B and C are convolved. States of 128.
[[nodiscard]] Front mamba2_front(std::int64_t heads, std::int64_t head_dim, std::int64_t groups);

}  // namespace shortconv::tools::bench
