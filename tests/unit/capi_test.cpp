// The C ABI beside the C++ API: the same call, given in both ways.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "shortconv/plan.hpp"
#include "shortconv/shortconv.h"

namespace shortconv {
namespace {

// As shortconv_plan holds it.
struct MarkedPlan {
  std::uint64_t mark = 0;
  Plan plan;
};

shortconv_tensor tensor(float* data, std::int64_t rows, std::int64_t columns) {
  return {data, SHORTCONV_CPU, 0, SHORTCONV_F32, 2, {rows, columns, 0, 0}, {columns, 1, 0, 0}};
}

class CApi : public ::testing::Test {
 protected:
  CApi() {
    args_.struct_size = sizeof args_;
    args_.x = &x_in_c_;
    args_.out = &out_in_c_;
    args_.weight = &weight_in_c_;
  }
  /// The problem of the plan that the C ABI makes.
  Problem planned() const {
    shortconv_plan plan{};
    EXPECT_EQ(shortconv_plan_forward(&args_, &plan), SHORTCONV_OK) << shortconv_last_error();
    MarkedPlan marked;
    std::memcpy(static_cast<void*>(&marked), &plan, sizeof marked);
    return marked.plan.problem();
  }

  float x_[6]{}, out_[6]{}, weight_[4]{};
  shortconv_tensor x_in_c_ = tensor(x_, 3, 2), out_in_c_ = tensor(out_, 3, 2);
  shortconv_tensor weight_in_c_ = tensor(weight_, 2, 2);
  shortconv_forward_args args_{};
};

TEST_F(CApi, OptionsOfZeroAreTheDefaultsOfCpp) {
  ForwardArgs args;
  args.x = TensorRef::contiguous(x_, DType::kF32, {3, 2});
  args.out = TensorRef::contiguous(out_, DType::kF32, {3, 2});
  args.weight = TensorRef::contiguous(weight_, DType::kF32, {2, 2});
  Problem problem;
  ASSERT_TRUE(make_problem(args, problem).ok());
  EXPECT_EQ(to_string(planned()), to_string(problem));
  EXPECT_EQ(hash(planned()), hash(problem));
}

TEST_F(CApi, TurnsProgrammaticLaunchOff) {
  args_.no_programmatic_launch = 1;
  EXPECT_FALSE(planned().programmatic_launch);
}

}  // namespace
}  // namespace shortconv
