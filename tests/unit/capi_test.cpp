// The C ABI beside the C++ API: the same call, given in both ways.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <span>

#include "shortconv/plan.hpp"
#include "shortconv/shortconv.h"

namespace shortconv {
namespace {

// As shortconv_plan and its like hold it.
template <typename AnyPlan>
struct MarkedPlan {
  std::uint64_t mark = 0;
  AnyPlan plan;
};

template <typename AnyPlan, typename CPlan>
auto problem_of(const CPlan& plan) {
  MarkedPlan<AnyPlan> marked;
  std::memcpy(static_cast<void*>(&marked), &plan, sizeof marked);
  return marked.plan.problem();
}

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
    return problem_of<Plan>(plan);
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

TEST_F(CApi, GradientsOfGroupsAreThoseOfCpp) {
  float gradient[6]{}, list[1]{};
  shortconv_tensor gradient_in_c = tensor(gradient, 3, 1), column = tensor(x_, 3, 1);
  gradient_in_c.ndim = 3;  // [3, 1 head, 2]
  gradient_in_c.shape[2] = gradient_in_c.strides[0] = 2;
  gradient_in_c.strides[2] = 1;
  shortconv_tensor list_in_c = tensor(list, 1, 1);
  list_in_c.ndim = 1;
  shortconv_backward_args backward{};
  backward.struct_size = sizeof backward;
  backward.activation = SHORTCONV_ACTIVATION_SILU;
  backward.backend = SHORTCONV_BACKEND_REFERENCE;
  backward.x = &x_in_c_;
  backward.weight = &weight_in_c_;
  backward.grad_x = &out_in_c_;
  shortconv_channel_group group{};
  group.struct_size = sizeof group;
  group.out = &gradient_in_c;
  group.l2_norm = 1;
  shortconv_gate_gradient_args gates{};
  gates.struct_size = sizeof gates;
  gates.decay = SHORTCONV_DECAY_EXP;
  gates.a = gates.b = &x_in_c_;
  gates.a_log = gates.dt_bias = &list_in_c;
  gates.grad_g = gates.grad_beta = &column;
  gates.b_map.offset = 1;
  shortconv_grouped_backward_args args{};
  args.struct_size = sizeof args;
  args.group_count = 1;
  args.backward = &backward;
  args.groups = &group;
  args.gates = &gates;
  shortconv_grouped_backward_plan plan{};
  ASSERT_EQ(shortconv_plan_backward_groups(&args, &plan), SHORTCONV_OK) << shortconv_last_error();

  const ChannelGroup group_in_cpp{.out = TensorRef::contiguous(gradient, DType::kF32, {3, 1, 2}),
                                  .input = {},
                                  .l2_norm = L2Norm{}};
  GroupedBackwardArgs in_cpp;
  in_cpp.groups = std::span(&group_in_cpp, 1);
  in_cpp.backward.activation = Activation::kSilu;
  in_cpp.backward.backend = BackendId::kReference;
  in_cpp.backward.x = TensorRef::contiguous(x_, DType::kF32, {3, 2});
  in_cpp.backward.weight = TensorRef::contiguous(weight_, DType::kF32, {2, 2});
  in_cpp.backward.grad_x = TensorRef::contiguous(out_, DType::kF32, {3, 2});
  GateGradientArgs& gates_in_cpp = in_cpp.gates.emplace();
  gates_in_cpp.decay = DecayForm::kExp;
  gates_in_cpp.a = gates_in_cpp.b = in_cpp.backward.x;
  gates_in_cpp.a_log = gates_in_cpp.dt_bias = TensorRef::contiguous(list, DType::kF32, {1});
  gates_in_cpp.grad_g = gates_in_cpp.grad_beta = TensorRef::contiguous(x_, DType::kF32, {3, 1});
  gates_in_cpp.b_map.offset = 1;
  GroupedBackwardProblem problem;
  const Status status = make_problem(in_cpp, problem);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(problem_of<GroupedBackwardPlan>(plan) == problem);
}

}  // namespace
}  // namespace shortconv
