// The list of snapshots: rows (sequence, token, slot) in any order, and the search for those of a
// sequence.
#pragma once

#include <cstdint>

#include "cuda/device/search.cuh"
#include "cuda/device/sequence.cuh"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

/// A row of the list, -1 for values beyond 31 bits.
struct SnapshotRow {
  int sequence = -1, token = -1, slot = -1;
};

__device__ inline SnapshotRow load_snapshot_row(const KernelParams& params, int number) {
  const auto column = [&](int index) {
    const std::int64_t value =
        load_index(params.snapshots_dtype, params.snapshots,
                   number * params.snapshots_entry_stride + index * params.snapshots_column_stride);
    return static_cast<std::uint64_t>(value) <= 0x7fffffff ? static_cast<int>(value) : -1;
  };
  return {column(0), column(1), column(2)};
}

/// is_taken of op/sequence.hpp, for a sequence that is not skipped.
__device__ inline bool is_taken(const KernelParams& params, const SnapshotRow& snapshot, int length,
                                const SequenceState& state) {
  return length > 0 && snapshot.token >= 0 && snapshot.token <= length &&
         usable_slot(params, snapshot.slot) && snapshot.slot != state.write_slot;
}

/// replaces_history of op/sequence.hpp.
__device__ inline bool replaces_history(const SequenceState& state, int slot) {
  return state.read_slot >= 0 && slot == state.read_slot;
}

/// Calls take(token, slot) for the snapshots of a sequence before token `end`. `lanes`, a mask from
/// lane 0 on, search the list together.
template <typename Take>
__device__ inline void for_sequence_snapshots(const KernelParams& params, unsigned lanes,
                                              int sequence, int length, const SequenceState& state,
                                              int end, Take&& take) {
  const int lane = static_cast<int>(threadIdx.x % 32), step = __popc(lanes);
  const auto is_own = [&](const SnapshotRow& snapshot) {
    return snapshot.sequence == sequence && snapshot.token < end &&
           is_taken(params, snapshot, length, state);
  };
  // Most sequences have none: this loop finds out with independent loads.
  bool some = false;
#pragma unroll 4
  for (int number = lane; number < params.snapshot_count; number += step) {
    some |= is_own(load_snapshot_row(params, number));
  }
  if (!__any_sync(lanes, some)) return;
  for (int base = 0; base < params.snapshot_count; base += step) {
    const SnapshotRow snapshot = base + lane < params.snapshot_count
                                     ? load_snapshot_row(params, base + lane)
                                     : SnapshotRow{};
    for (unsigned left = __ballot_sync(lanes, is_own(snapshot)); left != 0; left &= left - 1) {
      const int from = __ffs(left) - 1;
      take(__shfl_sync(lanes, snapshot.token, from), __shfl_sync(lanes, snapshot.slot, from));
    }
  }
}

}  // namespace shortconv::cuda
