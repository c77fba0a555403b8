// Gradients of calls with groups of the CUDA backend on the emulated device.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "runtime.hpp"
#include "verify/grouped_backward_case.hpp"

namespace shortconv::tools::verify {
namespace {

#ifdef SHORTCONV_ADDRESS_SANITIZER
constexpr std::int64_t kCases = 60;
#else
constexpr std::int64_t kCases = 800;
#endif

/// Kernels with too few launches, one per line.
std::string launched_too_rarely() {
  constexpr std::int64_t kEnough = kCases / 100;
  std::string lines;
  int kernels = 0;
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (!use.name.starts_with("gradients of")) continue;
    ++kernels;
    if (use.launches < kEnough) lines += use.name + ", " + use.instances + "\n";
  }
  return kernels == 9 ? lines : "not the kernels that are known\n";
}

TEST(GroupedGradients, AreWithinTheBounds) {
  std::int64_t supported = 0;
  std::string refusal;  // of a case as the kernels should take it
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    emulated::begin(seed);
    const GroupedBackwardCase problem = make_grouped_backward_case(seed);
    const Verdict verdict = check_grouped_backward(problem, BackendId::kCuda);
    ASSERT_FALSE(verdict.failure) << *verdict.failure << "\n" << to_string(problem);
    if (!verdict.unsupported) ++supported;
    if (verdict.unsupported && problem.is_fast) refusal = *verdict.unsupported;
  }
  EXPECT_GE(2 * supported, kCases) << refusal;
  EXPECT_EQ(launched_too_rarely(), "");
}

TEST(GroupedGradients, HaveTheSameBitsInEveryRun) {
  for (std::uint64_t seed = 0; seed < kCases / 2; ++seed) {
    emulated::begin(seed);
    const GroupedBackwardCase problem = make_grouped_backward_case(seed);
    const auto failure = check_grouped_backward_repeats(problem, BackendId::kCuda);
    ASSERT_FALSE(failure) << *failure << "\n" << to_string(problem);
  }
}

TEST(GroupedGradients, AreRefusedWithoutTheWholeWorkspace) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    emulated::begin(seed);
    const GroupedBackwardCase problem = make_grouped_backward_case(seed);
    const GroupedBackwardBuffers before = make_buffers(problem);
    const GroupedBackwardBuffers after = before;
    const Status status = run_case(problem, after, BackendId::kCuda, 1);
    if (status.code() == Code::kUnsupported) continue;
    ASSERT_EQ(status.message().find("workspace: has "), 0u) << status.message();
    const auto failure = check_unchanged(before, after);
    ASSERT_FALSE(failure) << *failure << "\n" << to_string(problem);
  }
}

}  // namespace
}  // namespace shortconv::tools::verify
