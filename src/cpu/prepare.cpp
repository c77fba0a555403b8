#include "cpu/prepare.hpp"

#include "op/prepare.hpp"

namespace shortconv::cpu {

Status block_snapshots(const BlockSnapshots& call, void*) {
  for (std::int64_t row = 0; row < call.rows; ++row) store_snapshot(call, row);
  return {};
}

Status tree_parents(const TreeParents& call, void*) {
  if (call.tokens == 0) return {};  // of however many sequences
  for (std::int64_t sequence = 0; sequence < call.sequences; ++sequence) {
    store_parents(call, sequence);
  }
  return {};
}

Status sequence_bounds(const SequenceBounds& call, void*) {
  const std::int64_t rows = call.batch * call.tokens;
  call.query_start_loc.store(0, call.sequences, rows);
  std::int64_t found = 0;
  for (std::int64_t number = rows - 1; number >= 0 && found < call.sequences; --number) {
    if (begins_sequence(call, number)) store_sequence(call, found++, number);
  }
  for (; found < call.sequences; ++found) store_no_sequence(call, found);
  return {};
}

}  // namespace shortconv::cpu
