// Commit on the CPU: copies accepted windows into the state pool.
//
// Who owns what: an item is the window of one sequence in one layer, and threads take items as they
// come. Live slots differ, so no two items meet. Bytes moved: each accepted window is read once and
// written once or twice; rows of adjacent channels are copied whole, and the ceiling is memcpy.
#include "cpu/commit.hpp"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "op/commit.hpp"

namespace shortconv::cpu {
namespace {

struct Choice {
  std::int32_t threads = 1;
};

template <typename Bits>
void copy_elements(const char* from, std::int64_t from_stride, char* to, std::int64_t to_stride,
                   std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * to_stride * std::int64_t{sizeof(Bits)},
                from + i * from_stride * std::int64_t{sizeof(Bits)}, sizeof(Bits));
  }
}

void copy_window(const CommitProblem& p, const char* from, char* to) {
  const std::int64_t bytes = element_bytes(p.dtype);
  for (std::int64_t row = 0; row < p.width - 1; ++row) {
    const char* source = from + row * p.windows_row * bytes;
    char* target = to + row * p.state_column * bytes;
    if (p.windows_channel == 1 && p.state_channel == 1) {
      std::memcpy(target, source, static_cast<std::size_t>(p.channels * bytes));
    } else if (bytes == 2) {
      copy_elements<std::uint16_t>(source, p.windows_channel, target, p.state_channel, p.channels);
    } else if (bytes == 4) {
      copy_elements<std::uint32_t>(source, p.windows_channel, target, p.state_channel, p.channels);
    } else {
      copy_elements<std::uint64_t>(source, p.windows_channel, target, p.state_channel, p.channels);
    }
  }
}

void commit_item(const CommitProblem& p, const CommitAddresses& at, std::int64_t item) {
  const std::int64_t layer = item / p.sequences;
  const std::int64_t sequence = item % p.sequences;
  const Commit commit = commit_of(p, at, sequence);
  if (commit.token < 0) return;
  const std::int64_t bytes = element_bytes(p.dtype);
  const char* from = static_cast<const char*>(at.windows) +
                     window_offset(p, layer, sequence, commit.token) * bytes;
  for (const std::int64_t slot : {commit.slot, commit.second_slot}) {
    if (slot < 0) continue;
    copy_window(p, from, static_cast<char*>(at.state) + history_offset(p, layer, slot) * bytes);
  }
}

}  // namespace

Status plan_commit(const CommitProblem& p, PlanStorage& storage) {
  const std::int64_t wanted = p.threads > 0 ? p.threads : omp_get_max_threads();
  const Choice choice{
      static_cast<std::int32_t>(std::clamp<std::int64_t>(p.layers * p.sequences, 1, wanted))};
  store_choice(storage, choice);
  return {};
}

Status run_commit(const CommitProblem& problem, const PlanStorage& storage,
                  const CommitAddresses& at, void*) {
  const auto choice = load_choice<Choice>(storage);
  const CommitProblem p = with_adjacent_channels(problem);
  const std::int64_t items = p.layers * p.sequences;
#pragma omp parallel for schedule(dynamic) num_threads(choice.threads) if (choice.threads > 1)
  for (std::int64_t item = 0; item < items; ++item) commit_item(p, at, item);
  return {};
}

}  // namespace shortconv::cpu
