// Random backward calls and their check.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"
#include "verify/backward_case.hpp"
#include "verify/check_backward.hpp"
#include "verify/compare.hpp"
#include "verify/gradient_bounds.hpp"

namespace shortconv::tools::verify {
namespace {

using Condition = std::function<bool(const BackwardCase&)>;

/// The first case with rows and all gradients of its inputs that fulfils a condition.
BackwardCase find_case(const Condition& condition) {
  for (std::uint64_t seed = 0; seed < 100000; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    const bool sequences = problem.sequences() > 0 && problem.starts.back() > problem.starts[0];
    if (sequences && problem.grad_x && problem.grad_weight && condition(problem)) return problem;
  }
  throw std::runtime_error("no such case");
}

/// Runs a case correctly, lets `damage` spoil the result, and returns what the check says.
std::string verdict_after(const BackwardCase& problem,
                          const std::function<void(const BackwardBuffers&)>& damage) {
  const BackwardBuffers before = make_buffers(problem);
  const BackwardBuffers after = before;
  EXPECT_TRUE(run_case(problem, after, BackendId::kReference).ok());
  EXPECT_EQ(check_gradients(problem, before, after).value_or(""), "");
  damage(after);
  return check_gradients(problem, before, after).value_or("");
}

void flip(std::byte* byte) { *byte ^= std::byte{1}; }

std::vector<std::int64_t> offsets_of(const TensorSpec& spec) {
  std::vector<std::int64_t> offsets;
  for_each_element(spec, [&](std::int64_t offset) { offsets.push_back(offset); });
  return offsets;
}

TEST(BackwardCase, ASeedAlwaysGivesTheSameCaseAndValues) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    EXPECT_EQ(to_string(problem), to_string(make_backward_case(seed)));
    const BackwardBuffers first = make_buffers(problem), second = make_buffers(problem);
    EXPECT_TRUE(std::ranges::equal(first.x->bytes(), second.x->bytes()));
  }
}

TEST(BackwardCase, CoversTheCornersOfABatch) {
  std::map<std::string, int> seen;
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    seen["no sequences"] += problem.sequences() == 0;
    seen["no rows"] += problem.rows() == 0;
    seen["rows before"] += problem.starts.front() > 0;
    seen["rows after"] += problem.starts.back() < problem.rows();
    seen["more than 512 rows"] += problem.rows() > 512;
    seen["unaligned"] += problem.x->origin % 8 != 0;
    seen["reversed"] += std::ranges::any_of(problem.x->strides, [](auto s) { return s < 0; });
    seen["channels first"] += problem.rows() > 1 && problem.x->strides.back() > 8;
    seen["more than a block of the CPU"] += problem.channels() > 256;
    seen["no gradients"] += !problem.grad_x && !problem.grad_weight;
    seen["fp32 gradients of 16-bit weights"] +=
        problem.grad_weight && problem.grad_weight->dtype != problem.weight->dtype;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      const std::int64_t length = problem.starts[s + 1] - problem.starts[s];
      seen["sequence without tokens"] += length == 0;
      seen["shorter than the history"] += length > 0 && length < problem.history();
    }
    seen["padding by number"] += std::ranges::any_of(problem.numbers, [](auto n) { return n < 0; });
    for (const Part& part : problem.parts()) {
      seen["empty first part"] += problem.seq_idx && part.begin == part.end && problem.rows() > 0;
      seen["part without states"] += !part.has_states;
    }
  }
  for (const auto& [corner, times] : seen) EXPECT_GE(times, 5) << corner;
}

TEST(BackwardCase, RowsWithoutASequenceHoldNaN) {
  const BackwardCase problem = find_case(
      [](const BackwardCase& c) { return c.starts.front() > 0 && c.rows() > c.starts.back(); });
  const BackwardBuffers buffers = make_buffers(problem);
  for (const auto* tensor : {&buffers.x, &buffers.grad_out}) {
    for (std::int64_t row = 0; row < problem.rows(); ++row) {
      const bool outside = row < problem.starts.front() || row >= problem.starts.back();
      EXPECT_EQ(std::isnan((*tensor)->load((*tensor)->spec().row_offset(row, 0))), outside) << row;
    }
  }
}

TEST(BackwardCheck, FindsAWrongGradientAndSaysWhere) {
  const BackwardCase problem = find_case(
      [](const BackwardCase& c) { return c.grad_x->dtype == DType::kF32 && c.starts[0] == 0; });
  const std::string verdict = verdict_after(problem, [&](const BackwardBuffers& after) {
    const std::int64_t at = offsets_of(*problem.grad_x)[0];
    after.grad_x->store(at, after.grad_x->load(at) + 1e-3);
  });
  EXPECT_EQ(verdict.find("grad_x 0, 0"), 0u) << verdict;
  EXPECT_NE(verdict.find("allowed distance"), std::string::npos) << verdict;
}

/// Of every gradient: an element that is off by 2 % and a bit.
TEST(BackwardCheck, FindsAWrongElementOfEveryGradient) {
  std::map<std::string_view, int> found;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    visit_backward_tensors(
        [&](const Argument& row, const auto& spec) {
          if (!spec || !is_written(row.access) || offsets_of(*spec).empty()) return;
          const std::int64_t at = offsets_of(*spec).back();
          const std::string verdict = verdict_after(problem, [&](const BackwardBuffers& after) {
            visit_backward_tensors(
                [&](const Argument& other, const auto& buffer) {
                  if (other.name != row.name) return;
                  const double right = buffer->load(at);
                  buffer->store(at, right + std::copysign(0.02 * std::fabs(right) + 0.02, right));
                },
                after);
          });
          EXPECT_EQ(verdict.find(row.name), 0u) << verdict << to_string(problem);
          ++found[row.name];
        },
        problem);
  }
  EXPECT_EQ(found.size(), 6u);
  for (const auto& [gradient, times] : found) EXPECT_GE(times, 20) << gradient;
}

TEST(BackwardCheck, FindsAGradientOfARowWithoutASequence) {
  const BackwardCase problem = find_case([](const BackwardCase& c) { return c.starts[0] > 0; });
  const std::string verdict = verdict_after(problem, [&](const BackwardBuffers& after) {
    after.grad_x->store(problem.grad_x->row_offset(0, 0), 0.5);
  });
  EXPECT_EQ(verdict.find("grad_x 0, 0: got 0.5, expected 0"), 0u) << verdict;
}

TEST(BackwardCheck, FindsAByteWrittenOutsideAGradientAndAnInputThatWasWrittenTo) {
  const BackwardCase problem =
      find_case([](const BackwardCase& c) { return c.grad_bias && c.query_start_loc; });
  EXPECT_EQ(
      verdict_after(problem,
                    [](const BackwardBuffers& after) { flip(&after.grad_bias->bytes().back()); })
          .find("grad_bias: a byte of no element"),
      0u);
  EXPECT_EQ(verdict_after(problem,
                          [](const BackwardBuffers& after) { flip(after.grad_x->bytes().data()); })
                .find("grad_x: a byte of no element"),
            0u);
  EXPECT_EQ(verdict_after(
                problem,
                [](const BackwardBuffers& after) { flip(after.query_start_loc->bytes().data()); })
                .find("query_start_loc: an input was written to"),
            0u);
}

/// Both compute in fp64, so they differ by far less than the bounds allow.
TEST(GradientBounds, ValuesAreThoseOfTheReference) {
  constexpr double kDistance = 1e-12;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    const BackwardBuffers before = make_buffers(problem);
    const GradientBounds bounds = bound_gradients(problem, before);
    ASSERT_TRUE(run_case(problem, before, BackendId::kReference).ok());
    visit_backward_tensors(
        [&](const Argument& row, const auto& got, const auto& values) {
          if (!got || !is_written(row.access)) return;
          std::int64_t number = 0;
          for_each_element(got->spec(), [&](std::int64_t offset) {
            const double exact = values->load(number++);
            EXPECT_TRUE(within_error(got->spec().dtype, got->load(offset), exact,
                                     kDistance * (1 + std::fabs(exact))))
                << row.name << " " << got->load(offset) << " " << exact << to_string(problem);
          });
        },
        before, bounds.values);
  }
}

/// Of the rows' gradients: sums of up to 8 products of numbers around 1.
TEST(GradientBounds, AllowNoMoreThanRoundingCanExplain) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    if (problem.width > 8) continue;
    const GradientBounds bounds = bound_gradients(problem, make_buffers(problem));
    for (const auto* errors : {&bounds.errors.grad_x, &bounds.errors.grad_output_gate}) {
      if (!*errors) continue;
      for_each_element((*errors)->spec(), [&](std::int64_t offset) {
        EXPECT_LT((*errors)->load(offset), 1e-4) << to_string(problem);
      });
    }
  }
}

class BackwardBackends : public testing::TestWithParam<BackendId> {
 protected:
  void SetUp() override {
    for (const BackendInfo& info : backend_info()) {
      if (info.name == name(GetParam()) && !info.available) GTEST_SKIP() << info.detail;
    }
  }
};

TEST_P(BackwardBackends, RandomGradientsAreWithinTheBounds) {
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    const Verdict verdict = check_backward(problem, GetParam());
    ASSERT_FALSE(verdict.failure.has_value()) << *verdict.failure << "\n" << to_string(problem);
    ASSERT_FALSE(verdict.unsupported.has_value()) << *verdict.unsupported;
  }
}

TEST_P(BackwardBackends, EveryPathGivesTheSameBits) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    const auto failure = check_backward_paths(problem, GetParam());
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
}

TEST_P(BackwardBackends, BadValuesLeadNowhere) {
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    const BackwardCase problem = make_backward_case(seed);
    const auto failure = check_bad_values(problem, GetParam());
    ASSERT_FALSE(failure.has_value()) << *failure << "\n" << to_string(problem);
  }
}

INSTANTIATE_TEST_SUITE_P(Check, BackwardBackends,
                         testing::Values(BackendId::kReference, BackendId::kCpu, BackendId::kCuda),
                         [](const auto& row) { return std::string(name(row.param)); });

}  // namespace
}  // namespace shortconv::tools::verify
