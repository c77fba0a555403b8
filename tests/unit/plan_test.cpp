#include "shortconv/plan.hpp"

#include <gtest/gtest.h>

#include <cstring>

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
  ASSERT_TRUE(make_plan(problem, plan).ok());
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
