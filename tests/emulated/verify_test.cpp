// The CUDA backend on the emulated device against the reference, as shortconv verify does it. A
// test cannot pass without the kernels that it is about.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

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

/// Kernels that a test is about and has to launch.
using KernelFilter = std::function<bool(const emulated::KernelUse&)>;

KernelFilter all_of(DType dtype) {
  return [=](const emulated::KernelUse& use) { return use.instances == name(dtype); };
}

/// A tree has no other path than verify's.
KernelFilter all_but_trees_of(DType dtype) {
  return [=](const emulated::KernelUse& use) {
    return use.instances == name(dtype) && !use.name.ends_with("trees");
  };
}

KernelFilter named(std::vector<std::string> names) {
  return [=](const emulated::KernelUse& use) {
    return std::ranges::find(names, use.name) != names.end();
  };
}

/// Those that were launched too seldom, on lines; empty if each was launched often enough.
std::string launched_too_seldom(const KernelFilter& wanted) {
  std::string lines;
  int kernels = 0;
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (!wanted(use)) continue;
    ++kernels;
    if (use.launches >= kEnough) continue;
    lines += fmt::format("{} of {}: {} launches\n", use.name, use.instances, use.launches);
  }
  return kernels > 0 ? lines : "no such kernel\n";
}

/// Calls check(seed) for so many seeds, and for up to four times as many until the kernels have
/// been launched often enough: how many cases a rare kernel takes hangs on what else is drawn.
template <typename Check>
void check_seeds(std::uint64_t count, const KernelFilter& wanted, Check&& check) {
  const auto is_enough = [&](std::uint64_t seeds) {
    return seeds >= 4 * (count / kShare) ||
           (seeds >= count / kShare && launched_too_seldom(wanted).empty());
  };
  for (std::uint64_t seed = 0; !is_enough(seed); ++seed) {
    emulated::begin(seed);
    check(seed);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_EQ(launched_too_seldom(wanted), "");
}

/// Nothing of what is drawn here may be refused.
std::optional<std::string> failure_of(const Verdict& verdict) {
  return verdict.unsupported ? verdict.unsupported : verdict.failure;
}

class FastCases : public testing::TestWithParam<DType> {
 protected:
  /// check(case) says what is wrong.
  template <typename Check>
  static void check_cases(std::uint64_t count, const KernelFilter& wanted, Check&& check) {
    check_seeds(count, wanted, [&](std::uint64_t seed) {
      const Case problem = make_fast_case(seed, GetParam());
      const std::optional<std::string> failure = check(problem);
      ASSERT_FALSE(failure.has_value()) << "seed " << seed << ": " << *failure << "\n"
                                        << to_string(problem);
    });
  }
};

TEST_P(FastCases, AgreeWithTheReference) {
  check_cases(1500, all_of(GetParam()), [](const Case& problem) {
    return failure_of(check_case(problem, BackendId::kCuda));
  });
}

TEST_P(FastCases, GiveTheSameBitsOnEveryPath) {
  check_cases(250, all_but_trees_of(GetParam()),
              [](const Case& problem) { return check_paths(problem, BackendId::kCuda); });
}

TEST_P(FastCases, WithBadValuesLeadNowhere) {
  check_cases(1000, all_of(GetParam()),
              [](const Case& problem) { return check_bad_values(problem, BackendId::kCuda); });
}

INSTANTIATE_TEST_SUITE_P(Types, FastCases, testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& row) { return std::string(name(row.param)); });

TEST(AnyCases, AgreeWithTheReference) {
  const std::vector<std::string> kernels = {"general", "clear_report", "count_violations"};
  check_seeds(1000, named(kernels), [](std::uint64_t seed) {
    const Case problem = make_case(seed);
    auto failure = failure_of(check_case(problem, BackendId::kCuda));
    if (!failure) failure = check_bad_values(problem, BackendId::kCuda);
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  });
  for (const std::string& kernel : kernels) EXPECT_EQ(launched_too_seldom(named({kernel})), "");
}

/// What only a few cases have, all of which are made from fast ones.
TEST(SnapshotCases, ReplaceHistories) {
  check_seeds(8000, named({"replace_histories"}), [](std::uint64_t seed) {
    const Case problem = make_fast_case(seed, DType::kBF16);
    if (!problem.snapshots || !problem.write_slots) return;
    const auto failure = failure_of(check_case(problem, BackendId::kCuda));
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  });
}

TEST(Commits, AgreeWithTheReference) {
  check_seeds(1500, named({"commit"}), [](std::uint64_t seed) {
    const CommitCase problem = make_commit_case(seed);
    const auto failure = failure_of(check_commit(problem, BackendId::kCuda));
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  });
}

}  // namespace
}  // namespace shortconv::tools::verify
