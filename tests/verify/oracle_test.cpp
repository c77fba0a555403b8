// The reference backend against the specification written down once more: here every token looks up
// its own history by asking the case, there is no window that moves.
#include <gtest/gtest.h>

#include <cmath>

#include "verify/buffers.hpp"
#include "verify/check.hpp"
#include "verify/compare.hpp"

namespace shortconv::tools::verify {
namespace {

// Input `token` of a sequence; negative tokens are the history, -1 the newest.
double input(const Case& problem, const CaseBuffers& before, std::int64_t s, std::int64_t token,
             std::int64_t channel) {
  if (token >= 0) {
    const std::int64_t row = problem.starts[s] + token;
    const double x = before.x.load(problem.x.row_offset(row, channel));
    if (!problem.input_gate) return x;
    const double gate = before.input_gate->load(problem.input_gate->row_offset(row, channel));
    return rounded_to(problem.x.dtype, rounded_to(DType::kF32, x * gate));
  }
  if (!problem.resumed(s)) return 0;
  const std::int64_t column =
      problem.state_base + problem.read_offset(s) + problem.history() + token;
  return before.state->load(problem.state->offset({problem.read_slot(s), column, channel}));
}

double output(const Case& problem, const CaseBuffers& before, std::int64_t s, std::int64_t token,
              std::int64_t channel) {
  double a = problem.bias ? before.bias->load(problem.bias->offset({channel})) : 0;
  for (int tap = 0; tap < problem.width; ++tap) {
    a += before.weight.load(problem.weight.offset({channel, tap})) *
         input(problem, before, s, token - (problem.width - 1 - tap) * problem.dilation, channel);
  }
  const double y = problem.activation == Activation::kSilu ? a / (1 + std::exp(-a)) : a;
  const std::int64_t row = problem.starts[s] + token;
  switch (problem.epilogue) {
    case Epilogue::kResidual:
      return y + input(problem, before, s, token, channel);
    case Epilogue::kOutputGate:
      return y * before.output_gate->load(problem.output_gate->row_offset(row, channel));
    case Epilogue::kNone:
      break;
  }
  return y;
}

TEST(Oracle, TheReferenceComputesWhatTheSpecificationSays) {
  int live = 0;
  for (std::uint64_t seed = 0; seed < 800; ++seed) {
    Case problem = make_case(seed);
    problem.out = dense(DType::kF64, problem.x.shape);
    problem.in_place = false;
    problem.schedule = Schedule::kFlat;
    const CaseBuffers before = make_buffers(problem);
    const CaseBuffers after = before;
    const Status status = run_case(problem, after, BackendId::kReference);
    ASSERT_TRUE(status.ok()) << status.message() << "\n" << to_string(problem);
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      if (problem.skipped(s)) continue;
      for (std::int64_t t = 0; t < problem.length(s); ++t) {
        for (std::int64_t c = 0; c < problem.channels(); ++c) {
          const double wanted = output(problem, before, s, t, c);
          const double got = after.out.load(problem.out.row_offset(problem.starts[s] + t, c));
          if (std::isnan(wanted) && std::isnan(got)) continue;
          ASSERT_EQ(got, wanted) << locate_row(problem, problem.starts[s] + t, c) << "\n"
                                 << to_string(problem);
          ++live;
        }
      }
    }
  }
  EXPECT_GT(live, 100000);
}

TEST(Oracle, TheReferenceKeepsTheLastInputsAndNothingElse) {
  int written = 0;
  for (std::uint64_t seed = 0; seed < 800; ++seed) {
    const Case problem = make_case(seed);
    if (!problem.state) continue;
    const CaseBuffers before = make_buffers(problem);
    const CaseBuffers after = before;
    ASSERT_TRUE(run_case(problem, after, BackendId::kReference).ok());
    const TensorBuffer expected = *before.state;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      const std::int64_t slot = problem.write_slot(s);
      if (problem.skipped(s) || problem.length(s) == 0 || !problem.valid_slot(slot)) continue;
      ++written;
      for (std::int64_t column = 0; column < problem.history(); ++column) {
        for (std::int64_t c = 0; c < problem.channels(); ++c) {
          const std::int64_t token = problem.length(s) - problem.history() + column;
          expected.store(problem.state->offset({slot, problem.state_base + column, c}),
                         input(problem, before, s, token, c));
        }
      }
    }
    const auto difference = compare_states(*after.state, expected, true);
    ASSERT_FALSE(difference.has_value()) << *difference << "\n" << to_string(problem);
  }
  EXPECT_GT(written, 1000);
}

}  // namespace
}  // namespace shortconv::tools::verify
