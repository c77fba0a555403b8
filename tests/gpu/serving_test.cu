// The serving runs of tests/unit/serving_test.cpp on the GPU.
#include "../common/serving_schedule.hpp"
#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

using GpuServing = GpuTest;

TEST_F(GpuServing, RandomSchedulesEqualOnePass) {
  constexpr std::uint32_t kSchedules = 500;
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
            [&](const ForwardArgs& args) { return waited([&] { return forward(args, stream_); }); },
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
