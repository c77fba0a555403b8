// Gradients of the CUDA backend on the emulated device: against the reference, and the same bits
// from the kernel for token-major rows and from the general one.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../common/backward_case.hpp"
#include "runtime.hpp"
#include "shortconv/capability.hpp"

namespace shortconv {
namespace {

using tests::BackwardCase;
using tests::BackwardResults;

/// Runs a call on the emulated device, with a workspace full of NaN.
void run(BackwardCase& one, BackwardResults& to, std::uint64_t seed) {
  emulated::begin(seed);
  BackwardArgs args = emulated::on_device(one.args_to(to, BackendId::kCuda));
  BackwardProblem problem;
  Status status = make_problem(args, problem);
  ASSERT_TRUE(status.ok()) << status.message();
  BackwardPlan plan;
  status = make_plan(problem, plan);
  ASSERT_TRUE(status.ok()) << status.message();
  std::vector<float> workspace(static_cast<std::size_t>(workspace_bytes(plan)) / sizeof(float),
                               std::numeric_limits<float>::quiet_NaN());
  args.workspace = workspace.data();
  args.workspace_bytes = workspace_bytes(plan);
  status = backward(args);
  ASSERT_TRUE(status.ok()) << status.message();
}

void expect_reference(BackwardCase& one, std::uint64_t seed) {
  const std::string where = "seed " + std::to_string(seed) + ": " + one.text();
  BackwardResults cuda = one.results, reference = one.results;
  run(one, cuda, seed);
  if (testing::Test::HasFatalFailure()) return;
  const Status status = backward(one.args_to(reference, BackendId::kReference));
  ASSERT_TRUE(status.ok()) << where << status.message();
  tests::expect_close(cuda, reference, where);
}

std::int64_t launches_of(std::string_view name, std::string_view instances) {
  std::int64_t launches = 0;
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (use.name.starts_with(name) && use.instances == instances) launches += use.launches;
  }
  return launches;
}

class TokenMajorBackward : public testing::TestWithParam<DType> {};

TEST_P(TokenMajorBackward, AgreesWithTheReference) {
  const std::int64_t before = launches_of("backward_general", "all");
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    tools::Random random(seed);
    BackwardCase one = BackwardCase::token_major(random, GetParam());
    expect_reference(one, seed);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(launches_of("backward_general", "all"), before);
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (use.name.starts_with("backward") && use.instances == name(GetParam())) {
      EXPECT_GE(use.launches, 4) << use.name;
    }
  }
}

/// Moved by one element, the results of the call need the general kernel.
TEST_P(TokenMajorBackward, TheGeneralKernelGivesTheSameBits) {
  for (std::uint64_t seed = 1000; seed < 1150; ++seed) {
    tools::Random random(seed);
    BackwardCase one = BackwardCase::token_major(random, GetParam());
    BackwardResults strips = one.results, general = one.results;
    run(one, strips, seed);
    one.x.bytes.insert(one.x.bytes.begin(), 16, '\0');
    const std::int64_t before = launches_of("backward_general", "all");
    BackwardCase moved = one;
    moved.x_offset = element_bytes(GetParam());
    std::memmove(moved.x.bytes.data() + moved.x_offset, moved.x.bytes.data() + 16,
                 moved.x.bytes.size() - 16);
    run(moved, general, seed);
    if (HasFatalFailure()) return;
    EXPECT_GE(launches_of("backward_general", "all"), before);
    ASSERT_TRUE(general == strips) << "seed " << seed << ": " << one.text();
  }
}

INSTANTIATE_TEST_SUITE_P(Types, TokenMajorBackward, testing::ValuesIn(tests::kRowDTypes),
                         [](const auto& row) { return std::string(name(row.param)); });

TEST(AnyBackward, AgreesWithTheReference) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    tools::Random random(seed);
    BackwardCase one = BackwardCase::any(random);
    expect_reference(one, seed);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace shortconv
