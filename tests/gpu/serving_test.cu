// The serving runs of tests/unit/serving_test.cpp on the GPU.
#include "../common/serving_schedule.hpp"
#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

class GpuServing : public GpuTest {
 protected:
  Status by_graph(const ForwardArgs& args) {
    Problem problem;
    if (Status status = make_problem(args, problem); !status.ok()) return status;
    Plan plan;
    if (Status status = make_plan(problem, plan); !status.ok()) return status;
    const Replayable graph(stream_, [&] { return run(plan, addresses(args), stream_); });
    graph.replay();
    wait();
    return {};
  }
};

TEST_F(GpuServing, RandomSchedulesEqualOnePass) {
  constexpr std::uint32_t kSchedules = 500;
  constexpr std::int64_t kByGraph = 3;  // one of so many calls
  std::int64_t calls = 0;
  test::ServingCounts counts;
  for (std::uint32_t seed = 0; seed < kSchedules; ++seed) {
    std::vector<void*> blocks;
    const auto waited = [&](auto&& work) {
      check(cudaDeviceSynchronize());
      const Status status = work();
      check(cudaDeviceSynchronize());
      return status;
    };
    const test::ServingMemory memory{
        .allocate =
            [&](std::size_t bytes) {
              void* data = nullptr;
              check(cudaMallocManaged(&data, bytes));
              blocks.push_back(data);
              return data;
            },
        .forward_and_wait =
            [&](const ForwardArgs& args) {
              return waited([&] {
                return ++calls % kByGraph == 0 ? by_graph(args) : forward(args, stream_);
              });
            },
        .commit_and_wait =
            [&](const CommitArgs& args) { return waited([&] { return commit(args, stream_); }); },
        .device = kGpu};
    test::ServingSchedule schedule(memory, seed);
    schedule.run();
    for (void* block : blocks) check(cudaFree(block));
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
    counts += schedule.counts();
  }
  counts.expect_enough(kSchedules);
}

}  // namespace
}  // namespace shortconv::gpu_tests
