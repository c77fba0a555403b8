// Commit on the CPU: copies accepted intermediate states into the state pool.
//
// Threads: an item is the state of one sequence in one layer; the threads take them
// dynamically.
// Live slots are distinct, so no two items write the same memory. Bytes moved: each accepted state
// is read once and written once or twice. Rows of adjacent channels are copied whole; the ceiling
// is memcpy.
#include "op/commit.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "core/thread_pool.hpp"
#include "cpu/backend.hpp"
#include "cpu/move.hpp"

namespace shortconv::cpu {
namespace {

void commit_item(const CommitProblem& p, const CommitPointers& at, std::int64_t item) {
  const std::int64_t layer = item / p.sequences;
  const std::int64_t sequence = item % p.sequences;
  const Commit commit = commit_of(p, at, sequence);
  if (commit.token < 0) return;
  const DType dtype = p.state.dtype;
  const std::int64_t bytes = element_bytes(dtype);
  const char* from = static_cast<const char*>(at.intermediate_states) +
                     intermediate_offset(p, layer, sequence, commit.token) * bytes;
  for (const std::int64_t slot : {commit.slot, commit.second_slot}) {
    if (slot < 0) continue;
    char* to = static_cast<char*>(at.state) + history_offset(p, layer, slot) * bytes;
    for (std::int64_t row = 0; row < p.width - 1; ++row) {
      copy_run(from + row * p.intermediate_states.column_stride * bytes,
               p.intermediate_states.channel_stride, dtype,
               to + row * p.state.column_stride * bytes, p.state.channel_stride, dtype, p.channels);
    }
  }
}

}  // namespace

Status plan_commit(const CommitProblem& p, PlanStorage& storage) {
  // In fp64, in which no size overflows: those of tensors without elements are not bounded.
  const double states = static_cast<double>(p.layers) * static_cast<double>(p.sequences);
  const double bytes = 2 * states * (p.width - 1) * static_cast<double>(p.channels) *
                       static_cast<double>(element_bytes(p.state.dtype));
  const double threads = std::clamp<double>(states, 1, thread_limit(p.threads, bytes));
  store_choice(storage, static_cast<std::int32_t>(threads));
  return {};
}

Status run_commit(const CommitProblem& problem, const PlanStorage& storage,
                  const CommitPointers& at, void*) {
  const auto threads = load_choice<std::int32_t>(storage);
  const CommitProblem p = with_adjacent_channels(problem);
  for_each_item(threads, p.layers * p.sequences,
                [&](std::int64_t item) { commit_item(p, at, item); });
  return {};
}

std::string describe_commit(const CommitProblem&, const PlanStorage& storage) {
  return concat("commit, ", std::int64_t{load_choice<std::int32_t>(storage)}, " threads");
}

}  // namespace shortconv::cpu
