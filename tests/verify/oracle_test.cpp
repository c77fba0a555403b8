// The reference backend against the specification written down once more: here every token looks up
// its own history by asking the case, there is no window that moves.
#include <gtest/gtest.h>

#include <algorithm>
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
  const std::int64_t column = problem.cache_seqlens ? problem.ring_column(s, token)
                                                    : problem.base_column + problem.read_offset(s) +
                                                          problem.history() + token;
  return before.state->load(problem.state->offset({problem.read_slot(s), column, channel}));
}

// Whether seq_idx has both tokens of a sequence, and all between them, in one; what begins the row
// goes on from the history.
bool joined(const Case& problem, std::int64_t s, std::int64_t earlier, std::int64_t token) {
  for (; problem.seq_idx && token > std::max<std::int64_t>(earlier, 0); --token) {
    const std::int64_t* number = &problem.seq_idx->values[problem.starts[s] + token];
    if (number[-1] != number[0]) return false;
  }
  return true;
}

// The input that many steps before a token, along its line of ancestors.
std::int64_t ancestor(const Case& problem, std::int64_t s, std::int64_t token, std::int64_t steps) {
  for (; steps > 0; --steps) token = problem.token_before(s, token);
  return token;
}

double output(const Case& problem, const CaseBuffers& before, std::int64_t s, std::int64_t token,
              std::int64_t channel) {
  double a = problem.bias ? before.bias->load(problem.bias->offset({channel})) : 0;
  for (int tap = 0; tap < problem.width; ++tap) {
    const std::int64_t from =
        ancestor(problem, s, token, (problem.width - 1 - tap) * problem.dilation);
    a += before.weight.load(problem.weight.offset({channel, tap})) *
         (joined(problem, s, from, token) ? input(problem, before, s, from, channel) : 0);
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
        if (problem.padded_by_number(problem.starts[s] + t)) continue;
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

// Inputs [first, end) of a sequence, as a state that ends there has them.
void keep(const Case& problem, const CaseBuffers& before, const TensorBuffer& state, std::int64_t s,
          std::int64_t first, std::int64_t end, std::int64_t slot) {
  for (std::int64_t number = first; number < end; ++number) {
    const std::int64_t column = problem.cache_seqlens
                                    ? problem.ring_column(s, number)
                                    : problem.base_column + problem.history() - (end - number);
    for (std::int64_t c = 0; c < problem.channels(); ++c) {
      state.store(problem.state->offset({slot, column, c}), input(problem, before, s, number, c));
    }
  }
}

TEST(Oracle, TheReferenceKeepsTheLastInputsAndSnapshotsAndNothingElse) {
  int written = 0, snapshots = 0, moved = 0;
  for (std::uint64_t seed = 0; seed < 1200; ++seed) {
    const Case problem = make_case(seed);
    if (!problem.state || problem.windows_kind == WindowsKind::kPool) continue;
    const CaseBuffers before = make_buffers(problem);
    const CaseBuffers after = before;
    ASSERT_TRUE(run_case(problem, after, BackendId::kReference).ok());
    const TensorBuffer expected = *before.state;
    for (std::int64_t i = 0; i < problem.snapshot_count(); ++i) {
      const SnapshotRow row = problem.snapshot(i);
      if (!problem.is_taken(row)) continue;
      ++snapshots;
      keep(problem, before, expected, row.sequence, row.token - problem.history(), row.token,
           row.slot);
    }
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      const std::int64_t slot = problem.write_slot(s), length = problem.length(s);
      if (!problem.live(s) || !problem.valid_slot(slot)) continue;
      ++written;
      std::int64_t first = length - problem.history() - problem.older();
      if (problem.cache_seqlens) {
        const bool holds_history = problem.resumed(s) && slot == problem.read_slot(s);
        if (problem.op == Op::kVerify) first = -problem.history();
        first = holds_history ? 0 : std::min<std::int64_t>(first, 0);
        first = std::max(first, length - problem.state->shape[1]);
      }
      keep(problem, before, expected, s, first, length, slot);
      moved += problem.older() > 0 && problem.resumed(s) && first < -problem.history();
    }
    const auto difference = compare_states(*after.state, expected, true);
    ASSERT_FALSE(difference.has_value()) << *difference << "\n" << to_string(problem);
  }
  EXPECT_GT(written, 1000);
  EXPECT_GT(snapshots, 300);
  EXPECT_GT(moved, 50);
}

TEST(Oracle, TheReferenceCapturesTheStateAfterEachToken) {
  int captured = 0, in_the_pool = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    const Case problem = make_case(seed);
    if (!problem.windows) continue;
    const bool in_pool = problem.windows_kind == WindowsKind::kPool;
    const CaseBuffers before = make_buffers(problem);
    const CaseBuffers after = before;
    ASSERT_TRUE(run_case(problem, after, BackendId::kReference).ok());
    const TensorBuffer expected = in_pool ? *before.state : *before.windows;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      for (std::int64_t t = 0; problem.live(s) && t < problem.length(s); ++t) {
        const auto first = problem.window_offset(s, t);
        if (!first) continue;
        ++(in_pool ? in_the_pool : captured);
        const std::size_t axis = problem.windows->shape.size() - 2;
        for (std::int64_t column = 0; column < problem.history(); ++column) {
          const std::int64_t number = ancestor(problem, s, t, problem.history() - 1 - column);
          for (std::int64_t c = 0; c < problem.channels(); ++c) {
            expected.store(*first + column * problem.windows->strides[axis] +
                               c * problem.windows->strides[axis + 1],
                           input(problem, before, s, number, c));
          }
        }
      }
      // What the others write, which do not roll on.
      const std::int64_t slot = problem.write_slot(s);
      if (!in_pool || !problem.live(s) || !problem.valid_slot(slot)) continue;
      keep(problem, before, expected, s, problem.length(s) - problem.history(), problem.length(s),
           slot);
    }
    const auto difference = in_pool ? compare_states(*after.state, expected, true)
                                    : compare_windows(*after.windows, expected, true);
    ASSERT_FALSE(difference.has_value()) << *difference << "\n" << to_string(problem);
  }
  EXPECT_GT(captured, 3000);
  EXPECT_GT(in_the_pool, 200);
}

}  // namespace
}  // namespace shortconv::tools::verify
