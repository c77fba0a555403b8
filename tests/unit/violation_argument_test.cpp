// The argument `violations` as one among the others: names, refusals, addresses, its part of the
// problem. What is counted is in violation_test.cpp.
#include <gtest/gtest.h>

#include <set>

#include "call.hpp"
#include "violation_report.hpp"

namespace shortconv {
namespace {

TEST(Violations, HaveNamesAndMeanings) {
  std::set<std::string_view> names, meanings;
  for (int v = 0; v < kViolations; ++v) {
    names.insert(name(static_cast<Violation>(v)));
    meanings.insert(describe(static_cast<Violation>(v)));
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kViolations));
  EXPECT_EQ(meanings.size(), static_cast<std::size_t>(kViolations));
  EXPECT_FALSE(names.contains("?"));
  EXPECT_EQ(name(static_cast<Violation>(kViolations)), "?");
}

template <typename Change>
void expect_refusal_after(Change&& change, const std::string& message) {
  Call call({0, 2, 5});
  Report report;
  call.args.options.violations = report.view();
  call.fill();
  change(call.args, call);
  const Status status = forward(call.args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos) << "got: " << status.message();
  for (int v = 0; v < kViolations; ++v) {
    EXPECT_EQ(report.of(static_cast<Violation>(v)), (Found{kGarbage, kGarbage}));
  }
}

TEST(Violations, ReportIsCheckedLikeEveryTensor) {
  expect_refusal_after([](ForwardArgs& a, Call&) { a.options.violations->ndim = 1; },
                       "violations: expected 2 axes [violations, count and first], got 1");
  expect_refusal_after(
      [](ForwardArgs& a, Call&) { a.options.violations->shape[0] = 5; },
      "violations: axis 0 ('violations') is 5, but the library made 'violations' = 13");
  expect_refusal_after([](ForwardArgs& a, Call&) { a.options.violations->shape[1] = 3; },
                       "violations: axis 1 ('count and first') is 3");
  expect_refusal_after([](ForwardArgs& a, Call&) { a.options.violations->dtype = DType::kI32; },
                       "violations: dtype i32 is not supported (i64)");
  expect_refusal_after(
      [](ForwardArgs& a, Call&) { a.options.violations->device = {DeviceType::kCuda, 0}; },
      "violations: is on device 2:0, but x is on 1:0");
  expect_refusal_after([](ForwardArgs& a, Call&) { a.options.violations->strides[0] = 0; },
                       "violations: axis 0 has stride 0 but is written");
  expect_refusal_after([](ForwardArgs& a, Call&) { a.options.violations->data = nullptr; },
                       "violations: data is null");
}

// The report is longer than the tensors of the call, so it shares a larger buffer with the one
// tensor that it overlaps.
TEST(Violations, ReportMayNotOverlapAnotherTensor) {
  const auto expect_overlap = [](auto&& tensor_of, const char* message) {
    std::vector<std::int64_t> shared(64);
    expect_refusal_after(
        [&](ForwardArgs& a, Call&) {
          tensor_of(a).data = shared.data();
          a.options.violations->data = shared.data();
        },
        message);
  };
  expect_overlap([](ForwardArgs& a) -> TensorRef& { return a.x; }, "violations: overlaps x");
  expect_overlap([](ForwardArgs& a) -> TensorRef& { return a.out; }, "violations: overlaps out");
  expect_overlap([](ForwardArgs& a) -> TensorRef& { return *a.pool.state; },
                 "violations: overlaps state");
  expect_overlap([](ForwardArgs& a) -> TensorRef& { return *a.sequences.query_start_loc; },
                 "violations: overlaps query_start_loc");
}

TEST(Violations, AddressesOfEmptyCallsAreNeededForTheReport) {
  Call call({0, 0}, 0);
  call.read_slots = {0};
  Report report;
  call.args.options.violations = report.view();
  Problem problem;
  Plan plan;
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  ASSERT_TRUE(make_plan(problem, plan).ok());
  const auto refusal_without = [&](auto&& member) {
    TensorPointers at = pointers(call.args);
    at.*member = nullptr;
    return run(plan, at).message();
  };
  EXPECT_NE(refusal_without(&TensorPointers::violations).find("violations: is null"),
            std::string::npos);
  EXPECT_NE(refusal_without(&TensorPointers::query_start_loc).find("query_start_loc: is null"),
            std::string::npos);
  EXPECT_NE(refusal_without(&TensorPointers::read_slots).find("read_slots: is null"),
            std::string::npos);
  EXPECT_TRUE(run(plan, pointers(call.args)).ok());
}

TEST(Violations, ArePartOfTheProblem) {
  Call call({0, 2, 5});
  Problem without, with, transposed;
  ASSERT_TRUE(make_problem(call.fill(), without).ok());
  Report report, other(1, 14);
  call.args.options.violations = report.view();
  ASSERT_TRUE(make_problem(call.args, with).ok());
  call.args.options.violations = other.view();
  ASSERT_TRUE(make_problem(call.args, transposed).ok());
  EXPECT_NE(hash(without), hash(with));
  EXPECT_NE(hash(with), hash(transposed));
  EXPECT_NE(to_string(with).find("violations=i64(2,1)"), std::string::npos) << to_string(with);
  EXPECT_NE(to_string(transposed).find("violations=i64(1,14)"), std::string::npos);
}

}  // namespace
}  // namespace shortconv
