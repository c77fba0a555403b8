#include "verify/check.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/violation.hpp"
#include "verify/compare.hpp"

namespace shortconv::tools::verify {
namespace {

struct Expected {
  TensorBuffer exact;      // outputs before rounding
  TensorBuffer activated;  // the same without the epilogue
  TensorBuffer magnitude;  // |bias| + sum |w||v|
  std::optional<TensorBuffer> state, windows, violations;
};

TensorBuffer absolute(const TensorBuffer& buffer) {
  TensorBuffer result = buffer;
  const auto bytes = static_cast<std::size_t>(element_bytes(buffer.spec().dtype));
  // Little endian: the sign is the top bit of an element's last byte.
  for (std::size_t last = bytes - 1; last < result.bytes().size(); last += bytes) {
    result.bytes()[last] &= std::byte{0x7f};
  }
  return result;
}

// The reference writes fp64, so that one rounding to the type of `out` can be told from two.
Case reference_case(const Case& problem) {
  Case reference = problem;
  reference.out = dense(DType::kF64, problem.x.shape);
  reference.in_place = false;
  reference.schedule = Schedule::kFlat;
  return reference;
}

Status compute_expected(const Case& problem, const CaseBuffers& inputs, Expected& expected) {
  Case reference = reference_case(problem);
  CaseBuffers buffers = inputs;
  buffers.out = TensorBuffer(reference.out);
  buffers.block_sequence.reset();
  buffers.block_offset.reset();
  if (Status status = run_case(reference, buffers, BackendId::kReference); !status.ok()) {
    return status;
  }
  expected.exact = std::move(buffers.out);
  expected.state = std::move(buffers.state);
  expected.windows = buffers.windows;
  expected.violations = buffers.violations;

  reference.epilogue = Epilogue::kNone;
  buffers.output_gate.reset();
  buffers.state = inputs.state;
  buffers.out = TensorBuffer(reference.out);
  if (Status status = run_case(reference, buffers, BackendId::kReference); !status.ok()) {
    return status;
  }
  expected.activated = std::move(buffers.out);

  reference.activation = Activation::kNone;
  buffers.out = TensorBuffer(reference.out);
  buffers.x = absolute(inputs.x);
  if (inputs.input_gate) buffers.input_gate = absolute(*inputs.input_gate);
  buffers.weight = absolute(inputs.weight);
  if (inputs.bias) buffers.bias = absolute(*inputs.bias);
  if (inputs.state) buffers.state = absolute(*inputs.state);
  Status status = run_case(reference, buffers, BackendId::kReference);
  expected.magnitude = std::move(buffers.out);
  return status;
}

// A conversion may keep less of a NaN than the bits of its payload.
bool both_nan(double a, double b) { return std::isnan(a) && std::isnan(b); }

void copy_element(const TensorBuffer& to, std::int64_t to_offset, const TensorBuffer& from,
                  std::int64_t from_offset) {
  std::memcpy(to.element(to_offset), from.element(from_offset),
              static_cast<std::size_t>(element_bytes(to.spec().dtype)));
}

// What a row outside the live sequences holds afterwards; `image` starts as what it held before.
void write_padded_element(const Case& problem, const CaseBuffers& before, std::int64_t row,
                          std::int64_t channel, const TensorBuffer& got,
                          const TensorBuffer& image) {
  const std::int64_t at = image.spec().row_offset(row, channel);
  const std::int64_t x_at = problem.x.row_offset(row, channel);
  if (problem.padded_rows == PaddedRows::kUntouched) return;
  if (problem.padded_rows == PaddedRows::kZero) {
    image.store(at, 0);
  } else if (problem.x.dtype == image.spec().dtype) {
    copy_element(image, at, before.x, x_at);
  } else if (both_nan(before.x.load(x_at), got.load(at))) {
    copy_element(image, at, got, at);
  } else {
    image.store(at, before.x.load(x_at));
  }
}

double operand_of(const Case& problem, const CaseBuffers& before, std::int64_t row,
                  std::int64_t channel) {
  switch (problem.epilogue) {
    case Epilogue::kResidual:  // never with an input gate
      return before.x.load(problem.x.row_offset(row, channel));
    case Epilogue::kOutputGate:
      return before.output_gate->load(problem.output_gate->row_offset(row, channel));
    case Epilogue::kNone:
      break;
  }
  return 0;
}

std::optional<std::string> check_computed_element(const Case& problem, const CaseBuffers& before,
                                                  const Expected& expected, std::int64_t row,
                                                  std::int64_t channel, double got,
                                                  Verdict& verdict) {
  const DType dtype = problem.out.dtype;
  const std::int64_t at = expected.exact.spec().row_offset(row, channel);
  const double exact = expected.exact.load(at);
  const double activated = expected.activated.load(at);
  ++verdict.outputs;
  if (correctly_rounded(dtype, got, exact)) {
    ++verdict.correctly_rounded;
    return std::nullopt;
  }
  const double operand = operand_of(problem, before, row, channel);
  const double inner =
      computing_error(problem.width, problem.activation, activated, expected.magnitude.load(at));
  const double error = epilogue_error(problem.epilogue, inner, operand, exact);
  // An infinite gate makes of a zero NaN, and an infinity of what lies next to it.
  const bool undecided = problem.epilogue == Epilogue::kOutputGate && std::isinf(operand) &&
                         std::fabs(activated) <= inner;
  if (undecided ? !std::isfinite(got) : within_error(dtype, got, exact, error)) {
    return std::nullopt;
  }
  return fmt::format("{}: got {}, expected {} (exactly {}), allowed distance {}",
                     locate_row(problem, row, channel), got, rounded_to(dtype, exact), exact,
                     error + half_ulp(dtype, exact));
}

// Computed elements by their values, rows of padding bit for bit.
std::optional<std::string> check_outputs(const Case& problem, const CaseBuffers& before,
                                         const CaseBuffers& after, const Expected& expected,
                                         Verdict& verdict) {
  const TensorBuffer& result = after.result(problem);
  const TensorBuffer image = before.result(problem);
  const std::vector<std::int64_t> owners = owners_of_rows(problem);
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    for (std::int64_t channel = 0; channel < problem.channels(); ++channel) {
      const std::int64_t at = result.spec().row_offset(row, channel);
      if (owners[row] < 0) {
        write_padded_element(problem, before, row, channel, result, image);
        if (result.same_element(at, image, at)) continue;
        return fmt::format("{}: got {}, expected {} (padded rows: {})",
                           locate_row(problem, row, channel), result.load(at), image.load(at),
                           name(problem.padded_rows));
      }
      if (auto failure = check_computed_element(problem, before, expected, row, channel,
                                                result.load(at), verdict)) {
        return failure;
      }
    }
  }
  return check_gaps("out", before.result(problem), result);
}

std::optional<std::string> check_inputs(const Case& problem, const CaseBuffers& before,
                                        const CaseBuffers& after) {
  std::optional<std::string> failure;
  if (!problem.in_place) failure = check_unchanged("x", before.x, after.x);
  if (!failure) failure = check_unchanged("weight", before.weight, after.weight);
  using Tensor = std::optional<TensorBuffer> CaseBuffers::*;
  constexpr std::pair<std::string_view, Tensor> kInputs[] = {
      {"bias", &CaseBuffers::bias},
      {"input_gate", &CaseBuffers::input_gate},
      {"output_gate", &CaseBuffers::output_gate},
      {"query_start_loc", &CaseBuffers::query_start_loc},
      {"has_initial_state", &CaseBuffers::has_initial_state},
      {"read_slots", &CaseBuffers::read_slots},
      {"write_slots", &CaseBuffers::write_slots},
      {"read_offsets", &CaseBuffers::read_offsets},
      {"block_sequence", &CaseBuffers::block_sequence},
      {"block_offset", &CaseBuffers::block_offset},
      {"cache_seqlens", &CaseBuffers::cache_seqlens},
      {"snapshots", &CaseBuffers::snapshots},
      {"parents", &CaseBuffers::parents},
      {"seq_idx", &CaseBuffers::seq_idx},
      {"intermediate_slots", &CaseBuffers::intermediate_slots},
  };
  for (const auto& [label, tensor] : kInputs) {
    if (!failure) failure = check_unchanged(label, before.*tensor, after.*tensor);
  }
  return failure;
}

std::optional<std::string> check_state(const Case& problem, const CaseBuffers& after,
                                       const Expected& expected) {
  if (!problem.state) return std::nullopt;
  if (auto failure = compare_states(*after.state, *expected.state, any_nan(problem))) {
    return failure;
  }
  return check_gaps("state", *expected.state, *after.state);
}

std::optional<std::string> check_windows(const Case& problem, const CaseBuffers& after,
                                         const Expected& expected) {
  if (!after.windows) return std::nullopt;
  if (auto failure = compare_windows(*after.windows, *expected.windows, any_nan(problem))) {
    return failure;
  }
  return check_gaps("windows", *expected.windows, *after.windows);
}

// Every word, and nothing but the words.
std::optional<std::string> check_report(const std::optional<TensorBuffer>& got,
                                        const std::optional<TensorBuffer>& expected) {
  if (!got) return std::nullopt;
  const auto word = [](const TensorBuffer& report, int violation, int column) {
    std::int64_t value = 0;
    std::memcpy(&value, report.element(report.spec().offset({violation, column})), sizeof value);
    return value;
  };
  for (int v = 0; v < kViolations; ++v) {
    for (int column = 0; column < 2; ++column) {
      const std::int64_t value = word(*got, v, column), wanted = word(*expected, v, column);
      if (value == wanted) continue;
      return fmt::format("violations '{}', {}: got {}, expected {}",
                         name(static_cast<Violation>(v)),
                         column == kViolationCount ? "count" : "first", value, wanted);
    }
  }
  return check_gaps("violations", *expected, *got);
}

}  // namespace

std::optional<std::string> check_gaps(std::string_view label, const TensorBuffer& before,
                                      const TensorBuffer& after) {
  const TensorBuffer image = before;
  for_each_element(image.spec(),
                   [&](std::int64_t offset) { copy_element(image, offset, after, offset); });
  const auto [got, wanted] = std::ranges::mismatch(after.bytes(), image.bytes());
  if (got == after.bytes().end()) return std::nullopt;
  const auto origin = after.element(after.spec().origin) - after.bytes().data();
  return fmt::format("{}: a byte of no element was written, {} bytes from the first element", label,
                     (got - after.bytes().begin()) - origin);
}

std::optional<std::string> check_unchanged(std::string_view label,
                                           const std::optional<TensorBuffer>& before,
                                           const std::optional<TensorBuffer>& after) {
  if (!before || std::ranges::equal(before->bytes(), after->bytes())) return std::nullopt;
  return fmt::format("{}: an input was written to", label);
}

void scramble(Random& random, const std::optional<TensorBuffer>& index, std::int64_t limit) {
  if (!index) return;
  const TensorSpec& spec = index->spec();
  for_each_element(spec, [&](std::int64_t offset) {
    if (random.chance(0.6)) return;
    const std::int64_t value = bad_index(random, spec.dtype, limit);
    std::memcpy(index->element(offset), &value,
                static_cast<std::size_t>(element_bytes(spec.dtype)));
  });
}

std::optional<std::string> compare_elements(std::string_view axes, const TensorBuffer& got,
                                            const TensorBuffer& expected, bool any_nan) {
  std::vector<std::int64_t> offsets;
  for_each_element(got.spec(), [&](std::int64_t offset) { offsets.push_back(offset); });
  std::int64_t number = 0;
  std::optional<std::string> failure;
  for_each_element(expected.spec(), [&](std::int64_t expected_at) {
    const std::int64_t at = offsets[number++];
    if (failure || got.same_element(at, expected, expected_at)) return;
    const double value = got.load(at);
    const double wanted = expected.load(expected_at);
    if (any_nan && both_nan(value, wanted)) return;
    const std::vector<std::int64_t>& shape = got.spec().shape;
    std::vector<std::int64_t> index(shape.size());
    std::int64_t rest = number - 1;
    for (std::size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) {
      index[axis] = rest % shape[axis];
    }
    failure =
        fmt::format("{} {}: got {}, expected {}", axes, fmt::join(index, ", "), value, wanted);
  });
  return failure;
}

std::vector<std::int64_t> owners_of_rows(const Case& problem) {
  std::vector<std::int64_t> owners(static_cast<std::size_t>(problem.rows()), -1);
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    if (problem.skipped(s)) continue;
    std::fill(owners.begin() + problem.starts[s], owners.begin() + problem.starts[s + 1], s);
  }
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    if (problem.padded_by_number(row)) owners[row] = -1;
  }
  return owners;
}

std::string locate_row(const Case& problem, std::int64_t row, std::int64_t channel) {
  std::string place = "outside all sequences";
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    if (row < problem.starts[s] || row >= problem.starts[s + 1]) continue;
    place = fmt::format("sequence {}{}, token {} of {}", s, problem.skipped(s) ? " (skipped)" : "",
                        row - problem.starts[s], problem.length(s));
  }
  return fmt::format("out row {} ({}), channel {}", row, place, channel);
}

bool any_nan(const Case& problem) {
  return problem.input_gate || problem.state->dtype != problem.x.dtype;
}

std::optional<std::string> compare_states(const TensorBuffer& got, const TensorBuffer& expected,
                                          bool any_nan) {
  return compare_elements("state slot, column, channel", got, expected, any_nan);
}

std::optional<std::string> compare_windows(const TensorBuffer& got, const TensorBuffer& expected,
                                           bool any_nan) {
  const bool packed = got.spec().shape.size() == 3;
  return compare_elements(
      packed ? "window row, column, channel" : "window sequence or slot, token, column, channel",
      got, expected, any_nan);
}

Verdict check_result(const Case& problem, const CaseBuffers& before, const CaseBuffers& after) {
  Verdict verdict;
  Expected expected{before.out, before.out, before.out, {}, {}, {}};
  if (const Status status = compute_expected(problem, before, expected); !status.ok()) {
    verdict.failure = "the reference refuses the case: " + status.message();
    return verdict;
  }
  verdict.failure = check_outputs(problem, before, after, expected, verdict);
  if (!verdict.failure) verdict.failure = check_state(problem, after, expected);
  if (!verdict.failure) verdict.failure = check_windows(problem, after, expected);
  if (!verdict.failure) verdict.failure = check_report(after.violations, expected.violations);
  if (!verdict.failure) verdict.failure = check_inputs(problem, before, after);
  return verdict;
}

Verdict check_case(const Case& problem, BackendId backend) {
  const CaseBuffers before = make_buffers(problem);
  const CaseBuffers after = before;
  const Status status = run_case(problem, after, backend);
  if (status.ok()) return check_result(problem, before, after);
  Verdict verdict;
  (status.code() == Code::kUnsupported ? verdict.unsupported : verdict.failure) = status.message();
  return verdict;
}

std::optional<std::string> check_bad_values(const Case& problem, BackendId backend) {
  Random random(problem.seed);
  const CaseBuffers before = make_buffers(problem);
  scramble(random, before.query_start_loc, problem.rows());
  scramble(random, before.read_slots, problem.slots());
  scramble(random, before.write_slots, problem.slots());
  scramble(random, before.read_offsets, problem.state ? problem.state->shape[1] : 0);
  scramble(random, before.block_sequence, problem.sequences());
  scramble(random, before.block_offset, problem.rows());
  scramble(random, before.cache_seqlens, problem.state ? problem.state->shape[1] : 0);
  scramble(random, before.snapshots, std::max(problem.slots(), problem.sequences()));
  scramble(random, before.parents, problem.rows());
  scramble(random, before.intermediate_slots, problem.windows ? problem.windows->shape[0] : 0);
  const CaseBuffers after = before;
  const Status status = run_case(problem, after, backend);
  std::optional<std::string> failure;
  if (!status.ok()) failure = "refused: " + status.message();
  if (!failure) failure = check_gaps("out", before.result(problem), after.result(problem));
  if (!failure && problem.state) failure = check_gaps("state", *before.state, *after.state);
  if (!failure && after.windows) failure = check_gaps("windows", *before.windows, *after.windows);
  if (!failure && after.violations) {
    const CaseBuffers reference = before;
    if (run_case(problem, reference, BackendId::kReference).ok()) {
      failure = check_report(after.violations, reference.violations);
    }
  }
  if (!failure) failure = check_inputs(problem, before, after);
  if (failure) return "with bad bounds, slots and offsets: " + *failure;
  return std::nullopt;
}

}  // namespace shortconv::tools::verify
