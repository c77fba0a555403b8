// The checked mode: counts the invalid values of the index tensors into the report, before the
// kernel of the call.
//
// Threads: a thread of the first kernel clears one word of the report, so that the second kernel
// can count with atomics. A thread of the second kernel checks one number: the sequence, the entry
// of query_start_loc and the row of snapshots with this number. It compares its write slot with
// those of all earlier sequences, which the block loads into shared memory, 256 at a time; the
// slots of intermediate states and of snapshots are compared the same way, and a slot that is read
// with those that all sequences write. A warp adds the violations of its threads in one atomic
// operation.
//
// Bytes moved: the entries of the index tensors, once for each later block: B^2 / 512 reads of
// slots for B sequences or rows; B^2 / 256 where slots that are read and written may differ.
// Ceiling: none is aimed at; up to some thousand sequences the two launches take most of the time.
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

/// Whether slot_of(other), a slot or -1, is `slot` for a number below `end` that counts(other). All
/// threads of the block call it together, with the same `end`.
template <typename SlotOf, typename Counts>
__device__ inline bool any_has_slot(std::int64_t slot, std::int64_t end, SlotOf&& slot_of,
                                    Counts&& counts) {
  __shared__ std::int64_t slots[kViolationThreads];
  bool found = false;
  for (std::int64_t first = 0; first < end; first += kViolationThreads) {
    const std::int64_t own = first + threadIdx.x;
    slots[threadIdx.x] = own < end ? slot_of(own) : -1;
    __syncthreads();
    for (int i = 0; i < kViolationThreads; ++i) {
      found |= slots[i] == slot && counts(first + i);
    }
    __syncthreads();
  }
  return found && slot >= 0;
}

/// Whether a number before the thread's own, of `count` numbers, has its slot. Numbers of the block
/// are consecutive.
template <typename SlotOf>
__device__ inline bool shares_slot(std::int64_t number, std::int64_t count, SlotOf&& slot_of) {
  const std::int64_t first = number - threadIdx.x;  // of the block
  if (first >= count) return false;
  const std::int64_t end = first + kViolationThreads < count ? first + kViolationThreads : count;
  return any_has_slot(number < count ? slot_of(number) : -1, end, slot_of,
                      [=](std::int64_t other) { return other < number; });
}

/// Whether another sequence writes the slot that a sequence only reads.
__device__ inline bool read_slot_is_written(const Problem& p, const TensorPointers& at,
                                            std::int64_t number) {
  if (number - threadIdx.x >= p.sequences) return false;
  const auto any = [](std::int64_t) { return true; };
  const std::int64_t slot = number < p.sequences ? kept_read_slot(p, at, number) : -1;
  bool found = any_has_slot(
      slot, p.sequences, [&](std::int64_t s) { return live_write_slot(p, at, s); }, any);
  if (captures_in_state(p, at)) {
    found |= any_has_slot(
        slot, p.sequences, [&](std::int64_t s) { return live_intermediate_slot(p, at, s); }, any);
  }
  return found;
}

/// Whether a sequence other than that of a row of snapshots reads or writes the row's slot.
__device__ inline bool snapshot_slot_is_used(const Problem& p, const TensorPointers& at,
                                             std::int64_t row) {
  if (row - threadIdx.x >= p.snapshot_count) return false;
  const std::int64_t slot = row < p.snapshot_count ? taken_snapshot_slot(p, at, row) : -1;
  const std::int64_t owner = slot >= 0 ? snapshot_at(p, at, row).sequence : -1;
  const auto another = [=](std::int64_t s) { return s != owner; };
  return any_has_slot(
             slot, p.sequences, [&](std::int64_t s) { return live_write_slot(p, at, s); },
             another) |
         any_has_slot(
             slot, p.sequences, [&](std::int64_t s) { return live_read_slot(p, at, s); }, another);
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
  const auto report = [&](Violation violation, bool is_violated) {
    if (is_violated) found |= bit_of(violation);
  };
  if (p.state.present) {
    report(Violation::kWriteSlotShared, shares_slot(number, p.sequences, written_slot));
  }
  if (p.intermediate_slots.present) {
    report(Violation::kIntermediateSlotShared, shares_slot(number, p.sequences, intermediate_slot));
  }
  if (may_write_other_slots(p, at)) {
    report(Violation::kReadSlotWritten, read_slot_is_written(p, at, number));
  }
  if (p.snapshot_count > 0) {
    report(Violation::kSnapshotSlotShared, shares_slot(number, p.snapshot_count, snapshot_slot));
    report(Violation::kSnapshotSlotInUse, snapshot_slot_is_used(p, at, number));
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
