#include "verify/check_backward.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <utility>
#include <vector>

#include "common/random.hpp"
#include "shortconv/argument_table.hpp"
#include "verify/compare.hpp"
#include "verify/gradient_bounds.hpp"

namespace shortconv::tools::verify {
namespace {

std::vector<std::int64_t> offsets_of(const TensorSpec& spec) {
  std::vector<std::int64_t> offsets;
  for_each_element(spec, [&](std::int64_t offset) { offsets.push_back(offset); });
  return offsets;
}

/// "3, 0, 17": the indices of an element.
std::string place_of(const TensorSpec& spec, std::int64_t element) {
  std::vector<std::int64_t> index(spec.shape.size());
  for (std::size_t axis = index.size(); axis-- > 0; element /= spec.shape[axis]) {
    index[axis] = element % spec.shape[axis];
  }
  return fmt::format("{}", fmt::join(index, ", "));
}

std::optional<std::string> check_gradient(std::string_view name, const TensorBuffer& got,
                                          const TensorBuffer& values, const TensorBuffer& errors) {
  const std::vector<std::int64_t> offsets = offsets_of(got.spec());
  const DType dtype = got.spec().dtype;
  for (std::int64_t i = 0; i < std::ssize(offsets); ++i) {
    const double found = got.load(offsets[i]), exact = values.load(i), error = errors.load(i);
    if (within_error(dtype, found, exact, error)) continue;
    return fmt::format("{} {}: got {}, expected {} (exactly {}), allowed distance {}", name,
                       place_of(got.spec(), i), found, rounded_to(dtype, exact), exact,
                       error + half_ulp(dtype, exact));
  }
  return std::nullopt;
}

/// Inputs stay what they were, and of the gradients only elements are written.
std::optional<std::string> check_writes(const BackwardBuffers& before,
                                        const BackwardBuffers& after) {
  std::optional<std::string> failure;
  visit_backward_tensors(
      [&](const Argument& row, const auto& one, const auto& other) {
        if (!one || failure) return;
        failure = is_written(row.access) ? check_gaps(row.name, *one, *other)
                                         : check_unchanged(row.name, one, other);
      },
      before, after);
  return failure;
}

/// The bits of all gradients that both have.
std::optional<std::string> compare_gradients(const BackwardBuffers& got,
                                             const BackwardBuffers& expected) {
  std::optional<std::string> failure;
  visit_backward_tensors(
      [&](const Argument& row, const auto& one, const auto& other) {
        if (failure || !one || !other || !is_written(row.access)) return;
        failure = compare_elements(row.name, *one, *other, false);
      },
      got, expected);
  return failure;
}

// ---- A sequence in two calls ----

/// Tokens [begin, begin + count) of each sequence, as a packed batch without gradients of weights.
struct Cut {
  std::vector<std::int64_t> begin, count;
};

void copy_row(const TensorBuffer& to, std::int64_t to_row, const TensorBuffer& from,
              std::int64_t from_row) {
  const auto bytes = static_cast<std::size_t>(element_bytes(to.spec().dtype));
  for (std::int64_t c = 0; c < to.spec().shape.back(); ++c) {
    std::memcpy(to.element(to.spec().row_offset(to_row, c)),
                from.element(from.spec().row_offset(from_row, c)), bytes);
  }
}

BackwardCase case_of_cut(const BackwardCase& problem, const Cut& cut) {
  BackwardCase part = problem;
  part.starts = {0};
  for (const std::int64_t count : cut.count) part.starts.push_back(part.starts.back() + count);
  part.query_start_loc = dense(DType::kI64, {std::ssize(part.starts)});
  part.grad_weight.reset();
  part.grad_bias.reset();
  part.accumulate = false;
  visit_backward_tensors(
      [&](const Argument& row, auto& spec) {
        const bool has_rows = row.sizes[1] == Size::kTokens && row.sizes[2] == Size::kChannels;
        if (spec && has_rows) spec = dense(spec->dtype, {part.starts.back(), problem.channels()});
      },
      part);
  return part;
}

/// Calls visit(row of the part, row of the whole).
template <typename Visit>
void for_each_row(const BackwardCase& problem, const BackwardCase& part, const Cut& cut,
                  const Visit& visit) {
  for (std::size_t s = 0; s < cut.count.size(); ++s) {
    for (std::int64_t t = 0; t < cut.count[s]; ++t) {
      visit(part.starts[s] + t, problem.starts[s] + cut.begin[s] + t);
    }
  }
}

class CutCheck {
 public:
  CutCheck(const BackwardCase& problem, const BackwardBuffers& whole, BackendId backend)
      : problem_(problem), whole_(whole), backend_(backend) {
    Random random(~problem.seed);
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      const std::int64_t length = problem.starts[s + 1] - problem.starts[s];
      const std::int64_t tokens = random.between(0, length);
      first_.begin.push_back(0);
      first_.count.push_back(tokens);
      second_.begin.push_back(tokens);
      second_.count.push_back(length - tokens);
    }
  }

  std::optional<std::string> run() {
    const TensorSpec carried =
        dense(backend_ == BackendId::kReference ? DType::kF64 : DType::kF32,
              {problem_.sequences(), problem_.history(), problem_.channels()});
    BackwardCase second = case_of_cut(problem_, second_);
    second.initial_state = carried;
    second.grad_initial_state = carried;
    BackwardBuffers after_cut = buffers_of(second, second_);
    fill_middle_state(*after_cut.initial_state);
    if (auto failure = run_part(second, second_, after_cut)) return failure;

    BackwardCase first = case_of_cut(problem_, first_);
    first.grad_final_state = carried;
    BackwardBuffers before_cut = buffers_of(first, first_);
    before_cut.grad_final_state = after_cut.grad_initial_state;
    if (auto failure = run_part(first, first_, before_cut)) return failure;
    if (!before_cut.grad_initial_state) return std::nullopt;
    return compare_elements("grad_initial_state", *before_cut.grad_initial_state,
                            *whole_.grad_initial_state, false);
  }

 private:
  BackwardBuffers buffers_of(const BackwardCase& part, const Cut& cut) const {
    BackwardBuffers buffers = make_buffers(part);  // states and weights are those of the whole
    for_each_row(problem_, part, cut, [&](std::int64_t row, std::int64_t whole_row) {
      copy_row(*buffers.x, row, *whole_.x, whole_row);
      copy_row(*buffers.grad_out, row, *whole_.grad_out, whole_row);
      if (whole_.input_gate) copy_row(*buffers.input_gate, row, *whole_.input_gate, whole_row);
      if (whole_.output_gate) copy_row(*buffers.output_gate, row, *whole_.output_gate, whole_row);
    });
    return buffers;
  }

  /// The inputs before the cut.
  void fill_middle_state(const TensorBuffer& state) const {
    for (std::int64_t s = 0; s < problem_.sequences(); ++s) {
      const Part sequence{.sequence = s, .begin = problem_.starts[s]};
      for (std::int64_t column = 0; column < problem_.history(); ++column) {
        const std::int64_t n =
            second_.begin[static_cast<std::size_t>(s)] - problem_.history() + column;
        for (std::int64_t c = 0; c < problem_.channels(); ++c) {
          state.store(state.spec().offset({s, column, c}),
                      input_of(problem_, whole_, sequence, n, c));
        }
      }
    }
  }

  /// Runs one of the calls, and compares the gradients of its rows.
  std::optional<std::string> run_part(const BackwardCase& part, const Cut& cut,
                                      const BackwardBuffers& buffers) const {
    const Status status = run_case(part, buffers, backend_);
    if (!status.ok()) return "refused: " + status.message() + "\n" + to_string(part);
    std::optional<std::string> failure;
    visit_backward_tensors(
        [&](const Argument& row, const auto& got, const auto& expected) {
          if (!got || !is_written(row.access) || row.sizes[1] != Size::kTokens) return;
          const TensorBuffer image = *got;
          for_each_row(problem_, part, cut, [&](std::int64_t to_row, std::int64_t from_row) {
            copy_row(image, to_row, *expected, from_row);
          });
          if (!failure) failure = compare_elements(row.name, *got, image, false);
        },
        buffers, whole_);
    if (failure) failure = *failure + "\n" + to_string(part);
    return failure;
  }

  const BackwardCase& problem_;
  const BackwardBuffers& whole_;
  BackendId backend_;
  Cut first_, second_;
};

}  // namespace

std::optional<std::string> check_gradients(const BackwardCase& problem,
                                           const BackwardBuffers& before,
                                           const BackwardBuffers& after) {
  const GradientBounds bounds = bound_gradients(problem, before);
  std::optional<std::string> failure;
  visit_backward_tensors(
      [&](const Argument& row, const auto& got, const auto& values, const auto& errors) {
        if (failure || !got || !is_written(row.access)) return;
        failure = check_gradient(row.name, *got, *values, *errors);
      },
      after, bounds.values, bounds.errors);
  if (!failure) failure = check_writes(before, after);
  return failure;
}

Verdict check_backward(const BackwardCase& problem, BackendId backend) {
  Verdict verdict;
  const BackwardBuffers before = make_buffers(problem);
  const BackwardBuffers after = before;
  if (const Status status = run_case(problem, after, backend); !status.ok()) {
    (status.code() == Code::kUnsupported ? verdict.unsupported : verdict.failure) =
        status.message();
    return verdict;
  }
  verdict.failure = check_gradients(problem, before, after);
  if (verdict.failure || backend == BackendId::kReference) return verdict;
  const BackwardBuffers reference = before;
  const Status status = run_case(problem, reference, BackendId::kReference);
  verdict.failure =
      status.ok() ? check_gradients(problem, before, reference) : std::optional(status.message());
  if (verdict.failure) verdict.failure = "the reference: " + *verdict.failure;
  return verdict;
}

std::optional<std::string> check_backward_paths(const BackwardCase& problem, BackendId backend) {
  const BackwardBuffers whole = make_buffers(problem);
  if (const Status status = run_case(problem, whole, backend); !status.ok()) {
    return "refused: " + status.message();
  }
  const BackwardCase other = with_other_layouts(problem, problem.seed);
  const BackwardBuffers otherwise = make_buffers(other);
  if (const Status status = run_case(other, otherwise, backend); !status.ok()) {
    return "stored otherwise: refused: " + status.message() + "\n" + to_string(other);
  }
  if (auto failure = compare_gradients(otherwise, whole)) {
    return fmt::format("stored otherwise: {}\nas {}", *failure, to_string(other));
  }
  if (problem.seq_idx) return std::nullopt;
  auto failure = CutCheck(problem, whole, backend).run();
  if (failure) failure = "in two calls: " + *failure;
  return failure;
}

std::optional<std::string> check_bad_values(const BackwardCase& problem, BackendId backend) {
  Random random(problem.seed);
  const BackwardBuffers before = make_buffers(problem);
  scramble(random, before.query_start_loc, problem.rows());
  scramble(random, before.seq_idx, problem.sequences());
  const BackwardBuffers after = before;
  const Status status = run_case(problem, after, backend);
  auto failure =
      status.ok() ? check_writes(before, after) : std::optional("refused: " + status.message());
  if (failure) failure = "with bad bounds and numbers: " + *failure;
  return failure;
}

}  // namespace shortconv::tools::verify
