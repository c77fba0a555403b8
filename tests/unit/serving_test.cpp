// Random serving runs on the CPU, and some on the reference backend.
#include <gtest/gtest.h>

#include "../common/capacity_calls.hpp"
#include "../common/serving_schedule.hpp"

namespace shortconv {
namespace {

/// Whether all is well so far.
bool run_schedule(const test::ServingMemory& memory, std::uint32_t seed,
                  test::ServingCounts& counts) {
  test::ServingSchedule schedule(memory, seed);
  schedule.run();
  counts += schedule.counts();
  if (!testing::Test::HasFailure()) return true;
  ADD_FAILURE() << "seed " << seed;
  return false;
}

void run_schedules(BackendId backend, std::uint32_t schedules) {
  test::ServingCounts counts;
  for (std::uint32_t seed = 0; seed < schedules; ++seed) {
    // A team of threads costs more than these calls, so that it is the exception.
    const std::int32_t threads = seed % 64 == 0 ? 0 : 1;
    std::vector<std::vector<char>> blocks;
    const test::ServingMemory memory{.allocate =
                                         [&](std::size_t bytes) {
                                           blocks.emplace_back(bytes + 64);
                                           return static_cast<void*>(blocks.back().data());
                                         },
                                     .forward_and_wait =
                                         [&](const ForwardArgs& args) {
                                           ForwardArgs chosen = args;
                                           chosen.options.backend = backend;
                                           chosen.options.threads = threads;
                                           return forward(chosen);
                                         },
                                     .commit_and_wait =
                                         [&](const CommitArgs& args) {
                                           CommitArgs chosen = args;
                                           chosen.backend = backend;
                                           chosen.threads = threads;
                                           return commit(chosen);
                                         },
                                     .device = {}};
    if (!run_schedule(memory, seed, counts)) return;
  }
  counts.expect_enough(static_cast<int>(schedules));
}

TEST(Serving, RandomSchedulesEqualOnePassOnTheCpu) { run_schedules(BackendId::kCpu, 2000); }

// One plan serves all steps of a kind, whatever their lengths.
TEST(Serving, RandomSchedulesOfPlansThatAreKeptEqualOnePass) {
  constexpr std::uint32_t kSchedules = 300;
  test::ServingCounts counts;
  int replays = 0;
  for (std::uint32_t seed = 0; seed < kSchedules; ++seed) {
    std::vector<std::vector<char>> blocks;
    const auto allocate = [&](std::size_t bytes) {
      blocks.emplace_back(bytes + 64);
      return static_cast<void*>(blocks.back().data());
    };
    test::CapacityCalls calls(allocate, [](const Plan& plan, const TensorPointers& at) {
      return [plan, at] { return run(plan, at); };
    });
    const test::ServingMemory memory{
        .allocate = allocate,
        .forward_and_wait =
            [&](const ForwardArgs& args) {
              ForwardArgs chosen = args;
              chosen.options.threads = 1;
              return test::CapacityCalls::takes(chosen) ? calls.run(chosen) : forward(chosen);
            },
        .commit_and_wait =
            [](const CommitArgs& args) {
              CommitArgs chosen = args;
              chosen.threads = 1;
              return commit(chosen);
            },
        .device = {}};
    if (!run_schedule(memory, seed, counts)) return;
    replays += calls.replays();
  }
  counts.expect_enough(kSchedules);
  EXPECT_GT(replays, 5 * static_cast<int>(kSchedules));
}

TEST(Serving, RandomSchedulesEqualOnePassOnTheReference) {
  run_schedules(BackendId::kReference, 100);
}

}  // namespace
}  // namespace shortconv
