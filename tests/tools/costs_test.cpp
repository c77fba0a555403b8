#include "bench/costs.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/call_layout.hpp"
#include "bench/cpu_call.hpp"
#include "bench/gpu_call.hpp"
#include "bench/kernel_choice.hpp"
#include "common/error.hpp"
#include "common/gpu.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::tools::bench {
namespace {

const Cost& find(std::string_view name) {
  const auto found =
      std::ranges::find_if(costs(), [&](const Cost& cost) { return cost.shape.name == name; });
  if (found == costs().end()) throw std::runtime_error("no row " + std::string(name));
  return *found;
}

std::string kernel_of(std::string_view name) {
  return chosen_kernel(find(name).shape, find(name).options, kMultiprocessorsOfH200);
}

TEST(Costs, HaveARowForEveryOperationWidthAndType) {
  std::set<std::string> names;
  std::size_t without_features = 0;
  for (const Cost& cost : costs()) {
    EXPECT_TRUE(names.insert(cost.shape.name).second) << cost.shape.name;
    without_features += cost.feature == "none" ? 1 : 0;
  }
  EXPECT_EQ(without_features, 5u * 9 * 6);
  EXPECT_EQ(find("ragged-64-f32").shape.tokens(), 8192);
  EXPECT_EQ(find("ragged-64-f32").options.width, 64);
  EXPECT_EQ(find("trees-4-bf16").shape.parents.size(), 7u);
  EXPECT_EQ(find("decode-4-bf16-ws32").options.dtype_of_states(), DType::kF32);
  EXPECT_EQ(find("decode-4-bf16-ws32").options.dtype_of_weights(), DType::kF32);
  EXPECT_EQ(find("decode-4-bf16-ws32").options.dtype, DType::kBF16);
}

TEST(Costs, HaveEveryFeatureAlone) {
  const auto feature = [](const std::string& name) { return find("ragged-4-bf16-" + name); };
  EXPECT_TRUE(feature("bias").options.has_bias);
  EXPECT_TRUE(feature("gates").shape.gated);
  EXPECT_TRUE(feature("residual").shape.residual);
  EXPECT_EQ(feature("window-innermost").shape.state_layout, StateLayout::kWindowInnermost);
  EXPECT_TRUE(feature("circular").shape.rings);
  EXPECT_TRUE(feature("shift-full-state").shape.older);
  EXPECT_EQ(feature("snapshots").shape.snapshots(), 128);
  EXPECT_TRUE(feature("seq-idx").shape.seq_idx);
  EXPECT_TRUE(feature("in-place").shape.in_place);
  EXPECT_EQ(feature("dilation").options.dilation, 2);
  EXPECT_TRUE(feature("checked").shape.checked);
  EXPECT_EQ(feature("channels-first").shape.layout, Layout::kChannelMajor);
  EXPECT_EQ(find("decode-4-bf16-snapshots").shape.snapshots(), 256);
  EXPECT_TRUE(find("trees-4-bf16-window-slots").shape.window_slots);
  EXPECT_EQ(find("drafts-4-bf16-long-chains").shape.tokens(), 64 * 16);
  const auto x = [&](const char* name) {
    const Cost& cost = find(std::string("ragged-4-bf16-") + name);
    return imagined_arguments(cost.shape, cost.options).x;
  };
  EXPECT_EQ(x("pitch").strides[0], 8192 * 3 / 2);
  EXPECT_EQ(x("odd-pitch").strides[0], 8193);
  EXPECT_EQ(x("odd-address").strides[0], 8192);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x("odd-address").data) % 16, 2u);
}

// As the unit tests of the selection expect; here to see that rows are what they say.
TEST(Costs, NameKernelsAndVariants) {
  EXPECT_EQ(kernel_of("prefill-4-bf16"), "tiles");
  EXPECT_EQ(kernel_of("ragged-12-bf16"), "general");
  EXPECT_EQ(kernel_of("decode-4-bf16"), "decode");
  EXPECT_EQ(kernel_of("decode-64-f32"), "general decode");
  EXPECT_EQ(kernel_of("drafts-4-bf16"), "drafts");
  EXPECT_EQ(kernel_of("trees-4-bf16-s32"), "trees, extended, f32 states");
  EXPECT_EQ(kernel_of("ragged-7-bf16-gates"), "tiles, gated");
  EXPECT_EQ(kernel_of("prefill-4-bf16-channels-first"), "channels first");
  EXPECT_EQ(kernel_of("prefill-4-bf16-odd-address"), "general") << "the fallback of the plan";
  EXPECT_EQ(kernel_of("prefill-4-bf16-odd-pitch"), "general");
  EXPECT_EQ(kernel_of("prefill-4-bf16-in-place"), "whole sequences");
  EXPECT_EQ(kernel_of("prefill-4-bf16-seq-idx"), "seq_idx tiles");
  EXPECT_EQ(kernel_of("prefill-4-bf16-pitch"), "tiles");
}

TEST(Costs, EveryRowHasAKernelAndALineAsWideAsTheHeader) {
  for (const Cost& cost : costs()) {
    const std::string kernel = chosen_kernel(cost.shape, cost.options, kMultiprocessorsOfH200);
    EXPECT_EQ(cost_line(cost, kernel, nullptr).size(), cost_header(false).size()) << kernel;
    const Row row{.shape = &cost.shape, .options = cost.options, .run_us = 3, .copy_us = 2};
    EXPECT_EQ(cost_line(cost, kernel, &row).size(), cost_header(true).size()) << kernel;
    const nlohmann::ordered_json json = to_json(cost, kernel, &row);
    EXPECT_EQ(json["case"], cost.shape.name);
    EXPECT_EQ(json["kernel"], kernel);
    EXPECT_EQ(json["ratio"], 1.5);
    EXPECT_FALSE(to_json(cost, kernel, nullptr).contains("ratio"));
  }
}

TEST(Costs, RunOnACpuInSmall) {
  for (const Cost& cost : costs()) {
    if (cost.feature == "none") continue;  // nothing that other shapes do not have
    Shape shape = cost.shape;
    CallOptions options = cost.options;
    shape.channels = 24;
    options.backend = BackendId::kCpu;
    options.programmatic_launch = false;
    CpuCall call(shape, options);
    call.prepare();
    EXPECT_NO_THROW(call.run()) << shape.name;
  }
}

TEST(GpuCosts, KernelsAreThoseOfPlans) {
  if (gpu_count() == 0) GTEST_SKIP() << "there is no GPU";
  for (const Cost& cost : costs()) {
    if (cost.feature == "odd-address") continue;  // a plan does not know addresses
    Problem problem;
    require(make_problem(imagined_arguments(cost.shape, cost.options), problem));
    Plan plan;
    require(make_plan(problem, plan));
    const std::string kernel =
        chosen_kernel(cost.shape, cost.options, describe_gpu().multiprocessors);
    EXPECT_TRUE(to_string(plan).starts_with("cuda: " + kernel + ", ")) << to_string(plan);
  }
}

TEST(CallLayout, OfSeqIdxHasNoStates) {
  const Shape shape{
      .name = "small", .description = "", .channels = 16, .lengths = {4, 4, 4}, .seq_idx = true};
  const CallLayout layout(shape, {});
  EXPECT_EQ(layout.moved_bytes(), 2 * 12 * 16 * 2);
  EXPECT_EQ(layout.state_elements(), 0);
  const ForwardArgs args = layout.arguments({}, {});
  EXPECT_EQ(args.sequences.seq_idx->shape[0], 12);
  EXPECT_FALSE(args.pool.state || args.sequences.query_start_loc ||
               args.sequences.has_initial_state);
}

TEST(CallLayout, ADilatedHistoryIsLonger) {
  const Shape shape{.name = "small", .description = "", .channels = 16, .lengths = {4, 4, 4}};
  const CallLayout layout(shape, {.dilation = 2});
  EXPECT_EQ(layout.moved_bytes(), (2 * 12 + (3 + 1) * 6) * 16 * 2);
  EXPECT_EQ(layout.arguments({}, {}).pool.state->shape[1], 6);
  EXPECT_EQ(layout.arguments({}, {}).dilation, 2);
}

TEST(CallLayout, RowsMayBeginBehindTheStartOfTheirMemory) {
  const Shape shape{.name = "small", .description = "", .channels = 16, .lengths = {5}};
  const CallOptions options{.row_offset = 3};
  const CallLayout layout(shape, options);
  std::vector<std::uint16_t> x(5 * 16 + 3), out(5 * 16 + 3);
  EXPECT_EQ(layout.x_elements(), 5 * 16 + 3);
  EXPECT_EQ(layout.out_elements(), 5 * 16 + 3);
  const ForwardArgs args = layout.arguments({.x = x.data(), .out = out.data()}, {});
  EXPECT_EQ(args.x.data, x.data() + 3);
  EXPECT_EQ(args.out.data, out.data() + 3);
  EXPECT_GE(place_set(layout, options).out, (5 * 16 + 3) * 2);
}

TEST(CallLayout, WindowsInSlotsHaveThoseOfTheSequences) {
  const Shape shape{.name = "small",
                    .description = "",
                    .channels = 16,
                    .lengths = {4, 4, 4},
                    .op = Op::kVerify,
                    .window_slots = true};
  const ForwardArgs args = CallLayout(shape, {}).arguments({}, {});
  EXPECT_EQ(args.drafts.intermediate_states->ndim, 4);
  EXPECT_EQ(args.drafts.intermediate_states->shape[0], 3);
  EXPECT_EQ(args.drafts.intermediate_states->shape[1], 4);
  EXPECT_EQ(args.drafts.intermediate_slots->shape[0], 3);
}

}  // namespace
}  // namespace shortconv::tools::bench
