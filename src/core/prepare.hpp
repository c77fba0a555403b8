// Checked calls of index preparation: sizes, strides and addresses for the backends.
#pragma once

#include <cstdint>

#include "core/element.hpp"

namespace shortconv {

/// An index tensor of one or two axes; strides in elements.
struct IndexTensor {
  void* data = nullptr;
  DType dtype = DType::kI32;
  std::int64_t outer = 0;  // stride of the first of two axes
  std::int64_t inner = 0;

  [[nodiscard]] SHORTCONV_HOST_DEVICE std::int64_t load(std::int64_t i, std::int64_t j) const {
    return load_index(dtype, data, i * outer + j * inner);
  }
  SHORTCONV_HOST_DEVICE void store(std::int64_t i, std::int64_t j, std::int64_t value) const {
    store_index(dtype, data, i * outer + j * inner, value);
  }
};

struct BlockSnapshots {
  IndexTensor query_start_loc, num_computed_tokens, block_slots, snapshots;
  Device device;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;
  std::int64_t blocks = 0;  // per sequence in block_slots
  std::int64_t block_size = 1;
  std::int64_t rows = 0;  // of snapshots
};

struct TreeParents {
  IndexTensor first_child, next_sibling, parents;
  IndexTensor query_start_loc;  // null: dense batch
  Device device;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;  // of each sequence; with query_start_loc: in all
};

}  // namespace shortconv
