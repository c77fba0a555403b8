// Calls with groups, on each backend that is available.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "shortconv/capability.hpp"
#include "verify/grouped_case.hpp"

namespace shortconv::tools::verify {
namespace {

#ifdef SHORTCONV_ADDRESS_SANITIZER
constexpr std::uint64_t kCases = 120;
#else
constexpr std::uint64_t kCases = 2500;
#endif

class GroupedBackends : public testing::TestWithParam<BackendId> {
 protected:
  void SetUp() override {
    for (const BackendInfo& info : backend_info()) {
      if (info.name == name(GetParam()) && !info.available) GTEST_SKIP() << info.detail;
    }
  }

  /// A case that the backend supports.
  static GroupedCase make_case(std::uint64_t seed) {
    GroupedCase problem = make_grouped_case(seed);
    const auto has_scale = [](const GroupSpec& group) { return group.input_scale != 1; };
    for (int i = 1;
         GetParam() == BackendId::kCuda && std::ranges::any_of(problem.groups, has_scale); ++i) {
      problem = make_grouped_case(seed + static_cast<std::uint64_t>(i) * kCases);
    }
    return problem;
  }
};

TEST_P(GroupedBackends, GiveTheBitsOfSeparateOperations) {
  std::int64_t outputs = 0;
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const GroupedCase problem = make_case(seed);
    const Verdict verdict = check_grouped(problem, GetParam());
    ASSERT_FALSE(verdict.unsupported) << *verdict.unsupported << "\n" << to_string(problem);
    ASSERT_FALSE(verdict.failure) << *verdict.failure << "\n" << to_string(problem);
    outputs += verdict.outputs;
  }
  EXPECT_GT(outputs, 1000 * static_cast<std::int64_t>(kCases));
}

TEST_P(GroupedBackends, ComputeNormsAndGatesOfTheSpecification) {
  for (std::uint64_t seed = 0; seed < kCases / 4; ++seed) {
    const GroupedCase problem = make_case(seed);
    const auto failure = check_group_operations(problem, GetParam());
    ASSERT_FALSE(failure) << *failure << "\n" << to_string(problem);
  }
}

INSTANTIATE_TEST_SUITE_P(Check, GroupedBackends,
                         testing::Values(BackendId::kReference, BackendId::kCpu, BackendId::kCuda),
                         [](const auto& row) { return std::string(name(row.param)); });

}  // namespace
}  // namespace shortconv::tools::verify
