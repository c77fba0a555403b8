#include "bench/front.hpp"

namespace shortconv::tools::bench {
namespace {

constexpr std::int64_t kHeadDim = 128;

std::int64_t channels_of(const Front& front, bool copied) {
  std::int64_t channels = 0;
  for (const FrontGroup& group : front.groups) {
    if (group.copy == copied) channels += group.channels();
  }
  return channels;
}

/// Adds a group of adjacent heads behind the columns that are in use.
void add_flat(Front& front, std::int64_t heads, std::int64_t head_dim, bool normalize) {
  front.groups.push_back({.heads = heads,
                          .head_dim = head_dim,
                          .input = {.offset = front.columns},
                          .normalize = normalize});
  front.columns += heads * head_dim;
}

}  // namespace

std::int64_t Front::convolved_channels() const { return channels_of(*this, false); }
std::int64_t Front::copied_channels() const { return channels_of(*this, true); }

Front delta_front(const DeltaFrontOptions& options) {
  const std::int64_t keys = options.key_heads, values = options.value_heads;
  const std::int64_t ratio = values / keys;
  Front front{.columns = 0, .groups = {}, .gate_heads = values, .gate_block_heads = ratio};
  if (!options.is_interleaved) {
    front.gate_block_heads = values;
    add_flat(front, keys, kHeadDim, true);
    add_flat(front, keys, kHeadDim, true);
    add_flat(front, values, kHeadDim, false);
    add_flat(front, values, kHeadDim, false);
    front.groups.back().copy = true;
  } else {
    const std::int64_t block = 2 * kHeadDim * (1 + ratio);
    const auto map = [&](std::int64_t offset, std::int64_t heads) {
      return HeadMap{.offset = offset, .block_heads = heads, .block_stride = block};
    };
    front.columns = keys * block;
    front.groups = {
        {.heads = keys, .head_dim = kHeadDim, .input = map(0, 1), .normalize = true},
        {.heads = keys, .head_dim = kHeadDim, .input = map(kHeadDim, 1), .normalize = true},
        {.heads = values, .head_dim = kHeadDim, .input = map(2 * kHeadDim, ratio)},
        {.heads = values,
         .head_dim = kHeadDim,
         .input = map((2 + ratio) * kHeadDim, ratio),
         .copy = true}};
  }
  if (!options.copies_z) front.groups.pop_back();
  return front;
}

Front delta_decode_front(const DeltaFrontOptions& options) {
  DeltaFrontOptions with_z = options;
  with_z.copies_z = true;
  Front front = delta_front(with_z);
  front.is_packed = true;
  front.gate_heads = 0;
  for (FrontGroup& group : front.groups) group.normalize = false;
  return front;
}

Front kda_front(std::int64_t heads) {
  Front front;
  for (int part = 0; part < 3; ++part) add_flat(front, heads, kHeadDim, false);
  return front;
}

Front mamba2_front(std::int64_t heads, std::int64_t head_dim, std::int64_t groups) {
  Front front{.columns = heads * head_dim, .groups = {}};  // z
  add_flat(front, heads, head_dim, false);
  add_flat(front, groups, kHeadDim, false);
  add_flat(front, groups, kHeadDim, false);
  front.columns += heads;  // dt
  return front;
}

}  // namespace shortconv::tools::bench
