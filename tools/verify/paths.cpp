#include "verify/paths.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "common/random.hpp"
#include "verify/buffers.hpp"
#include "verify/check.hpp"

namespace shortconv::tools::verify {
namespace {

// One call of a series that together does what the case does: some tokens of each sequence.
struct Step {
  Op op = Op::kForward;
  std::vector<std::int64_t> done;   // tokens that earlier calls took
  std::vector<std::int64_t> count;  // tokens of this one
};

IndexTensor index_of(std::vector<std::int64_t> values) {
  const auto entries = static_cast<std::int64_t>(values.size());
  return {dense(DType::kI64, {entries}), std::move(values)};
}

// What a forward call over the same tokens computes: drafts in a chain are tokens like any others.
Case as_forward(const Case& problem) {
  Case plain = problem;
  plain.op = Op::kForward;
  if (!problem.writes_state()) {
    plain.write_slots = index_of(std::vector<std::int64_t>(problem.sequences(), -1));
  }
  plain.update_state = false;
  plain.windows_kind = WindowsKind::kNone;
  plain.windows.reset();
  plain.intermediate_slots.reset();
  return plain;
}

// The sequences that numbers tell apart, as those of a packed batch.
Case as_packed(const Case& problem) {
  Case packed = problem;
  packed.seq_idx.reset();
  packed.starts.clear();
  std::vector<std::int64_t> slots, offsets, positions, flags;
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    for (std::int64_t row = problem.starts[s]; row < problem.starts[s + 1]; ++row) {
      const std::vector<std::int64_t>& numbers = problem.seq_idx->values;
      const bool first = row == problem.starts[s];
      if (!first && numbers[row] == numbers[row - 1]) continue;
      packed.starts.push_back(row);
      slots.push_back(problem.padded_by_number(row) ? -1 : problem.read_slot(s));
      flags.push_back(first && problem.state && problem.resumed(s) ? 1 : 0);
      if (problem.state) offsets.push_back(problem.read_offset(s));
      if (problem.cache_seqlens) positions.push_back(problem.cache_seqlens->values[s]);
    }
  }
  const std::vector<std::int64_t> nowhere(packed.starts.size(), -1);
  packed.starts.push_back(problem.rows());
  packed.query_start_loc = index_of(packed.starts);
  packed.read_slots = index_of(slots);
  packed.has_initial_state.reset();
  packed.initial_state = InitialState::kNone;
  if (problem.state) {
    packed.write_slots = index_of(nowhere);
    packed.initial_state = InitialState::kByFlag;
    packed.has_initial_state = index_of(flags);
    packed.has_initial_state->spec.dtype = DType::kBool;
  }
  if (problem.cache_seqlens) {
    packed.cache_seqlens = index_of(positions);
  } else if (problem.state) {
    packed.read_offsets = index_of(offsets);
  }
  packed.violations.reset();
  packed.x = dense(problem.x.dtype, {problem.rows(), problem.channels()});
  packed.out = dense(problem.out.dtype, packed.x.shape);
  for (std::optional<TensorSpec>* gate : {&packed.input_gate, &packed.output_gate}) {
    if (*gate) *gate = packed.x;
  }
  return packed;
}

bool can_carry(const Case& problem) {
  if (!problem.state) return false;
  const DType state = problem.state->dtype;
  if (state != problem.x.dtype && state != DType::kF32) return false;
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    if (problem.live(s) && !problem.valid_slot(problem.write_slot(s))) return false;
  }
  return true;
}

bool zeroed_for_decode(const Case& problem, const Step& step, std::int64_t s) {
  return step.op == Op::kDecode && step.done[s] == 0 && !problem.resumed(s);
}

// The problem of one step. Sequences without tokens in it stay in the batch: empty in a forward
// call, skipped in a decode call.
Case case_of_step(const Case& problem, const Step& step) {
  Case part = problem;
  const std::int64_t sequences = problem.sequences();
  std::vector<std::int64_t> read, write, offsets, flags, positions;
  part.starts = {0};
  for (std::int64_t s = 0; s < sequences; ++s) {
    const bool first = step.done[s] == 0;
    const bool zeroed = zeroed_for_decode(problem, step, s);
    const bool absent = step.op == Op::kDecode && step.count[s] == 0;
    const std::int64_t source = first && !zeroed ? problem.read_slot(s) : problem.write_slot(s);
    read.push_back(absent ? -1 : source);
    write.push_back(problem.write_slot(s));
    offsets.push_back(first && !zeroed ? problem.read_offset(s) : 0);
    flags.push_back(!first || problem.resumed(s) ? 1 : 0);
    if (problem.cache_seqlens) positions.push_back(problem.ring_column(s, 0) + step.done[s]);
    part.starts.push_back(part.starts.back() + (step.op == Op::kDecode ? 1 : step.count[s]));
  }
  part.op = step.op;
  part.read_slots = index_of(read);
  part.write_slots = index_of(write);
  if (problem.cache_seqlens) {
    part.cache_seqlens = index_of(positions);
  } else if (!problem.shift_full_state) {
    part.read_offsets = index_of(offsets);
  }
  part.snapshots.reset();
  part.violations.reset();
  if (step.op == Op::kDecode) {
    part.initial_state = InitialState::kAll;
    part.has_initial_state.reset();
    part.query_start_loc.reset();
  } else {
    part.initial_state = InitialState::kByFlag;
    part.has_initial_state = index_of(flags);
    part.has_initial_state->spec.dtype = DType::kBool;
    part.query_start_loc = index_of(part.starts);
  }
  part.schedule = Schedule::kFlat;
  part.in_place = false;
  part.x = dense(problem.x.dtype, {part.starts.back(), problem.channels()});
  part.out = dense(problem.out.dtype, part.x.shape);
  for (std::optional<TensorSpec>* gate : {&part.input_gate, &part.output_gate}) {
    if (*gate) *gate = part.x;
  }
  return part;
}

void copy_row(const TensorBuffer& to, std::int64_t to_row, const TensorBuffer& from,
              std::int64_t from_row) {
  const auto bytes = static_cast<std::size_t>(element_bytes(to.spec().dtype));
  for (std::int64_t channel = 0; channel < to.spec().shape.back(); ++channel) {
    std::memcpy(to.element(to.spec().row_offset(to_row, channel)),
                from.element(from.spec().row_offset(from_row, channel)), bytes);
  }
}

// Decode continues every sequence from its slot, so one that starts from zeros needs them there.
void clear_history(const Case& problem, const TensorBuffer& state, std::int64_t slot) {
  const std::int64_t first = problem.base_column - problem.older();
  const std::int64_t end =
      problem.cache_seqlens ? problem.state->shape[1] : problem.base_column + problem.history();
  for (std::int64_t column = first; column < end; ++column) {
    for (std::int64_t channel = 0; channel < problem.channels(); ++channel) {
      state.store(state.spec().offset({slot, column, channel}), 0);
    }
  }
}

// The buffers of one path to the result; rows that no live sequence owns are not comparable.
struct Result {
  Case problem;  // says where things lie
  TensorBuffer out;
  std::optional<TensorBuffer> state, windows;
};

// What another series of calls leaves in the pool in its own way: slots of snapshots and windows,
// and older columns of rings. There `expected` becomes `got`.
void pass_over(const Case& original, const TensorBuffer& expected, const TensorBuffer& got) {
  const auto bytes = static_cast<std::size_t>(element_bytes(got.spec().dtype));
  const auto column = [&](std::int64_t slot, std::int64_t column) {
    for (std::int64_t channel = 0; channel < original.channels(); ++channel) {
      std::memcpy(expected.element(expected.spec().offset({slot, column, channel})),
                  got.element(got.spec().offset({slot, column, channel})), bytes);
    }
  };
  const std::int64_t columns = got.spec().shape[1];
  for (std::int64_t i = 0; i < original.snapshot_count(); ++i) {
    const SnapshotRow row = original.snapshot(i);
    if (!original.is_taken(row)) continue;
    for (std::int64_t k = 0; k < columns; ++k) column(row.slot, k);
  }
  for (std::int64_t s = 0; s < original.sequences(); ++s) {
    if (!original.live(s)) continue;
    if (original.windows_kind == WindowsKind::kPool && original.window_offset(s, 0)) {
      for (std::int64_t k = 0; k < columns; ++k) column(original.intermediate_slots->values[s], k);
    }
    const std::int64_t slot = original.write_slot(s);
    if (!original.cache_seqlens || !original.valid_slot(slot)) continue;
    const std::int64_t length = original.length(s);
    for (std::int64_t input = length - columns; input < length - original.history(); ++input) {
      column(slot, original.ring_column(s, input));
    }
  }
}

std::optional<std::string> compare(const Case& original, const Result& expected, const Result& got,
                                   bool same_calls) {
  const std::vector<std::int64_t> owners = owners_of_rows(original);
  for (std::int64_t row = 0; row < original.rows(); ++row) {
    if (owners[row] < 0) continue;
    for (std::int64_t channel = 0; channel < original.channels(); ++channel) {
      const std::int64_t at = got.out.spec().row_offset(row, channel);
      const std::int64_t expected_at = expected.out.spec().row_offset(row, channel);
      if (got.out.same_element(at, expected.out, expected_at)) continue;
      const double value = got.out.load(at);
      const double wanted = expected.out.load(expected_at);
      if (std::isnan(value) && std::isnan(wanted)) continue;
      return fmt::format("{}: got {}, but {} in one call", locate_row(original, row, channel),
                         value, wanted);
    }
  }
  if (!expected.state) return std::nullopt;
  const TensorBuffer state = *expected.state;
  if (!same_calls) pass_over(original, state, *got.state);
  auto failure = compare_states(*got.state, state, any_nan(original));
  if (failure || !same_calls || !expected.windows) return failure;
  return compare_windows(*got.windows, *expected.windows, any_nan(original));
}

std::optional<std::string> run_whole(const Case& problem, BackendId backend,
                                     std::optional<Result>& result) {
  CaseBuffers buffers = make_buffers(problem);
  const Status status = run_case(problem, buffers, backend);
  if (!status.ok()) return "refused: " + status.message() + "\n" + to_string(problem);
  result = Result{problem, buffers.result(problem), std::move(buffers.state),
                  std::move(buffers.windows)};
  return std::nullopt;
}

// Takes steps of up to `most_tokens` random tokens of each sequence until all are done.
std::optional<std::string> run_in_steps(const Case& problem, BackendId backend, Op op,
                                        std::int64_t most_tokens, std::optional<Result>& result) {
  Random random(problem.seed + static_cast<std::uint64_t>(most_tokens));
  CaseBuffers whole = make_buffers(problem);
  Result made{problem, TensorBuffer(dense(problem.out.dtype, problem.x.shape)),
              std::move(whole.state), std::nullopt};
  Step step{op, std::vector<std::int64_t>(problem.sequences()),
            std::vector<std::int64_t>(problem.sequences())};
  for (;;) {
    bool finished = true;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      const std::int64_t left = problem.skipped(s) ? 0 : problem.length(s) - step.done[s];
      if (left > 0) finished = false;
      step.count[s] = std::min(left, op == Op::kDecode ? 1 : random.between(0, most_tokens));
    }
    if (finished) break;

    const Case part = case_of_step(problem, step);
    CaseBuffers buffers = make_buffers(part);
    buffers.weight = whole.weight;
    buffers.bias = whole.bias;
    buffers.state = std::move(made.state);
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      if (step.count[s] > 0 && zeroed_for_decode(problem, step, s)) {
        clear_history(problem, *buffers.state, problem.write_slot(s));
      }
      for (std::int64_t t = 0; t < step.count[s]; ++t) {
        const std::int64_t from = problem.starts[s] + step.done[s] + t;
        copy_row(buffers.x, part.starts[s] + t, whole.x, from);
        if (problem.input_gate) {
          copy_row(*buffers.input_gate, part.starts[s] + t, *whole.input_gate, from);
        }
        if (problem.output_gate) {
          copy_row(*buffers.output_gate, part.starts[s] + t, *whole.output_gate, from);
        }
      }
    }
    const Status status = run_case(part, buffers, backend);
    if (!status.ok()) return "refused: " + status.message() + "\n" + to_string(part);
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      for (std::int64_t t = 0; t < step.count[s]; ++t) {
        copy_row(made.out, problem.starts[s] + step.done[s] + t, buffers.out, part.starts[s] + t);
      }
      step.done[s] += step.count[s];
    }
    made.state = std::move(buffers.state);
  }
  result = std::move(made);
  return std::nullopt;
}

}  // namespace

std::optional<std::string> check_paths(const Case& problem, BackendId backend) {
  std::optional<Result> expected, got;
  if (auto failure = run_whole(problem, backend, expected)) return failure;

  const Case other = with_other_layouts(problem, problem.seed);
  auto failure = run_whole(other, backend, got);
  if (!failure) failure = compare(problem, *expected, *got, true);
  if (failure)
    return fmt::format("stored and scheduled otherwise: {}\nas {}", *failure, to_string(other));

  if (problem.parents) return std::nullopt;
  if (problem.seq_idx) {
    const Case packed = as_packed(problem);
    failure = run_whole(packed, backend, got);
    if (!failure) failure = compare(problem, *expected, *got, true);
    if (failure) return fmt::format("as a packed batch: {}\n{}", *failure, to_string(packed));
    return std::nullopt;
  }
  Case plain = problem;
  if (problem.op == Op::kVerify) {
    plain = as_forward(problem);
    failure = run_whole(plain, backend, got);
    if (!failure) failure = compare(problem, *expected, *got, false);
    if (failure) return "through forward: " + *failure;
  }
  if (!can_carry(plain)) return std::nullopt;
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < plain.sequences(); ++s) {
    longest = std::max(longest, plain.length(s));
  }
  for (std::int64_t most_tokens : {std::int64_t{2}, longest / 2 + 1}) {
    if (longest > 20 * most_tokens) continue;  // too many calls to be worth their time
    failure = run_in_steps(plain, backend, Op::kForward, most_tokens, got);
    if (!failure) failure = compare(problem, *expected, *got, false);
    if (failure) return fmt::format("in steps of up to {} tokens: {}", most_tokens, *failure);
  }
  if (longest > 40) return std::nullopt;
  failure = run_in_steps(plain, backend, Op::kDecode, 1, got);
  if (!failure) failure = compare(problem, *expected, *got, false);
  if (failure) return "token by token through decode: " + *failure;
  return std::nullopt;
}

}  // namespace shortconv::tools::verify
