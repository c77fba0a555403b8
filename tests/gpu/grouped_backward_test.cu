// Gradients of calls with groups on a GPU: random calls against fp64, the same bits in every run.
#include <cstdint>
#include <string>

#include "fixture.cuh"
#include "verify/grouped_backward_case.hpp"

namespace shortconv::gpu_tests {
namespace {

namespace verify = tools::verify;

using GpuGroupedBackward = GpuTest;

TEST_F(GpuGroupedBackward, RandomCallsAreWithinTheBounds) {
  constexpr std::int64_t kCases = 1000;
  std::int64_t supported = 0;
  std::string refusal;  // of a case as the kernels should take it
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const verify::GroupedBackwardCase problem = verify::make_grouped_backward_case(seed);
    const verify::Verdict verdict = verify::check_grouped_backward(problem, BackendId::kCuda);
    ASSERT_FALSE(verdict.failure) << *verdict.failure << "\n" << to_string(problem);
    if (!verdict.unsupported) ++supported;
    if (verdict.unsupported && problem.is_fast) refusal = *verdict.unsupported;
  }
  EXPECT_GE(2 * supported, kCases) << refusal;
}

TEST_F(GpuGroupedBackward, EveryRunGivesTheSameBits) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    const verify::GroupedBackwardCase problem = verify::make_grouped_backward_case(seed);
    const auto failure = verify::check_grouped_backward_repeats(problem, BackendId::kCuda);
    ASSERT_FALSE(failure) << *failure << "\n" << to_string(problem);
  }
}

}  // namespace
}  // namespace shortconv::gpu_tests
