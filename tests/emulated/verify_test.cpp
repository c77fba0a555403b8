// The CUDA backend on the emulated device against the reference, as shortconv verify does it. A
// test cannot pass without the kernels that it is about.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "runtime.hpp"
#include "shortconv/capability.hpp"
#include "verify/case.hpp"
#include "verify/check.hpp"
#include "verify/commit_case.hpp"
#include "verify/paths.hpp"

namespace shortconv::tools::verify {
namespace {

/// The address sanitizer takes several times as long.
#ifdef SHORTCONV_ADDRESS_SANITIZER
constexpr std::uint64_t kShare = 4;
#else
constexpr std::uint64_t kShare = 1;
#endif

/// The least launches that make a kernel one that was tested.
constexpr std::int64_t kEnough = 8 / kShare;

void expect_launches_of(std::string_view instances) {
  int kernels = 0;
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (use.instances != instances) continue;
    ++kernels;
    EXPECT_GE(use.launches, kEnough) << use.name << " of " << use.instances;
  }
  EXPECT_GT(kernels, 0) << instances;
}

void expect_launches(std::string_view name) {
  const auto uses = emulated::kernel_uses();
  const auto has_name = [&](const auto& use) { return use.name == name; };
  EXPECT_TRUE(std::ranges::any_of(uses, has_name)) << name;
  for (const emulated::KernelUse& use : uses) {
    if (!has_name(use)) continue;
    EXPECT_GE(use.launches, kEnough) << name << " of " << use.instances;
  }
}

class Cases : public testing::TestWithParam<DType> {
 protected:
  /// Calls check(case), which says what is wrong, for so many fast cases.
  template <typename Check>
  static void check_fast_cases(std::uint64_t count, Check&& check) {
    for (std::uint64_t seed = 0; seed < count / kShare; ++seed) {
      const Case problem = make_fast_case(seed, GetParam());
      emulated::begin(seed);
      const std::optional<std::string> failure = check(problem);
      ASSERT_FALSE(failure.has_value()) << "seed " << seed << ": " << *failure << "\n"
                                        << to_string(problem);
    }
  }
};

/// Nothing of what is drawn here may be refused.
std::optional<std::string> failure_of(const Verdict& verdict) {
  return verdict.unsupported ? verdict.unsupported : verdict.failure;
}

TEST_P(Cases, OfFastKernelsAgreeWithTheReference) {
  check_fast_cases(
      1500, [](const Case& problem) { return failure_of(check_case(problem, BackendId::kCuda)); });
  expect_launches_of(name(GetParam()));
}

TEST_P(Cases, OfFastKernelsGiveTheSameBitsOnEveryPath) {
  check_fast_cases(250, [](const Case& problem) { return check_paths(problem, BackendId::kCuda); });
}

TEST_P(Cases, OfFastKernelsWithBadValuesLeadNowhere) {
  check_fast_cases(1000,
                   [](const Case& problem) { return check_bad_values(problem, BackendId::kCuda); });
  expect_launches_of(name(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Types, Cases, testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& row) { return std::string(name(row.param)); });

TEST(AnyCases, AgreeWithTheReference) {
  for (std::uint64_t seed = 0; seed < 1000 / kShare; ++seed) {
    const Case problem = make_case(seed);
    emulated::begin(seed);
    auto failure = failure_of(check_case(problem, BackendId::kCuda));
    if (!failure) failure = check_bad_values(problem, BackendId::kCuda);
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
  for (const char* kernel : {"general", "clear_report", "count_violations"}) {
    expect_launches(kernel);
  }
}

/// What only a few cases have, all of which are made from fast ones.
TEST(SnapshotCases, ReplaceHistories) {
  for (std::uint64_t seed = 0; seed < 8000 / kShare; ++seed) {
    const Case problem = make_fast_case(seed, DType::kBF16);
    if (!problem.snapshots || !problem.write_slots) continue;
    emulated::begin(seed);
    const auto failure = failure_of(check_case(problem, BackendId::kCuda));
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
  expect_launches("replace_histories");
}

TEST(Commits, AgreeWithTheReference) {
  for (std::uint64_t seed = 0; seed < 1500 / kShare; ++seed) {
    const CommitCase problem = make_commit_case(seed);
    emulated::begin(seed);
    const auto failure = failure_of(check_commit(problem, BackendId::kCuda));
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
  expect_launches("commit");
}

}  // namespace
}  // namespace shortconv::tools::verify
