// The checked mode: counts the invalid values of the index tensors into the report, before the
// kernel of the call.
//
// Threads: a thread of the first kernel clears one word of the report, so that the second kernel
// can count with atomics. A thread of the second kernel checks one number: the sequence, the entry
// of query_start_loc and the row of snapshots with this number. It compares its write slot with
// those of all earlier sequences, which the block loads into shared memory, 256 at a time; the
// slots of intermediate states and of snapshots are compared the same way. A warp adds the
// violations of its threads in one atomic operation.
//
// Bytes moved: the entries of the index tensors, once for each later block: B^2 / 512 reads of
// slots for B sequences or rows. Ceiling: none is aimed at; up to some thousand sequences the two
// launches take most of the time.
#pragma once

#include <cstdint>

#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"
#include "op/violation.hpp"

namespace shortconv::cuda {

/// A word of the report, as the atomics take it. -1, "none", is the largest number of this type, so
/// the first violation is a minimum.
using ReportWord = unsigned long long;
static_assert(sizeof(ReportWord) == sizeof(std::int64_t));

__device__ inline ReportWord* report_word(const Problem& p, const TensorPointers& at, int violation,
                                          int column) {
  return static_cast<ReportWord*>(at.violations) + violation * p.violations.entry_stride +
         column * p.violations.column_stride;
}

__global__ void __launch_bounds__(kViolationThreads)
    clear_report(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const auto violation = static_cast<int>(threadIdx.x / 2);
  const auto column = static_cast<int>(threadIdx.x % 2);
  if (violation >= kViolations) return;
  *report_word(p, at, violation, column) = column == kViolationCount ? 0 : ~ReportWord{0};
}

/// Whether a number before the thread's own has the same slot, of `count` numbers. slot_of(number)
/// is the slot or -1. All threads of the block call it together, with consecutive numbers.
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
    count_violations(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const std::int64_t number = std::int64_t{blockIdx.x} * kViolationThreads + threadIdx.x;
  std::uint32_t found = number < violation_numbers(p) ? violations_at(p, at, number) : 0;
  const auto written_slot = [&](std::int64_t s) { return live_write_slot(p, at, s); };
  const auto intermediate_slot = [&](std::int64_t s) { return live_intermediate_slot(p, at, s); };
  const auto snapshot_slot = [&](std::int64_t row) { return taken_snapshot_slot(p, at, row); };
  if (p.state.present && shares_slot(number, p.sequences, written_slot)) {
    found |= bit_of(Violation::kWriteSlotShared);
  }
  if (p.intermediate_slots.present && shares_slot(number, p.sequences, intermediate_slot)) {
    found |= bit_of(Violation::kIntermediateSlotShared);
  }
  if (p.snapshot_count > 0 && shares_slot(number, p.snapshot_count, snapshot_slot)) {
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
