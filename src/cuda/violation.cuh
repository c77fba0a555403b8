// The checked mode: counts the bad values of the index tensors into the report, before the kernel
// of the call.
//
// Who owns what: one thread of the first kernel sets one word of the report, so that the second one
// may count with atomics whatever was there before. There a thread owns one sequence, and the entry
// of query_start_loc and the row of snapshots with its number. Its write slot is compared with
// those of all earlier sequences, which the block loads into shared memory, 256 at a time; so are
// slots of windows and of snapshots. A warp adds what its threads found in one atomic operation.
//
// Bytes moved: the entries of the index tensors, once by each later block: B^2 / 512 reads of slots
// for B sequences or rows. No ceiling is aimed at: what counts up to some thousand sequences are
// the two launches.
#pragma once

#include <cstdint>

#include "cuda/grid.hpp"
#include "cuda/tuning.hpp"
#include "op/violation.hpp"

namespace shortconv::cuda {

/// A word of the report as the atomics know it. "None" is -1, in this type the largest number: the
/// lowest sequence concerned is a minimum.
using ReportWord = unsigned long long;
static_assert(sizeof(ReportWord) == sizeof(std::int64_t));

__device__ inline ReportWord* report_word(const Problem& p, const Addresses& at, int violation,
                                          int column) {
  return static_cast<ReportWord*>(at.violations) + violation * p.violations_row +
         column * p.violations_column;
}

__global__ void __launch_bounds__(kViolationThreads)
    clear_report(const __grid_constant__ Problem p, const __grid_constant__ Addresses at) {
  const auto violation = static_cast<int>(threadIdx.x / 2);
  const auto column = static_cast<int>(threadIdx.x % 2);
  if (violation >= kViolations) return;
  *report_word(p, at, violation, column) = column == kViolationCount ? 0 : ~ReportWord{0};
}

/// Whether a number before the thread's has the same slot, of `count` numbers; `slot_of` gives the
/// slot of one, or -1. All threads of a block come here together, one number after the other.
template <typename SlotOf>
__device__ inline bool shares_slot(std::int64_t number, std::int64_t count, SlotOf&& slot_of) {
  __shared__ std::int64_t slots[kViolationThreads];
  const std::int64_t first = number - threadIdx.x;  // of the block
  if (first >= count) return false;
  const std::int64_t own = number < count ? slot_of(number) : -1;
  bool shared = false;
  for (std::int64_t group = 0; group < first; group += kViolationThreads) {
    slots[threadIdx.x] = slot_of(group + threadIdx.x);
    __syncthreads();
    for (int i = 0; i < kViolationThreads; ++i) shared |= slots[i] == own;
    __syncthreads();
  }
  slots[threadIdx.x] = own;
  __syncthreads();
  for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) shared |= slots[i] == own;
  __syncthreads();
  return shared && own >= 0;
}

__global__ void __launch_bounds__(kViolationThreads)
    count_violations(const __grid_constant__ Problem p, const __grid_constant__ Addresses at) {
  const std::int64_t number = std::int64_t{blockIdx.x} * kViolationThreads + threadIdx.x;
  std::uint32_t found = number < violation_numbers(p) ? violations_at(p, at, number) : 0;
  const auto written_slot = [&](std::int64_t s) { return live_write_slot(p, at, s); };
  const auto window_slot = [&](std::int64_t s) { return live_window_slot(p, at, s); };
  const auto snapshot_slot = [&](std::int64_t row) { return taken_snapshot_slot(p, at, row); };
  if (p.has_state && shares_slot(number, p.sequences, written_slot)) {
    found |= bit_of(Violation::kWriteSlotShared);
  }
  if (p.has_window_slots && shares_slot(number, p.sequences, window_slot)) {
    found |= bit_of(Violation::kWindowSlotShared);
  }
  if (p.snapshots > 0 && shares_slot(number, p.snapshots, snapshot_slot)) {
    found |= bit_of(Violation::kSnapshotSlotShared);
  }

  for (int violation = 0; violation < kViolations; ++violation) {
    const std::uint32_t threads = __ballot_sync(~0u, (found >> violation & 1) != 0);
    if (threads == 0 || threadIdx.x % 32 != 0) continue;
    atomicAdd(report_word(p, at, violation, kViolationCount),
              static_cast<ReportWord>(__popc(threads)));
    atomicMin(report_word(p, at, violation, kViolationFirst),
              static_cast<ReportWord>(number + __ffs(threads) - 1));
  }
}

}  // namespace shortconv::cuda
