// The list of snapshots, rows (sequence, token, slot) in any order: which of them a sequence's
// owner has to take.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/search.cuh"
#include "cuda/sequence.cuh"

namespace shortconv::cuda {

/// A row of the list, -1 for what is beyond 31 bits.
struct ListedSnapshot {
  int sequence = -1, token = -1, slot = -1;
};

__device__ inline ListedSnapshot listed_snapshot(const Call& call, int number) {
  const auto column = [&](int index) {
    const std::int64_t value =
        load_index(call.snapshots_dtype, call.snapshot_list,
                   number * call.snapshots_row + index * call.snapshots_column);
    return static_cast<std::uint64_t>(value) <= 0x7fffffff ? static_cast<int>(value) : -1;
  };
  return {column(0), column(1), column(2)};
}

/// Whether a snapshot is to be taken of its sequence, which is not skipped: is_taken of
/// op/sequence.hpp.
__device__ inline bool is_taken(const Call& call, const ListedSnapshot& snapshot, int length,
                                const SequenceState& state) {
  return length > 0 && snapshot.token >= 0 && snapshot.token <= length &&
         usable_slot(call, snapshot.slot) && snapshot.slot != state.write_slot;
}

/// Whether it goes to the slot which its sequence begins from: replaces_history of op/sequence.hpp.
__device__ inline bool replaces_history(const SequenceState& state, int slot) {
  return state.read_slot >= 0 && slot == state.read_slot;
}

/// Calls take(token, slot) for the snapshots of a sequence before token `end`. The lanes of a warp,
/// from the first one on, look for them together.
template <typename Take>
__device__ inline void for_own_snapshots(const Call& call, unsigned lanes, int sequence, int length,
                                         const SequenceState& state, int end, Take&& take) {
  const int lane = static_cast<int>(threadIdx.x % 32), step = __popc(lanes);
  const auto is_own = [&](const ListedSnapshot& snapshot) {
    return snapshot.sequence == sequence && snapshot.token < end &&
           is_taken(call, snapshot, length, state);
  };
  // Mostly there are none, and to know that, no load has to wait for another.
  bool some = false;
#pragma unroll 4
  for (int number = lane; number < call.snapshots; number += step) {
    some |= is_own(listed_snapshot(call, number));
  }
  if (!__any_sync(lanes, some)) return;
  for (int base = 0; base < call.snapshots; base += step) {
    const ListedSnapshot snapshot =
        base + lane < call.snapshots ? listed_snapshot(call, base + lane) : ListedSnapshot{};
    for (unsigned left = __ballot_sync(lanes, is_own(snapshot)); left != 0; left &= left - 1) {
      const int from = __ffs(left) - 1;
      take(__shfl_sync(lanes, snapshot.token, from), __shfl_sync(lanes, snapshot.slot, from));
    }
  }
}

}  // namespace shortconv::cuda
