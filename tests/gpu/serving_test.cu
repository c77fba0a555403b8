// The serving runs of tests/unit/serving_test.cpp on the GPU. Some calls go by themselves, most by
// graphs that were captured for earlier steps of the same run: later lengths, slots and flags are
// copied into their buffers.
#include <memory>

#include "../common/capacity_calls.hpp"
#include "../common/serving_schedule.hpp"
#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

using GpuServing = GpuTest;

TEST_F(GpuServing, RandomSchedulesEqualOnePass) {
  constexpr std::uint32_t kSchedules = 500;
  constexpr std::int64_t kDirectly = 4;  // one of so many calls
  std::int64_t calls = 0, replays = 0;
  test::ServingCounts counts;
  for (std::uint32_t seed = 0; seed < kSchedules; ++seed) {
    std::vector<void*> blocks;
    const auto waited = [&](auto&& work) {
      check(cudaDeviceSynchronize());
      const Status status = work();
      check(cudaDeviceSynchronize());
      return status;
    };
    const auto allocate = [&](std::size_t bytes) {
      void* data = nullptr;
      check(cudaMallocManaged(&data, bytes));
      blocks.push_back(data);
      return data;
    };
    test::CapacityCalls graphs(allocate, [&](const Plan& plan, const TensorPointers& at) {
      check(cudaDeviceSynchronize());
      const auto graph =
          std::make_shared<Replayable>(stream_, [&] { return run(plan, at, stream_); });
      return [=] {
        return waited([&] {
          graph->replay();
          return Status();
        });
      };
    });
    const test::ServingMemory memory{
        .allocate = allocate,
        .forward_and_wait =
            [&](const ForwardArgs& args) {
              const bool by_graph = test::CapacityCalls::takes(args) && ++calls % kDirectly != 0;
              return by_graph ? graphs.run(args) : waited([&] { return forward(args, stream_); });
            },
        .commit_and_wait =
            [&](const CommitArgs& args) { return waited([&] { return commit(args, stream_); }); },
        .device = kGpu};
    test::ServingSchedule schedule(memory, seed);
    schedule.run();
    for (void* block : blocks) check(cudaFree(block));
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
    counts += schedule.counts();
    replays += graphs.replays();
  }
  counts.expect_enough(kSchedules);
  EXPECT_GT(replays, 3 * kSchedules);
}

}  // namespace
}  // namespace shortconv::gpu_tests
