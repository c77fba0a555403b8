// The CUDA backend on the emulated device against the reference, with the cases of shortconv
// verify. A test fails if it launches one of its kernels too rarely.
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
#include "verify/backward_case.hpp"
#include "verify/case.hpp"
#include "verify/check.hpp"
#include "verify/check_backward.hpp"
#include "verify/commit_case.hpp"
#include "verify/paths.hpp"

namespace shortconv::tools::verify {
namespace {

/// Tests with the address sanitizer take several times as long.
#ifdef SHORTCONV_ADDRESS_SANITIZER
constexpr std::uint64_t kShare = 8;
#else
constexpr std::uint64_t kShare = 1;
#endif

/// Minimum launches of a tested kernel.
constexpr std::int64_t kEnough = 8 / kShare;

/// The kernels that a test must launch.
using KernelFilter = std::function<bool(const emulated::KernelUse&)>;

bool is_backward(const emulated::KernelUse& use) { return use.name.starts_with("backward"); }

/// Of forward calls without groups.
KernelFilter all_of(DType dtype) {
  return [=](const emulated::KernelUse& use) {
    return use.instances == name(dtype) && !is_backward(use) && !use.name.ends_with("groups");
  };
}

/// Trees have one path only, verify.
KernelFilter all_but_trees_of(DType dtype) {
  return [=](const emulated::KernelUse& use) {
    return all_of(dtype)(use) && !use.name.starts_with("trees");
  };
}

KernelFilter named(std::vector<std::string> names) {
  return [=](const emulated::KernelUse& use) {
    return std::ranges::find(names, use.name) != names.end();
  };
}

/// Kernels with too few launches, one per line.
std::string launched_too_rarely(const KernelFilter& wanted) {
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

/// Calls check(seed) for `count` seeds, and for up to 16 times as many until the kernels have
/// enough launches: the number of cases that a rare kernel takes is random.
template <typename Check>
void check_seeds(std::uint64_t count, const KernelFilter& wanted, Check&& check) {
  const auto is_enough = [&](std::uint64_t seeds) {
    return seeds >= 16 * (count / kShare) ||
           (seeds >= count / kShare && launched_too_rarely(wanted).empty());
  };
  for (std::uint64_t seed = 0; !is_enough(seed); ++seed) {
    emulated::begin(seed);
    check(seed);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_EQ(launched_too_rarely(wanted), "");
}

/// The drawn cases must be supported.
std::optional<std::string> failure_of(const Verdict& verdict) {
  return verdict.unsupported ? verdict.unsupported : verdict.failure;
}

class FastCases : public testing::TestWithParam<DType> {
 protected:
  /// check(case) returns a description of the failure.
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

TEST_P(FastCases, TolerateInvalidValues) {
  check_cases(1000, all_of(GetParam()),
              [](const Case& problem) { return check_bad_values(problem, BackendId::kCuda); });
}

INSTANTIATE_TEST_SUITE_P(Types, FastCases, testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& row) { return std::string(name(row.param)); });

TEST(AnyCases, AgreeWithTheReference) {
  const std::vector<std::string> kernels = {
      "general",         "general verify, chains", "general verify, trees", "general decode",
      "whole sequences", "whole short sequences",  "clear_report",          "count_violations"};
  check_seeds(1000, named(kernels), [](std::uint64_t seed) {
    const Case problem = make_case(seed);
    auto failure = failure_of(check_case(problem, BackendId::kCuda));
    if (!failure) failure = check_bad_values(problem, BackendId::kCuda);
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  });
  for (const std::string& kernel : kernels) EXPECT_EQ(launched_too_rarely(named({kernel})), "");
}

/// Few cases have snapshots that replace histories; all of them are fast cases.
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

/// The kernels of each type and width with and without an epilogue and states, the general one, and
/// the one that adds up partial sums.
bool computes_gradients(const emulated::KernelUse& use) {
  return is_backward(use) || use.name == "finish_backward";
}

/// check(case) returns a description of the failure.
template <typename Check>
void check_gradients_of(std::uint64_t count, const Check& check) {
  check_seeds(count, computes_gradients, [&](std::uint64_t seed) {
    const BackwardCase problem = make_backward_case(seed);
    const std::optional<std::string> failure = check(problem);
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  });
}

std::int64_t launches_of_the_general_kernel() {
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (use.name == "backward_general") return use.launches;
  }
  return -1;
}

TEST(Gradients, AreWithinTheBounds) {
  check_gradients_of(1000, [](const BackwardCase& problem) {
    const std::int64_t before = launches_of_the_general_kernel();
    auto failure = failure_of(check_backward(problem, BackendId::kCuda));
    if (!failure && problem.is_fast && launches_of_the_general_kernel() != before) {
      failure = "the general kernel computes a call for which there is a fast one";
    }
    return failure;
  });
}

TEST(Gradients, HaveTheSameBitsOnEveryPath) {
  check_gradients_of(700, [](const BackwardCase& problem) {
    return check_backward_paths(problem, BackendId::kCuda);
  });
}

TEST(Gradients, TolerateInvalidValues) {
  check_gradients_of(
      700, [](const BackwardCase& problem) { return check_bad_values(problem, BackendId::kCuda); });
}

}  // namespace
}  // namespace shortconv::tools::verify
