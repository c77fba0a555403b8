#include "verify/check.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "shortconv/capability.hpp"
#include "verify/commit_case.hpp"
#include "verify/paths.hpp"

namespace shortconv::tools::verify {
namespace {

using Condition = std::function<bool(const Case&)>;

// The first case that fulfils a condition.
Case find_case(const Condition& condition) {
  for (std::uint64_t seed = 0; seed < 100000; ++seed) {
    const Case problem = make_case(seed);
    if (problem.rows() > 0 && condition(problem)) return problem;
  }
  throw std::runtime_error("no such case");
}

std::int64_t first_row(const Case& problem, bool live) {
  const auto owners = owners_of_rows(problem);
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    if ((owners[row] >= 0) == live) return row;
  }
  return -1;
}

// Runs a case correctly, lets `damage` spoil the result, and returns what the check says.
std::string verdict_after(const Case& problem,
                          const std::function<void(const CaseBuffers&)>& damage) {
  const CaseBuffers before = make_buffers(problem);
  const CaseBuffers after = before;
  EXPECT_TRUE(run_case(problem, after, BackendId::kReference).ok());
  EXPECT_FALSE(check_result(problem, before, after).failure.has_value());
  damage(after);
  return check_result(problem, before, after).failure.value_or("");
}

void flip(std::byte* byte) { *byte ^= std::byte{1}; }

TEST(Check, FindsAWrongOutputAndSaysWhere) {
  const Case problem = find_case([](const Case& c) {
    return first_row(c, true) >= 0 && c.special_period == 0 && c.x_scale == 1;
  });
  const std::int64_t row = first_row(problem, true);
  const std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
    const TensorBuffer& out = after.result(problem);
    const std::int64_t at = out.spec().row_offset(row, 0);
    out.store(at, out.load(at) * 1.02 + 1e-3);
  });
  EXPECT_NE(verdict.find("out row " + std::to_string(row)), std::string::npos) << verdict;
  EXPECT_NE(verdict.find("channel 0: got "), std::string::npos) << verdict;
  EXPECT_NE(verdict.find("allowed distance"), std::string::npos) << verdict;
}

TEST(Check, FindsInfinityWhereNoneBelongs) {
  const Case problem =
      find_case([](const Case& c) { return first_row(c, true) >= 0 && c.special_period == 0; });
  const std::int64_t row = first_row(problem, true);
  const std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
    const TensorBuffer& out = after.result(problem);
    out.store(out.spec().row_offset(row, 0), std::numeric_limits<double>::infinity());
  });
  EXPECT_NE(verdict.find("got inf"), std::string::npos) << verdict;
}

TEST(Check, FindsAWrongRowOfPaddingForEveryPolicy) {
  for (const PaddedRows policy : {PaddedRows::kZero, PaddedRows::kUntouched, PaddedRows::kCopy}) {
    const Case problem = find_case(
        [&](const Case& c) { return c.padded_rows == policy && first_row(c, false) >= 0; });
    const std::int64_t row = first_row(problem, false);
    const std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
      const TensorBuffer& out = after.result(problem);
      flip(out.element(out.spec().row_offset(row, 0)));
    });
    EXPECT_NE(verdict.find("padded rows: "), std::string::npos) << verdict;
  }
}

TEST(Check, FindsAByteWrittenOutsideTheOutput) {
  const Case problem = find_case([](const Case& c) { return !c.in_place && c.out.origin > 0; });
  for (const bool at_the_end : {false, true}) {
    const std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
      flip(at_the_end ? &after.out.bytes().back() : after.out.element(0) - 1);
    });
    EXPECT_NE(verdict.find("out: a byte of no element"), std::string::npos) << verdict;
  }
}

TEST(Check, FindsAChangedStateAndAByteBesideIt) {
  const Case problem = find_case(
      [](const Case& c) { return c.state && c.slots() > 0 && c.state->dtype == c.x.dtype; });
  std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
    flip(after.state->element(problem.state->offset({problem.slots() - 1, 0, 0})));
  });
  EXPECT_NE(verdict.find("state slot"), std::string::npos) << verdict;
  verdict = verdict_after(problem,
                          [&](const CaseBuffers& after) { flip(&after.state->bytes().front()); });
  EXPECT_NE(verdict.find("state: a byte of no element"), std::string::npos) << verdict;
}

TEST(Check, FindsAChangedIntermediateStateAndAByteNextToIt) {
  const Case problem = find_case([](const Case& c) {
    return c.windows_kind == WindowsKind::kSlots && c.windows->shape[0] * c.windows->shape[1] > 0 &&
           c.state->dtype == c.x.dtype;
  });
  std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
    flip(after.windows->element(problem.windows->offset({0, 0, 0, 0})));
  });
  EXPECT_NE(verdict.find("token, column, channel 0, 0, 0, 0: got"), std::string::npos) << verdict;
  verdict = verdict_after(problem,
                          [&](const CaseBuffers& after) { flip(&after.windows->bytes().back()); });
  EXPECT_NE(verdict.find("windows: a byte of no element"), std::string::npos) << verdict;
}

TEST(Check, FindsAWrongReport) {
  const Case problem = find_case([](const Case& c) { return c.violations.has_value(); });
  const std::string verdict = verdict_after(problem, [&](const CaseBuffers& after) {
    flip(after.violations->element(problem.violations->offset({0, 0})));
  });
  EXPECT_NE(verdict.find("violations 'query_start_loc outside', count: got 1, expected 0"),
            std::string::npos)
      << verdict;
}

TEST(Check, FindsAnInputThatWasWrittenTo) {
  const Case problem = find_case([](const Case& c) { return c.read_slots && c.sequences() > 0; });
  EXPECT_NE(
      verdict_after(problem, [](const CaseBuffers& after) { flip(after.weight.bytes().data()); })
          .find("weight: an input was written to"),
      std::string::npos);
  EXPECT_NE(verdict_after(problem,
                          [](const CaseBuffers& after) { flip(after.read_slots->bytes().data()); })
                .find("read_slots: an input was written to"),
            std::string::npos);
}

class Backends : public testing::TestWithParam<BackendId> {
 protected:
  void SetUp() override {
    for (const BackendInfo& info : backend_info()) {
      if (info.name == name(GetParam()) && !info.available) GTEST_SKIP() << info.detail;
    }
  }
};

TEST_P(Backends, RandomCasesAgreeWithTheReference) {
  for (std::uint64_t seed = 0; seed < 1500; ++seed) {
    const Case problem = make_case(seed);
    const Verdict verdict = check_case(problem, GetParam());
    ASSERT_FALSE(verdict.failure.has_value()) << *verdict.failure << "\n" << to_string(problem);
  }
}

TEST_P(Backends, EveryPathGivesTheSameBits) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const Case problem = make_case(seed);
    const auto failure = check_paths(problem, GetParam());
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
}

TEST_P(Backends, BadValuesLeadNowhere) {
  for (std::uint64_t seed = 0; seed < 1500; ++seed) {
    const Case problem = make_case(seed);
    const auto failure = check_bad_values(problem, GetParam());
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
}

TEST_P(Backends, RandomCommitsAgreeWithTheReference) {
  for (std::uint64_t seed = 0; seed < 1500; ++seed) {
    const CommitCase problem = make_commit_case(seed);
    const Verdict verdict = check_commit(problem, GetParam());
    ASSERT_FALSE(verdict.failure.has_value()) << *verdict.failure << "\n" << to_string(problem);
    ASSERT_FALSE(verdict.unsupported.has_value()) << *verdict.unsupported;
  }
}

INSTANTIATE_TEST_SUITE_P(Check, Backends,
                         testing::Values(BackendId::kReference, BackendId::kCpu, BackendId::kCuda),
                         [](const auto& row) { return std::string(name(row.param)); });

}  // namespace
}  // namespace shortconv::tools::verify
