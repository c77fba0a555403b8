// The tests of tests/common, shared by host and GPU, on the emulated device.
#include <gtest/gtest.h>

#include <deque>
#include <vector>

#include "../common/defects_batch.hpp"
#include "../common/defects_drafts.hpp"
#include "../common/defects_state.hpp"
#include "../common/draft_case.hpp"
#include "../common/epilogue_case.hpp"
#include "../common/known_values.hpp"
#include "../common/serving_schedule.hpp"
#include "../common/shift_full_state_case.hpp"
#include "runtime.hpp"

namespace shortconv::test {
namespace {

using emulated::kDevice;

INSTANTIATE_TEST_SUITE_P(
    Emulated, Defects,
    testing::Values(Machine{
        .name = "cuda",
        .forward = [](const ForwardArgs& args) { return forward(emulated::on_device(args)); },
        .commit = [](const CommitArgs& args) { return commit(emulated::on_device(args)); }}),
    [](const auto& info) { return info.param.name; });

/// Memory for calls, aligned to 256 bytes as that of a GPU.
class Memory {
 public:
  void* allocate(std::size_t bytes) {
    blocks_.emplace_back((bytes + sizeof(Line) - 1) / sizeof(Line));
    return blocks_.back().data();
  }
  [[nodiscard]] CallMemory for_calls() {
    return {.allocate = [this](std::size_t bytes) { return allocate(bytes); },
            .run_and_wait = [](const ForwardArgs& args) { return forward(args); },
            .device = kDevice};
  }

 private:
  struct alignas(256) Line {
    char bytes[256];
  };
  std::deque<std::vector<Line>> blocks_;
};

/// Calls one(memory, seed) for each seed.
template <typename One>
void for_seeds(std::uint32_t seeds, One&& one) {
  for (std::uint32_t seed = 0; seed < seeds; ++seed) {
    emulated::begin(seed);
    Memory memory;
    one(memory, seed);
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(Shared, DraftsEqualForwardCallsOverTheirAncestors) {
  for_seeds(
      150, [](Memory& memory, std::uint32_t seed) { DraftCase(memory.for_calls(), seed).check(); });
}

TEST(Shared, EpiloguesEqualPlainCallsThatAreFinishedByHand) {
  for_seeds(100, [](Memory& memory, std::uint32_t seed) {
    EpilogueCase(memory.for_calls(), seed).check();
  });
}

TEST(Shared, CallsWithShiftFullStateEqualThoseWithoutIt) {
  for_seeds(100, [](Memory& memory, std::uint32_t seed) {
    ShiftFullStateCase(memory.for_calls(), ShiftFullStateCase::random_shape(seed), seed).check();
  });
}

TEST(Shared, RandomSchedulesEqualOnePass) {
  constexpr std::uint32_t kSchedules = 80;
  ServingCounts counts;
  for_seeds(kSchedules, [&](Memory& memory, std::uint32_t seed) {
    const ServingMemory serving{
        .allocate = [&](std::size_t bytes) { return memory.allocate(bytes); },
        .forward_and_wait = [](const ForwardArgs& args) { return forward(args); },
        .commit_and_wait = [](const CommitArgs& args) { return commit(args); },
        .device = kDevice};
    ServingSchedule schedule(serving, seed);
    schedule.run();
    counts += schedule.counts();
  });
  counts.expect_enough(kSchedules);
}

}  // namespace
}  // namespace shortconv::test
