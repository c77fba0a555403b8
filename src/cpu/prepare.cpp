// Index preparation on one thread: a step has some hundred entries, thousands at most.
#include "op/prepare.hpp"

#include "cpu/backend.hpp"

namespace shortconv::cpu {

Status block_snapshots(const BlockSnapshots& call, void*) {
  for (std::int64_t row = 0; row < call.rows; ++row) store_snapshot(call, row);
  return {};
}

Status tree_parents(const TreeParents& call, void*) {
  if (call.tokens == 0) return {};  // for any number of sequences
  for (std::int64_t sequence = 0; sequence < call.sequences; ++sequence) {
    store_parents(call, sequence);
  }
  return {};
}

}  // namespace shortconv::cpu
