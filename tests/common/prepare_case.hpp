// Calls of index preparation with random values, valid and invalid, and the expected results. These
// follow the text of the header, not the implementation. The memory is host or GPU memory.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "guarded_tensor.hpp"
#include "shortconv/prepare.hpp"

namespace shortconv::test {

class RandomValues : public tools::Random {
 public:
  using Random::Random;
  DType index_dtype() { return chance(0.5) ? DType::kI32 : DType::kI64; }
  PoolLayout layout() { return static_cast<PoolLayout>(between(0, 2)); }
  /// An invalid index.
  std::int64_t bad_index(DType dtype) {
    const bool wide = dtype == DType::kI64;
    const std::int64_t most =
        wide ? std::numeric_limits<std::int64_t>::max() : std::numeric_limits<std::int32_t>::max();
    return pick<std::int64_t>({-1, -2, -most - 1, most, most - 1, 1 << 20, 500});
  }
  /// Bounds that never decrease. Some begin below 0 or end after `tokens`.
  std::vector<std::int64_t> bounds(std::int64_t sequences, std::int64_t longest, DType dtype,
                                   std::int64_t& tokens) {
    std::vector<std::int64_t> bounds{chance(0.6) ? 0 : between(0, 3)};
    for (std::int64_t s = 0; s < sequences; ++s) {
      bounds.push_back(bounds.back() + (chance(0.2) ? 0 : between(1, longest)));
    }
    tokens = bounds.back() + (chance(0.6) ? 0 : between(0, 20));
    if (chance(0.1)) bounds.front() = -between(1, 1000);
    if (chance(0.1)) bounds.back() = std::max(bad_index(dtype), bounds.back());
    return bounds;
  }
};

/// All cases have these functions: tensors() makes the tensors, expect() sets their expected
/// contents, and args() makes a call with the tensors at other addresses.
struct SnapshotCase {
  std::int64_t tokens = 0, block_size = 1, blocks = 0, spare_rows = 0;
  std::vector<std::int64_t> bounds, computed, slots;  // slots: [sequences, blocks]
  DType bounds_dtype = DType::kI32, computed_dtype = DType::kI32;
  DType slots_dtype = DType::kI32, list_dtype = DType::kI32;
  PoolLayout slots_layout{}, list_layout{};
  bool strided = false;

  SnapshotCase() = default;
  explicit SnapshotCase(std::uint32_t seed) {
    RandomValues random(seed);
    bounds_dtype = random.index_dtype();
    computed_dtype = random.index_dtype();
    slots_dtype = random.index_dtype();
    list_dtype = random.index_dtype();
    slots_layout = random.layout();
    list_layout = random.layout();
    strided = random.chance(0.3);
    const std::int64_t sequences = random.between(0, 9);
    bounds = random.bounds(sequences, random.chance(0.5) ? 5 : 70, bounds_dtype, tokens);
    block_size = random.chance(0.5) ? random.between(1, 8) : random.between(1, 40);
    if (random.chance(0.03)) block_size = std::numeric_limits<std::int64_t>::max();
    blocks = random.between(0, 90 / block_size + 1);
    spare_rows = random.chance(0.5) ? 0 : random.between(1, 9);
    for (std::int64_t s = 0; s < sequences; ++s) {
      computed.push_back(random.chance(0.08)  ? random.bad_index(computed_dtype)
                         : random.chance(0.4) ? 0
                                              : random.between(0, 60));
      for (std::int64_t block = 0; block < blocks; ++block) {
        slots.push_back(random.chance(0.15) ? random.bad_index(slots_dtype)
                                            : random.between(0, 300));
      }
    }
  }

  [[nodiscard]] std::int64_t sequences() const {
    return static_cast<std::int64_t>(computed.size());
  }
  [[nodiscard]] std::int64_t rows() const { return tokens / block_size + sequences() + spare_rows; }

  [[nodiscard]] std::vector<GuardedTensor> tensors() const {
    std::vector<GuardedTensor> tensors = {
        index_tensor(bounds, bounds_dtype, strided),
        index_tensor(computed, computed_dtype, strided),
        index_table(slots, sequences(), blocks, slots_dtype, slots_layout),
        GuardedTensor(list_dtype, {rows(), 3}, list_layout),
    };
    std::fill(tensors.back().memory.begin(), tensors.back().memory.end(), 0x5a);
    return tensors;
  }

  struct Row {
    std::int64_t row, sequence, token, slot;
  };
  /// The rows that are not ignored.
  [[nodiscard]] std::vector<Row> boundaries() const {
    std::vector<Row> found;
    for (std::int64_t s = 0; s < sequences(); ++s) {
      const std::int64_t begin = std::clamp<std::int64_t>(bounds[s], 0, tokens);
      const std::int64_t end = std::clamp<std::int64_t>(bounds[s + 1], 0, tokens);
      if (computed[s] < 0) continue;
      const __int128 first = computed[s], last = first + (end - begin);
      std::int64_t row = begin / block_size + s;
      for (__int128 m = (first / block_size + 1) * block_size; m <= last; m += block_size) {
        const __int128 block = m / block_size - 1;
        const std::int64_t slot =
            block < blocks ? slots[s * blocks + static_cast<std::int64_t>(block)] : -1;
        const bool fits = list_dtype == DType::kI64 || slot <= INT32_MAX;
        if (slot >= 0 && fits)
          found.push_back({row, s, static_cast<std::int64_t>(m - first), slot});
        ++row;
      }
    }
    return found;
  }
  void expect(std::vector<GuardedTensor>& tensors) const {
    GuardedTensor& list = tensors.back();
    const auto set = [&](const Row& row) {
      list.set({row.row, 0}, row.sequence);
      list.set({row.row, 1}, row.token);
      list.set({row.row, 2}, row.slot);
    };
    for (std::int64_t row = 0; row < rows(); ++row) set({row, -1, 0, -1});
    for (const Row& row : boundaries()) set(row);
  }

  [[nodiscard]] BlockSnapshotsArgs args(const std::vector<GuardedTensor>& tensors,
                                        const std::vector<void*>& bases, Device device = {}) const {
    BlockSnapshotsArgs args;
    args.query_start_loc = tensors[0].at(bases[0], device);
    args.num_computed_tokens = tensors[1].at(bases[1], device);
    args.block_slots = tensors[2].at(bases[2], device);
    args.snapshots = tensors[3].at(bases[3], device);
    args.tokens = tokens;
    args.block_size = block_size;
    return args;
  }
};

struct TreeCase {
  bool ragged = false;
  std::int64_t tokens = 0;           // dense: per sequence; ragged: of all sequences
  std::vector<std::int64_t> bounds;  // set for dense batches too
  std::vector<std::int64_t> first_child, next_sibling;
  DType child_dtype = DType::kI32, sibling_dtype = DType::kI32, parents_dtype = DType::kI32;
  DType bounds_dtype = DType::kI32;
  PoolLayout links_layout{}, parents_layout{};
  bool strided = false;

  TreeCase() = default;
  explicit TreeCase(std::uint32_t seed) {
    RandomValues random(seed);
    child_dtype = random.index_dtype();
    sibling_dtype = random.index_dtype();
    parents_dtype = random.index_dtype();
    bounds_dtype = random.index_dtype();
    links_layout = random.layout();
    parents_layout = random.layout();
    strided = random.chance(0.3);
    ragged = random.chance(0.5);
    const std::int64_t sequences = random.between(0, 6);
    if (ragged) {
      bounds = random.bounds(sequences, random.chance(0.7) ? 9 : 40, bounds_dtype, tokens);
    } else {
      tokens = random.between(0, random.chance(0.7) ? 9 : 40);
      for (std::int64_t s = 0; s <= sequences; ++s) bounds.push_back(s * tokens);
    }
    first_child.assign(static_cast<std::size_t>(ragged ? tokens : sequences * tokens), -1);
    next_sibling = first_child;
    for (std::int64_t s = 0; s < sequences; ++s) plant(random, s);
  }

  /// Links of a random tree, sometimes with invalid links among them.
  void plant(RandomValues& random, std::int64_t s) {
    const std::int64_t begin = begin_of(s), count = begin_of(s + 1) - begin;
    std::vector<std::int64_t> newest_child(static_cast<std::size_t>(count), -1);
    for (std::int64_t token = 1; token < count; ++token) {
      if (random.chance(0.05)) continue;  // no parent
      std::int64_t& newest = newest_child[random.between(0, token - 1)];
      const auto parent = static_cast<std::int64_t>(&newest - newest_child.data());
      (newest < 0 ? first_child[begin + parent] : next_sibling[begin + newest]) = token;
      newest = token;
    }
    for (std::int64_t mistakes = random.chance(0.4) ? random.between(1, 4) : 0; mistakes > 0;
         --mistakes) {
      const bool child = random.chance(0.5);
      if (count == 0) continue;
      (child ? first_child : next_sibling)[begin + random.between(0, count - 1)] =
          random.chance(0.7) ? random.between(-1, count + 1)
                             : random.bad_index(child ? child_dtype : sibling_dtype);
    }
  }

  [[nodiscard]] std::int64_t sequences() const {
    return static_cast<std::int64_t>(bounds.size()) - 1;
  }
  [[nodiscard]] std::int64_t begin_of(std::int64_t s) const {
    return ragged ? std::clamp<std::int64_t>(bounds[s], 0, tokens) : bounds[s];
  }

  [[nodiscard]] std::vector<GuardedTensor> tensors() const {
    const auto links = [&](const std::vector<std::int64_t>& values, DType dtype,
                           PoolLayout layout) {
      return ragged ? index_tensor(values, dtype, strided)
                    : index_table(values, sequences(), tokens, dtype, layout);
    };
    std::vector<GuardedTensor> tensors = {
        links(first_child, child_dtype, links_layout),
        links(next_sibling, sibling_dtype, links_layout),
        index_tensor(bounds, bounds_dtype, strided),
        links(first_child, parents_dtype, parents_layout),
    };
    std::fill(tensors.back().memory.begin(), tensors.back().memory.end(), 0x5a);
    return tensors;
  }

  /// The parents of a sequence's tokens, found from the root on. A token has a parent if exactly
  /// one link leads to it. Other tokens have -1, and their links are ignored.
  [[nodiscard]] std::vector<std::int64_t> parents_of(std::int64_t s) const {
    const std::int64_t begin = begin_of(s),
                       count = std::max<std::int64_t>(begin_of(s + 1) - begin, 0);
    std::vector<std::int64_t> links(static_cast<std::size_t>(count), 0), parents(links.size(), -1);
    for (std::int64_t settled = 0; settled < count; ++settled) {  // each pass settles one token
      std::fill(links.begin(), links.end(), 0);
      std::vector<std::int64_t> found(links.size(), -1);
      for (std::int64_t from = 0; from <= settled; ++from) {
        const bool root = from == 0;
        if (!root && parents[from] < 0) continue;
        const auto lead = [&](std::int64_t to, std::int64_t parent) {
          if (to <= from || to >= count) return;
          ++links[to];
          found[to] = parent;
        };
        lead(first_child[begin + from], from);
        if (!root) lead(next_sibling[begin + from], parents[from]);
      }
      if (settled + 1 < count && links[settled + 1] == 1) parents[settled + 1] = found[settled + 1];
    }
    return parents;
  }
  void expect(std::vector<GuardedTensor>& tensors) const {
    GuardedTensor& parents = tensors.back();
    for (std::int64_t s = 0; s < sequences(); ++s) {
      const std::vector<std::int64_t> found = parents_of(s);
      for (std::size_t token = 0; token < found.size(); ++token) {
        const auto t = static_cast<std::int64_t>(token);
        if (ragged) {
          parents.set({begin_of(s) + t}, found[token]);
        } else {
          parents.set({s, t}, found[token]);
        }
      }
    }
  }

  [[nodiscard]] TreeParentsArgs args(const std::vector<GuardedTensor>& tensors,
                                     const std::vector<void*>& bases, Device device = {}) const {
    TreeParentsArgs args;
    args.first_child = tensors[0].at(bases[0], device);
    args.next_sibling = tensors[1].at(bases[1], device);
    if (ragged) args.query_start_loc = tensors[2].at(bases[2], device);
    args.parents = tensors[3].at(bases[3], device);
    return args;
  }
};

/// One name for all preparations, so that a test can be a template over the cases.
inline Status prepare(const BlockSnapshotsArgs& args, void* stream = nullptr) {
  return block_snapshots(args, stream);
}
inline Status prepare(const TreeParentsArgs& args, void* stream = nullptr) {
  return tree_parents(args, stream);
}
}  // namespace shortconv::test
