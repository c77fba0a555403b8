// Calls with groups of the CUDA backend on the emulated device, against separate operations on it.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime.hpp"
#include "verify/grouped_case.hpp"

namespace shortconv::tools::verify {
namespace {

// Cases, and launches that each kernel needs. A rare one may need more cases, up to 16 times as
// many.
#ifdef SHORTCONV_ADDRESS_SANITIZER
constexpr std::uint64_t kCases = 60;
constexpr std::int64_t kEnough = 1;
#else
constexpr std::uint64_t kCases = 1200;
constexpr std::int64_t kEnough = 9;
#endif

/// Kernels of calls with groups that do not exist or had too few launches, one per line.
std::string launched_too_rarely() {
  const std::vector<std::string> kernels = {
      "tiles, groups", "few tiles, groups", "decode, groups", "convolve_group",
      "copy_group",    "normalize_groups",  "store_gates"};
  std::string lines;
  for (const std::string& kernel : kernels) {
    bool exists = false;
    for (const emulated::KernelUse& use : emulated::kernel_uses()) {
      if (use.name != kernel) continue;
      exists = true;
      if (use.launches < kEnough) lines += use.name + ", " + use.instances + "\n";
    }
    if (!exists) lines += kernel + " does not exist\n";
  }
  return lines;
}

bool has_input_scales(const GroupedCase& problem) {
  return std::ranges::any_of(problem.groups,
                             [](const GroupSpec& group) { return group.input_scale != 1; });
}

TEST(Groups, GiveTheBitsOfSeparateOperations) {
  const auto goes_on = [](std::uint64_t seed) {
    return seed < kCases || (seed < 16 * kCases && !launched_too_rarely().empty());
  };
  for (std::uint64_t seed = 0; goes_on(seed); ++seed) {
    emulated::begin(seed);
    const GroupedCase problem = make_grouped_case(seed);
    const Verdict verdict = check_grouped(problem, BackendId::kCuda);
    ASSERT_FALSE(verdict.failure) << *verdict.failure << "\n" << to_string(problem);
    ASSERT_EQ(verdict.unsupported.has_value(), has_input_scales(problem)) << to_string(problem);
  }
  EXPECT_EQ(launched_too_rarely(), "");
}

TEST(Groups, NormsAndGatesAreThoseOfTheSpecification) {
  for (std::uint64_t seed = 0; seed < kCases / 2; ++seed) {
    emulated::begin(seed);
    const GroupedCase problem = make_grouped_case(seed);
    const auto failure = check_group_operations(problem, BackendId::kCuda);
    ASSERT_FALSE(failure) << *failure << "\n" << to_string(problem);
  }
}

}  // namespace
}  // namespace shortconv::tools::verify
