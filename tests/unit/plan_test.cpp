#include "shortconv/plan.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "call.hpp"
#include "shortconv/capability.hpp"

namespace shortconv {
namespace {

TEST(Plan, MayBeCopiedAndRunOnOtherAddresses) {
  Call first({0, 4, 9}), second({0, 4, 9});
  for (float& value : second.x) value *= 0.25f;
  Call expected = second;
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(first.fill(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  alignas(Plan) std::byte copy[sizeof(Plan)];
  std::memcpy(copy, &plan, sizeof plan);
  ASSERT_TRUE(run(*reinterpret_cast<const Plan*>(copy), pointers(second.fill())).ok());
  expected.run();
  EXPECT_EQ(second.out, expected.out);
  EXPECT_EQ(second.state, expected.state);
}

TEST(Plan, RefusesAddressesThatDoNotFit) {
  Call call({0, 4});
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  EXPECT_NE(run(plan, pointers(call.args)).message().find("plan: was not made"), std::string::npos);
  ASSERT_TRUE(make_plan(problem, plan).ok());
  TensorPointers at = pointers(call.args);
  at.state = nullptr;
  EXPECT_NE(run(plan, at).message().find("state: is null"), std::string::npos);
  at = pointers(call.args);
  at.out = const_cast<void*>(at.x);
  EXPECT_NE(run(plan, at).message().find("out: is x, but the plan does not work in place"),
            std::string::npos);
}

TEST(Plan, SaysWhatItWillDo) {
  Call call({0, 4});
  Problem problem;
  Plan plan;
  EXPECT_EQ(to_string(plan), "no plan");
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  const Status made = make_plan(problem, plan);
  ASSERT_TRUE(made.ok()) << made.message();  // which tests/checks/cpu_target.sh looks for
  EXPECT_EQ(to_string(plan).rfind("cpu: ", 0), 0u) << to_string(plan);
}

TEST(Plan, ForwardAndCommitNeedNoWorkspace) {
  Call call({0, 4});
  Problem problem;
  Plan plan;
  EXPECT_EQ(workspace_bytes(CommitPlan()), 0);
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  EXPECT_EQ(workspace_bytes(plan), 0);
}

// Memory does not bound a size if another one is 0. The sanitizers check the products of sizes.
TEST(Plan, HugeSizesOfTensorsWithoutElements) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 52, kChannels = 1 << 20;
  const auto rows = [](std::initializer_list<std::int64_t> shape) {
    TensorRef tensor = TensorRef::contiguous(nullptr, DType::kBF16, {});
    tensor.ndim = 0;
    for (const std::int64_t size : shape) tensor.shape[tensor.ndim++] = size;
    for (int axis = 0; axis < tensor.ndim; ++axis) tensor.strides[axis] = axis + 1 == tensor.ndim;
    return tensor;
  };
  float weight[4 * 4] = {};
  ForwardArgs args;
  args.weight = TensorRef::contiguous(weight, DType::kF32, {0, 4});
  args.x = args.out = rows({kHuge, 0});
  EXPECT_EQ(forward(args).message(), "");
  std::vector<float> many(kChannels * 4);
  args = {};
  args.x = args.out = rows({kHuge >> 11, 0, kChannels});
  args.weight = TensorRef::contiguous(many.data(), DType::kF32, {kChannels, 4});
  EXPECT_EQ(forward(args).message(), "");

  std::int32_t accepted[4] = {};
  CommitArgs copies;
  copies.intermediate_states = rows({kHuge / 8, 4, 3, 0});
  copies.state = rows({kHuge / 8, 4, 3, 0});
  copies.accepted = TensorRef::contiguous(accepted, DType::kI32, {4});
  copies.width = 4;
  copies.rows_per_token = 3;
  EXPECT_EQ(commit(copies).message(), "");
}

TEST(Plan, DoublePrecisionIsForTheReferenceOnly) {
  std::vector<double> x(8, 1.5), out(8), weight(8, 0.5);
  ForwardArgs args;
  args.x = TensorRef::contiguous(x.data(), DType::kF64, {4, 2});
  args.out = TensorRef::contiguous(out.data(), DType::kF64, {4, 2});
  args.weight = TensorRef::contiguous(weight.data(), DType::kF64, {2, 4});
  const Status refused = forward(args);
  EXPECT_EQ(refused.code(), Code::kUnsupported);
  EXPECT_NE(refused.message().find("f64"), std::string::npos);
  args.options.backend = BackendId::kReference;
  ASSERT_TRUE(forward(args).ok());
  EXPECT_EQ(out[6], 4 * 0.75);
}

// Each combination the list has is planned and right; what lies just outside is refused with the
// list.
TEST(Plan, CapabilitiesAreExactlyWhatWorks) {
  const Capabilities& can = capabilities();
  ASSERT_FALSE(can.widths.empty());
  for (const auto& dtype : can.dtypes) {
    for (const auto& activation : can.activations) {
      for (int width = 2; width <= can.max_width; ++width) {
        std::vector<char> memory(4096);
        ForwardArgs args;
        args.x = TensorRef::contiguous(memory.data(), dtype.value, {2, 4});
        args.out = TensorRef::contiguous(memory.data() + 1024, dtype.value, {2, 4});
        args.weight = TensorRef::contiguous(memory.data() + 2048, dtype.value, {4, width});
        args.epilogue.activation = activation.value;
        Problem problem;
        Plan plan;
        ASSERT_TRUE(make_problem(args, problem).ok());
        EXPECT_TRUE(make_plan(problem, plan).ok()) << dtype.name << " width " << width;
        EXPECT_TRUE(run(plan, pointers(args)).ok());
      }
    }
  }
}

TEST(Plan, EveryBackendReportsItself) {
  const auto rows = backend_info();
  EXPECT_EQ(rows.size(), capabilities().backends.size() - 1);  // all but auto
  for (const auto& row : rows) EXPECT_FALSE(row.detail.empty()) << row.name;
}

}  // namespace
}  // namespace shortconv
