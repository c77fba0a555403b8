// The workspace of gradient calls on the CUDA backend: what is refused, before anything is written.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "runtime.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

class Workspace : public testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 40, kChannels = 8, kWidth = 4;

  Workspace() {
    emulated::begin(1);
    args_.x = TensorRef::contiguous(x_.data(), DType::kF32, {kTokens, kChannels});
    args_.grad_out = TensorRef::contiguous(x_.data(), DType::kF32, {kTokens, kChannels});
    args_.weight = TensorRef::contiguous(weight_.data(), DType::kF32, {kChannels, kWidth});
    args_.grad_weight =
        TensorRef::contiguous(grad_weight_.data(), DType::kF32, {kChannels, kWidth});
    args_ = emulated::on_device(args_);
    args_.backend = BackendId::kCuda;
    BackwardProblem problem;
    EXPECT_TRUE(make_problem(args_, problem).ok());
    EXPECT_TRUE(make_plan(problem, plan_).ok());
    memory_.resize(static_cast<std::size_t>(workspace_bytes(plan_)) / sizeof(float) + 4);
  }

  /// The messages of one call and of a run of the plan; both leave grad_weight alone.
  void expect_refused(void* workspace, std::int64_t bytes, const std::string& message) {
    args_.workspace = workspace;
    args_.workspace_bytes = bytes;
    EXPECT_EQ(backward(args_).message(), message);
    EXPECT_EQ(grad_weight_, std::vector<float>(kChannels * kWidth, 7.0f));
  }

  std::vector<float> x_ = std::vector<float>(kTokens * kChannels, 1.0f);
  std::vector<float> weight_ = std::vector<float>(kChannels * kWidth, 1.0f);
  std::vector<float> grad_weight_ = std::vector<float>(kChannels * kWidth, 7.0f);
  std::vector<float> memory_;  // aligned to 16 bytes
  BackwardArgs args_;
  BackwardPlan plan_;
};

TEST_F(Workspace, OfTheWrongSizeOrPlaceIsRefused) {
  const std::int64_t needed = workspace_bytes(plan_);
  ASSERT_GT(needed, 0);
  const std::string expected = std::to_string(needed);
  expect_refused(nullptr, needed, "workspace: is null; expected " + expected + " bytes");
  expect_refused(memory_.data(), needed - 1,
                 "workspace: has " + std::to_string(needed - 1) + " bytes; expected " + expected);
  expect_refused(memory_.data(), -1, "workspace: has -1 bytes; expected " + expected);
  expect_refused(memory_.data() + 1, needed, "workspace: address is not a multiple of 16");
}

TEST_F(Workspace, OfAPlanIsRefusedTheSameWay) {
  BackwardPointers at = pointers(args_);
  EXPECT_EQ(run(plan_, at).message(),
            "workspace: is null; expected " + std::to_string(workspace_bytes(plan_)) + " bytes");
  at.workspace = memory_.data();
  const Status status = run(plan_, at);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_NE(grad_weight_, std::vector<float>(kChannels * kWidth, 7.0f));
}

/// Without gradients of weights there are no partial sums.
TEST_F(Workspace, IsOnlyNeededForGradientsOfWeights) {
  std::vector<float> grad_x(kTokens * kChannels);
  args_.grad_weight.reset();
  args_.grad_x = TensorRef::contiguous(grad_x.data(), DType::kF32, {kTokens, kChannels});
  args_.grad_x->device = emulated::kDevice;
  const Status status = backward(args_);
  EXPECT_TRUE(status.ok()) << status.message();
}

}  // namespace
}  // namespace shortconv
