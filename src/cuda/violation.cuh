// The checked mode: counts the bad values of the index tensors into the report, before the kernel
// of the call.
//
// Who owns what: one thread of the first kernel sets one word of the report, so that the second one
// may count with atomics whatever was there before. There a thread owns one sequence and the entry
// of query_start_loc with its number. Its write slot is compared with those of all earlier
// sequences, which the block loads into shared memory, 256 at a time. A warp adds what its threads
// found in one atomic operation.
//
// Bytes moved: the entries of the index tensors, once by each later block: B^2 / 512 reads of slots
// for B sequences. No ceiling is aimed at: what counts up to some thousand sequences are the two
// launches.
#pragma once

#include <cstdint>

#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
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
  if (p.programmatic_launch) overlap_neighbours();
  const auto violation = static_cast<int>(threadIdx.x / 2);
  const auto column = static_cast<int>(threadIdx.x % 2);
  if (violation >= kViolations) return;
  *report_word(p, at, violation, column) = column == kViolationCount ? 0 : ~ReportWord{0};
}

/// Whether an earlier live sequence has the write slot of the thread's, `number`. All threads of a
/// block come here together; the last numbers may be beyond the sequences.
__device__ inline bool shares_write_slot(const Problem& p, const Addresses& at,
                                         std::int64_t number) {
  __shared__ std::int64_t slots[kViolationThreads];
  const std::int64_t own = number < p.sequences ? live_write_slot(p, at, number) : -1;
  const std::int64_t first = number - threadIdx.x;  // of the block
  bool shared = false;
  for (std::int64_t group = 0; group < first; group += kViolationThreads) {
    slots[threadIdx.x] = live_write_slot(p, at, group + threadIdx.x);
    __syncthreads();
    for (int i = 0; i < kViolationThreads; ++i) shared |= slots[i] == own;
    __syncthreads();
  }
  slots[threadIdx.x] = own;
  __syncthreads();
  for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) shared |= slots[i] == own;
  return shared && own >= 0;
}

__global__ void __launch_bounds__(kViolationThreads)
    count_violations(const __grid_constant__ Problem p, const __grid_constant__ Addresses at) {
  if (p.programmatic_launch) overlap_neighbours();
  const std::int64_t number = std::int64_t{blockIdx.x} * kViolationThreads + threadIdx.x;
  std::uint32_t found = number <= p.sequences ? violations_at(p, at, number) : 0;
  if (p.has_state && shares_write_slot(p, at, number)) found |= bit_of(Violation::kWriteSlotShared);

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
