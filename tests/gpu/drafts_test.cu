// Verify on the GPU: random drafts against forward calls over their lines of ancestors, behind a
// stream and in a graph whose lengths change.
#include "../common/draft_case.hpp"
#include "shared_memory.cuh"
#include "shortconv/violation.hpp"

namespace shortconv::gpu_tests {
namespace {

using GpuDrafts = GpuTest;

TEST_F(GpuDrafts, EqualForwardCallsOverTheirLinesOfAncestors) {
  for (std::uint32_t seed = 0; seed < 600; ++seed) {
    SharedMemory shared(stream_);
    test::DraftCase one(shared.memory(), seed);
    one.check();
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
  }
}

TEST_F(GpuDrafts, BadParentsAreReported) {
  Batch batch({4, 0, 3, 2}, 512);
  const DeviceMemory parents(std::vector<std::int32_t>{-1, 0, 0, 1, -1, 1, -2, 0, 0});
  const DeviceMemory report(2 * kViolations * 8);
  ForwardArgs args = batch.args();
  args.op = Op::kVerify;
  args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {9}, kGpu);
  args.options.violations =
      TensorRef::contiguous(report.data(), DType::kI64, {kViolations, 2}, kGpu);
  expect_ok(forward(args, stream_));
  wait();
  std::int64_t words[kViolations][2];
  check(cudaMemcpy(words, report.data(), sizeof words, cudaMemcpyDeviceToHost));
  const auto kind = static_cast<int>(Violation::kParentNotBefore);
  EXPECT_EQ(words[kind][kViolationCount], 2);  // of the last two sequences
  EXPECT_EQ(words[kind][kViolationFirst], 2);
  for (int v = 0; v < kind; ++v) EXPECT_EQ(words[v][kViolationCount], 0);
}

// A graph is captured once for a capacity of rows; the drafts of each replay are others.
TEST_F(GpuDrafts, GraphsReplayWithOtherLengths) {
  Batch batch({4, 4, 4, 4}, 512, 16);
  DeviceMemory windows(16 * 3 * 512 * 2), expected_windows(16 * 3 * 512 * 2),
      expected(16 * 512 * 2);
  ForwardArgs args = batch.args();
  args.op = Op::kVerify;
  args.sequences.padded_rows = PaddedRows::kUntouched;
  args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kBF16, {16, 3, 512}, kGpu);
  Problem problem;
  Plan plan;
  expect_ok(make_problem(args, problem));
  expect_ok(make_plan(problem, plan));
  const Replayable graph(stream_, [&] { return run(plan, pointers(args), stream_); });
  Differences differences;
  for (const std::vector<std::int64_t>& lengths :
       {std::vector<std::int64_t>{4, 4, 4, 4}, {1, 0, 9, 3}, {0, 0, 0, 16}, {2, 1, 1, 1}}) {
    batch.set_lengths(lengths);
    batch.out.poison();
    windows.poison();
    expected.poison();
    expected_windows.poison();
    ForwardArgs direct = args;
    direct.out.data = expected.data();
    direct.drafts.intermediate_states->data = expected_windows.data();
    expect_ok(forward(direct, stream_));
    graph.replay();
    wait();
    differences.add(batch.out, expected, stream_);
    differences.add(windows, expected_windows, stream_);
    EXPECT_EQ(differences.total(), 0u);
  }
}

}  // namespace
}  // namespace shortconv::gpu_tests
