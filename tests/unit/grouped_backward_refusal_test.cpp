// What make_problem and the backends refuse of gradients of groups, with their words.
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "front_gradients.hpp"

namespace shortconv {
namespace {

using Args = GroupedBackwardArgs;
using Front = FrontGradients;

/// change(arguments, front) makes a valid call invalid. Nothing is written.
template <typename Change>
void expect_refusal(const Change& change, const std::string& message) {
  Front front = Front::ragged();
  front.fill(1);
  Args args = front.args();
  change(args, front);
  const Status status = backward_groups(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_EQ(status.message(), message);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  for (const Numbers* one : {&front.grad_x, &front.grad_weight, &front.grad_a}) {
    for (const double number : *one) EXPECT_TRUE(std::isnan(number));
  }
}

TEST(GroupedBackwardRefusal, WhatGroupsCannotBeCombinedWith) {
  const std::string reason = ": cannot be combined with gradients of groups";
  expect_refusal([](Args& a, Front&) { a.backward.initial_state = a.backward.x; },
                 "initial_state" + reason);
  expect_refusal([](Args& a, Front&) { a.backward.grad_final_state = a.backward.x; },
                 "grad_final_state" + reason);
  expect_refusal([](Args& a, Front&) { a.backward.input_gate = a.backward.x; },
                 "input_gate" + reason);
  expect_refusal([](Args& a, Front&) { a.backward.output_gate = a.backward.x; },
                 "output_gate" + reason);
  expect_refusal([](Args& a, Front&) { a.backward.residual = true; }, "residual" + reason);
  expect_refusal([](Args& a, Front&) { a.backward.dilation = 2; }, "dilation" + reason);
}

TEST(GroupedBackwardRefusal, TheNumberOfGroupsAndOfTheirChannels) {
  expect_refusal([](Args& a, Front&) { a.groups = {}; }, "groups: are 0; expected 1 to 8");
  expect_refusal(
      [](Args& a, Front& f) {
        f.groups.resize(9, f.groups[0]);
        a.groups = f.groups;
      },
      "groups: are 9; expected 1 to 8");
  expect_refusal([](Args& a, Front&) { a.groups = a.groups.first(2); },
                 "groups: have 12 channels, but weight has 20");
  expect_refusal([](Args&, Front& f) { f.groups[3].copy = false; },
                 "groups: have 28 channels, but weight has 20");
}

TEST(GroupedBackwardRefusal, OptionsOfAGroup) {
  expect_refusal([](Args&, Front& f) { f.groups[0].input_scale = 2; },
                 "groups[0]: input_scale is 2; expected 1 in a backward call");
  expect_refusal([](Args&, Front& f) { f.groups[3].l2_norm.emplace(); },
                 "groups[3]: is copied; expected neither l2_norm nor input_scale");
  expect_refusal([](Args&, Front& f) { f.groups[1].l2_norm->eps = 0; },
                 "groups[1]: eps is 0; expected a positive number");
  expect_refusal(
      [](Args&, Front& f) { f.groups[1].l2_norm->scale = std::numeric_limits<float>::infinity(); },
      "groups[1]: scale is inf; expected a finite number");
  expect_refusal([](Args&, Front& f) { f.groups[1].input.offset = 25; },
                 "groups[1]: map reaches beyond the 30 columns of its rows");
  expect_refusal([](Args&, Front& f) { f.groups[1].input.offset = -1; },
                 "groups[1]: map has a member of -1; expected 0 to 2^52");
  expect_refusal([](Args&, Front& f) { f.groups[2].input.block_heads = 2; },
                 "groups[2]: map has blocks of 2 heads, but block_stride is 0");
}

TEST(GroupedBackwardRefusal, TensorsOfAGroup) {
  expect_refusal([](Args&, Front& f) { f.groups[0].out.shape[0] = 10; },
                 "groups[0].grad_out: axis 0 ('tokens') is 10, but x made 'tokens' = 11");
  expect_refusal([](Args&, Front& f) { f.groups[0].out.dtype = DType::kI32; },
                 "groups[0].grad_out: dtype i32 is not supported (f32, f16, bf16, f64)");
  expect_refusal([](Args&, Front& f) { f.groups[0].out.strides[2] = 2; },
                 "groups[0].grad_out: has a channel stride of 2; expected 1");
  expect_refusal([](Args&, Front& f) { f.groups[0].out.data = nullptr; },
                 "groups[0].grad_out: data is null, but the shape has elements");
  expect_refusal([](Args&, Front& f) { f.groups[3].out.dtype = DType::kF32; },
                 "groups[3].grad_out: dtype is f32, but the group copies x, which has f64");
}

TEST(GroupedBackwardRefusal, TensorsOfTheConvolution) {
  expect_refusal([](Args& a, Front&) { a.backward.grad_x->shape[1] = 29; },
                 "grad_x: axis 1 ('columns') is 29, but x made 'columns' = 30");
  expect_refusal([](Args& a, Front&) { a.backward.grad_x->dtype = DType::kF32; },
                 "grad_x: dtype f32 is not supported (f64)");
  expect_refusal([](Args& a, Front&) { a.backward.grad_weight->dtype = DType::kBF16; },
                 "grad_weight: dtype bf16 is not supported (f64, f32)");
  expect_refusal([](Args& a, Front&) { a.backward.bias.reset(); },
                 "grad_bias: is given, but bias is absent");
  expect_refusal([](Args& a, Front&) { a.backward.accumulate = true; },
                 "grad_weight: dtype is f64, but accumulate adds in f32; expected f32");
  expect_refusal([](Args& a, Front&) { a.backward.seq_idx = a.backward.query_start_loc; },
                 "seq_idx: cannot be combined with query_start_loc: both divide the rows into "
                 "sequences");
}

TEST(GroupedBackwardRefusal, Gates) {
  expect_refusal([](Args& a, Front&) { a.gates->grad_g.dtype = DType::kBF16; },
                 "grad_g: dtype bf16 is not supported (f32)");
  expect_refusal([](Args& a, Front&) { a.gates->grad_beta.dtype = DType::kF64; },
                 "grad_beta: dtype f64 is not supported (f32)");
  expect_refusal([](Args& a, Front&) { a.gates->grad_a->dtype = DType::kI64; },
                 "grad_a: dtype i64 is not supported (f32, f16, bf16, f64)");
  expect_refusal([](Args& a, Front&) { a.gates->grad_a_log->dtype = DType::kF64; },
                 "grad_a_log: dtype f64 is not supported (f32)");
  expect_refusal([](Args& a, Front&) { a.gates->grad_dt_bias->shape[0] = 3; },
                 "grad_dt_bias: axis 0 ('heads') is 3, but a_log made 'heads' = 4");
  expect_refusal([](Args& a, Front&) { a.gates->grad_b->shape[1] = 5; },
                 "grad_b: axis 1 ('columns') is 5, but b made 'columns' = 6");
  expect_refusal([](Args& a, Front&) { a.gates->a_map.offset = 2; },
                 "a: map reaches beyond the 6 columns of its rows");
  expect_refusal([](Args& a, Front&) { a.gates->b_map.block_stride = 0; },
                 "b: map has blocks of 2 heads, but block_stride is 0");
  expect_refusal([](Args& a, Front&) { a.gates->beta_factor = 3; },
                 "beta_factor: is 3; expected 1 or 2");
  expect_refusal([](Args& a, Front&) { a.gates->decay = static_cast<DecayForm>(2); },
                 "decay: value 2 is not known (log, exp)");
}

TEST(GroupedBackwardRefusal, Overlaps) {
  expect_refusal([](Args& a, Front& f) { a.backward.grad_x->data = f.x.data(); },
                 "grad_x: overlaps x");
  expect_refusal([](Args& a, Front& f) { a.backward.grad_weight->data = f.gradients[2].data(); },
                 "grad_weight: overlaps groups[2].grad_out");
  expect_refusal([](Args& a, Front& f) { a.gates->grad_a->data = f.grad_x.data(); },
                 "grad_a: overlaps grad_x");
  expect_refusal([](Args& a, Front& f) { a.gates->grad_b->data = f.grad_a.data(); },
                 "grad_b: overlaps grad_a");
  expect_refusal([](Args& a, Front& f) { a.gates->grad_a->data = f.a.data(); },
                 "grad_a: overlaps a");
  expect_refusal([](Args& a, Front&) { a.gates->grad_a->strides[0] = 1; },
                 "grad_a: overlaps itself: with strides [1, 1] several elements share memory, but "
                 "all are written");
}

TEST(GroupedBackwardRefusal, TheCpuBackendHasNoSuchKernels) {
  std::vector<float> x(12), weight(8), grad(12), grad_weight(8);
  const ChannelGroup group{.out = TensorRef::contiguous(grad.data(), DType::kF32, {3, 1, 4}),
                           .input = {}};
  Args args;
  args.groups = std::span(&group, 1);
  args.backward.x = TensorRef::contiguous(x.data(), DType::kF32, {3, 4});
  args.backward.weight = TensorRef::contiguous(weight.data(), DType::kF32, {4, 2});
  args.backward.grad_weight = TensorRef::contiguous(grad_weight.data(), DType::kF32, {4, 2});
  for (const BackendId backend : {BackendId::kCpu, BackendId::kAuto}) {
    args.backward.backend = backend;
    const Status status = backward_groups(args);
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_EQ(status.message(),
              "groups: the backend 'cpu' does not compute their gradients; 'reference' does");
  }
}

}  // namespace
}  // namespace shortconv
