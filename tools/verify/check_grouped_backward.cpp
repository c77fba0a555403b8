// The gradients of a call with groups against fp64, within the errors that fp32 allows.
//
// The convolution's part is bound_gradients of a call without groups, whose grad_out are the
// gradients g before norms; u = 2^-24, and operations round once each, as there. A norm of h
// elements y gives with n = 1 / sqrt(sum y^2 + eps) and p = sum g y
//   g' = n * scale * (g - y * n^2 * p).
//
// - y is the sum after its activation, rounded to the type of the group. In fp32 the sum is within
//   e = computing_error of the exact y*, so that y is a number of the type from round(y* - e) to
//   round(y* + e): round(y*) itself unless a boundary of rounding is that near, then its neighbor.
// - The sums, in any order: (h + 4) u times the sum of absolute values. Each term is rounded as a
//   product, perhaps with n, and in at most h sums.
// - n falls as the sum of squares grows, which gives its error for the smallest and the largest
//   possible one; the square root and the division, or rsqrt, add 4 u.
// - The products of g' in any order, fused with the difference or not: as of one order, each
//   rounded.
//
// Of the gates, exponentials, logarithms and sigmoids have a relative error of 5e-7 in addition to
// that of their argument times their slope; what lies below the normal numbers may count as 0.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/random.hpp"
#include "verify/bounded.hpp"
#include "verify/compare.hpp"
#include "verify/gradient_bounds.hpp"
#include "verify/grouped_backward_case.hpp"

namespace shortconv::tools::verify {
namespace {

TensorSpec dense_with_last(DType dtype, std::vector<std::int64_t> shape, std::int64_t last) {
  shape.back() = last;
  return dense(dtype, std::move(shape));
}

/// "" or what is wrong with an element.
std::optional<std::string> check_element(const std::string& place, DType dtype, double found,
                                         const Bounded& exact) {
  if (within_error(dtype, found, exact.value, exact.error)) return std::nullopt;
  return fmt::format("{}: got {}, expected {} (exactly {}), allowed distance {}", place, found,
                     rounded_to(dtype, exact.value), exact.value,
                     exact.error + half_ulp(dtype, exact.value));
}

// ---- The convolution and its norms ----

/// Bounds of the gradients of the convolution, as a call without groups.
class ConvolutionBounds {
 public:
  ConvolutionBounds(const GroupedBackwardCase& problem, const GroupedBackwardBuffers& in)
      : problem_(problem), in_(in), plain_(problem.call), inputs_(in.call) {
    const std::vector<std::int64_t>& shape = problem.call.x->shape;
    plain_.x = dense_with_last(problem.call.x->dtype, shape, problem.channels());
    plain_.grad_out = dense_with_last(DType::kF64, shape, problem.channels());
    if (plain_.grad_x) plain_.grad_x = plain_.x;
    inputs_.x.emplace(*plain_.x);
    inputs_.grad_out.emplace(*plain_.grad_out);
    if (plain_.grad_x) inputs_.grad_x.emplace(*plain_.grad_x);
  }

  GradientBounds run() {
    const TensorBuffer errors(*plain_.grad_out);
    gather(errors);
    for (const Part& part : plain_.parts()) {
      for (std::int64_t n = 0; n < part.end - part.begin; ++n) bound_norms(part, n, errors);
    }
    return bound_gradients(plain_, inputs_, &errors);
  }

 private:
  void gather(const TensorBuffer& errors) const {
    for (std::int64_t row = 0; row < plain_.rows(); ++row) {
      for_each_group_element(problem_, [&](const GroupElement& one) {
        if (one.channel < 0) return;
        const std::int64_t to = plain_.x->row_offset(row, one.channel);
        const TensorSpec& spec = problem_.groups[one.group].out;
        inputs_.x->store(to, in_.call.x->load(problem_.call.x->row_offset(row, one.column)));
        inputs_.grad_out->store(
            to, in_.gradient(one.group).load(problem_.offset(spec, row, {one.head, one.d})));
        errors.store(to, 0);
      });
    }
  }

  void bound_norms(const Part& part, std::int64_t n, const TensorBuffer& errors) const {
    std::int64_t channel = 0;
    for (const GroupSpec& group : problem_.groups) {
      for (std::int64_t head = 0; head < group.heads() && !group.copy; ++head) {
        if (group.l2_norm) bound_head(group, part, n, channel, errors);
        channel += group.head_dim();
      }
    }
  }

  /// The element of a result that is normalized.
  [[nodiscard]] Bounded result(const GroupSpec& group, const Part& part, std::int64_t n,
                               std::int64_t channel) const {
    const auto load = [](const TensorBuffer& buffer, std::initializer_list<std::int64_t> index) {
      return buffer.load(buffer.spec().offset(index));
    };
    double a = inputs_.bias ? load(*inputs_.bias, {channel}) : 0, magnitude = std::fabs(a);
    for (std::int64_t k = 0; k < plain_.width; ++k) {
      const double product = load(*inputs_.weight, {channel, k}) *
                             input_of(plain_, inputs_, part, n + k - plain_.width + 1, channel);
      a += product;
      magnitude += std::fabs(product);
    }
    const double y = plain_.activation == Activation::kSilu ? a / (1 + std::exp(-a)) : a;
    const double error = computing_error(plain_.width, plain_.activation, y, magnitude);
    const DType dtype = group.out.dtype;
    const double nearest = rounded_to(dtype, y);
    return {nearest, std::max(rounded_to(dtype, y + error) - nearest,
                              nearest - rounded_to(dtype, y - error))};
  }

  void bound_head(const GroupSpec& group, const Part& part, std::int64_t n, std::int64_t channel,
                  const TensorBuffer& errors) const {
    const std::int64_t first = plain_.x->row_offset(part.begin + n, channel);
    const std::int64_t h = group.head_dim();
    std::vector<Bounded> results;
    Products squares, products;
    for (std::int64_t d = 0; d < h; ++d) {
      results.push_back(result(group, part, n, channel + d));
      squares.add(results.back(), results.back());
      products.add({inputs_.grad_out->load(first + d), 0}, results.back());
    }
    const Bounded eps{static_cast<double>(group.l2_norm->eps), 0};
    const Bounded sum = squares.after(h + 4) + eps, product = products.after(h + 4);
    const auto inverse = [](double square) { return 1 / std::sqrt(square); };
    const double exact = inverse(sum.value);
    const double largest = inverse(std::max(sum.value - sum.error, eps.value));
    const Bounded norm{exact, std::max(largest - exact, exact - inverse(sum.value + sum.error)) +
                                  4 * kUnitRoundoff * largest};
    const Bounded scale{static_cast<double>(group.l2_norm->scale), 0};
    for (std::int64_t d = 0; d < h; ++d) {
      const Bounded direct{inputs_.grad_out->load(first + d), 0};
      const Bounded along = results[static_cast<std::size_t>(d)] * norm * norm * product;
      const Bounded gradient = norm * scale * (direct + -along);
      inputs_.grad_out->store(first + d, gradient.value);
      errors.store(first + d, gradient.error);
    }
  }

  const GroupedBackwardCase& problem_;
  const GroupedBackwardBuffers& in_;
  BackwardCase plain_;
  BackwardBuffers inputs_;
};

std::optional<std::string> check_rows(const GroupedBackwardCase& problem,
                                      const GroupedBackwardBuffers& before,
                                      const GroupedBackwardBuffers& after,
                                      const GradientBounds& bounds) {
  if (!after.call.grad_x) return std::nullopt;
  const std::vector<bool> has_sequence = problem.rows_with_a_sequence();
  const DType dtype = problem.call.grad_x->dtype;
  std::optional<std::string> failure;
  for (std::int64_t row = 0; row < problem.call.rows() && !failure; ++row) {
    for_each_group_element(problem, [&](const GroupElement& one) {
      if (failure) return;
      const double found =
          after.call.grad_x->load(problem.call.grad_x->row_offset(row, one.column));
      const std::string place = fmt::format("grad_x row {}, column {} (group {}, head {}, {})", row,
                                            one.column, one.group, one.head, one.d);
      Bounded exact;
      if (one.channel >= 0) {
        const std::int64_t at = bounds.values.grad_x->spec().row_offset(row, one.channel);
        exact = {bounds.values.grad_x->load(at), bounds.errors.grad_x->load(at)};
      } else if (has_sequence[static_cast<std::size_t>(row)]) {
        exact.value = before.gradient(one.group).load(
            problem.offset(problem.groups[one.group].out, row, {one.head, one.d}));
      }
      failure = check_element(place, dtype, found, exact);
    });
  }
  return failure;
}

std::optional<std::string> check_sums(std::string_view name, const std::optional<TensorBuffer>& got,
                                      const std::optional<TensorBuffer>& values,
                                      const std::optional<TensorBuffer>& errors) {
  if (!got) return std::nullopt;
  std::int64_t number = 0;
  std::optional<std::string> failure;
  for_each_element(got->spec(), [&](std::int64_t offset) {
    const std::int64_t i = number++;
    if (failure) return;
    failure = check_element(fmt::format("{} {}", name, i), got->spec().dtype, got->load(offset),
                            {values->load(i), errors->load(i)});
  });
  return failure;
}

// ---- Gates ----

/// A number that a function of the platform has computed, from an argument with an error.
Bounded function_of(double value, double error_of_argument) {
  constexpr double kRelativeError = 5e-7, kSmallestNormal = 0x1p-126;
  return {value, error_of_argument + kRelativeError * std::fabs(value) + kSmallestNormal};
}
Bounded sigmoid(const Bounded& x) {
  const double s = 1 / (1 + std::exp(-x.value));
  return function_of(s, s * (1 - s) * x.error);
}
Bounded softplus(const Bounded& x) {
  const double value = x.value > 20 ? x.value : std::log1p(std::exp(x.value));
  return function_of(value, sigmoid(x).value * x.error);
}
Bounded exponential(const Bounded& x) {
  const double value = std::exp(x.value);
  return function_of(value, value * std::expm1(x.error));
}

class GateCheck {
 public:
  GateCheck(const GroupedBackwardCase& problem, const GateGradientBuffers& before,
            const GateGradientBuffers& after)
      : problem_(problem), gates_(*problem.gates), in_(before), got_(after) {}

  std::optional<std::string> run() {
    const std::vector<bool> has_sequence = problem_.rows_with_a_sequence();
    for (std::int64_t head = 0; head < gates_.heads() && !failure_; ++head) {
      Products a_log_sum, dt_bias_sum;
      for (std::int64_t row = 0; row < problem_.call.rows(); ++row) {
        Gradients one;
        if (has_sequence[static_cast<std::size_t>(row)]) {
          one = gradients(head, row);
          a_log_sum.add(one.g, one.value_of_g);
          dt_bias_sum.add({1, 0}, one.a);
        }
        check_column("grad_a", got_.grad_a, gates_.a_map, head, row, one.a);
        check_column("grad_b", got_.grad_b, gates_.b_map, head, row, one.b);
      }
      check_sum("grad_a_log", got_.grad_a_log, head, a_log_sum);
      check_sum("grad_dt_bias", got_.grad_dt_bias, head, dt_bias_sum);
    }
    return failure_;
  }

 private:
  struct Gradients {
    Bounded a, b, g, value_of_g;
  };

  [[nodiscard]] static Bounded load(const TensorBuffer& buffer, std::int64_t head) {
    return {buffer.load(buffer.spec().offset({head})), 0};
  }
  [[nodiscard]] static Bounded load(const TensorBuffer& buffer, std::int64_t row,
                                    std::int64_t column) {
    return {buffer.load(buffer.spec().row_offset(row, column)), 0};
  }
  [[nodiscard]] std::int64_t column(const HeadMap& map, std::int64_t head) const {
    return first_column(map, head, gates_.heads(), 1);
  }

  [[nodiscard]] Gradients gradients(std::int64_t head, std::int64_t row) const {
    const TensorBuffer& b = gates_.share_columns ? *in_.a : *in_.b;
    const Bounded sum = load(*in_.a, row, column(gates_.a_map, head)) + load(*in_.dt_bias, head);
    const Bounded rate = -exponential(load(*in_.a_log, head));
    Gradients result;
    result.value_of_g = rate * softplus(sum);
    result.g = load(*in_.grad_g, row, head);
    if (gates_.decay == DecayForm::kExp) result.g = result.g * exponential(result.value_of_g);
    result.a = rate * result.g * sigmoid(sum);
    const Bounded beta = sigmoid(load(b, row, column(gates_.b_map, head)));
    const Bounded factor{static_cast<double>(gates_.beta_factor), 0};
    result.b = load(*in_.grad_beta, row, head) * factor * beta * (Bounded{1, 0} + -beta);
    return result;
  }

  void check_column(std::string_view name, const std::optional<TensorBuffer>& got,
                    const HeadMap& map, std::int64_t head, std::int64_t row, const Bounded& exact) {
    if (!got || failure_) return;
    failure_ = check_element(fmt::format("{} row {}, head {}", name, row, head), got->spec().dtype,
                             load(*got, row, column(map, head)).value, exact);
  }

  void check_sum(std::string_view name, const std::optional<TensorBuffer>& got, std::int64_t head,
                 const Products& sum) {
    if (!got || failure_) return;
    failure_ = check_element(fmt::format("{} head {}", name, head), got->spec().dtype,
                             load(*got, head).value, sum.after(sum.terms + 3));
  }

  const GroupedBackwardCase& problem_;
  const GateGradientSpec& gates_;
  const GateGradientBuffers& in_;
  const GateGradientBuffers& got_;
  std::optional<std::string> failure_;
};

// ---- Memory ----

void copy_element(const TensorBuffer& to, const TensorBuffer& from, std::int64_t offset) {
  std::memcpy(to.element(offset), from.element(offset),
              static_cast<std::size_t>(element_bytes(to.spec().dtype)));
}

void copy_columns(const GroupedBackwardCase& problem, const std::optional<TensorBuffer>& to,
                  const std::optional<TensorBuffer>& from,
                  const std::vector<std::int64_t>& columns) {
  for (std::int64_t row = 0; to && row < problem.call.rows(); ++row) {
    for (const std::int64_t column : columns) {
      copy_element(*to, *from, to->spec().row_offset(row, column));
    }
  }
}

/// What was there before, with the elements that the call writes.
GroupedBackwardBuffers with_written(const GroupedBackwardCase& problem,
                                    const GroupedBackwardBuffers& before,
                                    const GroupedBackwardBuffers& after) {
  GroupedBackwardBuffers image = before;
  const auto copy_all = [](const Argument& row, const auto& to, const auto& from) {
    if (!to || !is_written(row.access) || row.sizes[1] == Size::kTokens) return;
    for_each_element(to->spec(), [&](std::int64_t offset) { copy_element(*to, *from, offset); });
  };
  std::vector<std::int64_t> columns, columns_of_a, columns_of_b;
  for_each_group_element(problem, [&](const GroupElement& one) { columns.push_back(one.column); });
  copy_columns(problem, image.call.grad_x, after.call.grad_x, columns);
  visit_backward_tensors(copy_all, image.call, after.call);
  if (!problem.gates) return image;
  const GateGradientSpec& gates = *problem.gates;
  for (std::int64_t head = 0; head < gates.heads(); ++head) {
    columns_of_a.push_back(first_column(gates.a_map, head, gates.heads(), 1));
    columns_of_b.push_back(first_column(gates.b_map, head, gates.heads(), 1));
  }
  copy_columns(problem, image.gates->grad_a, after.gates->grad_a, columns_of_a);
  copy_columns(problem, image.gates->grad_b, after.gates->grad_b, columns_of_b);
  visit_gate_gradient_tensors(copy_all, *image.gates, *after.gates);
  return image;
}

/// The bits of all gradients that both have.
std::optional<std::string> compare_gradients(const GroupedBackwardBuffers& got,
                                             const GroupedBackwardBuffers& expected) {
  std::optional<std::string> failure;
  const auto compare = [&](const Argument& row, const auto& one, const auto& other) {
    if (failure || !one || !other || !is_written(row.access)) return;
    failure = compare_elements(row.name, *one, *other, false);
  };
  visit_backward_tensors(compare, got.call, expected.call);
  if (got.gates) visit_gate_gradient_tensors(compare, *got.gates, *expected.gates);
  return failure;
}

}  // namespace

std::optional<std::string> check_unchanged(const GroupedBackwardBuffers& image,
                                           const GroupedBackwardBuffers& after) {
  std::optional<std::string> failure;
  const auto compare = [&](std::string_view name, const TensorBuffer& got,
                           const TensorBuffer& wanted) {
    const auto [at, other] = std::ranges::mismatch(got.bytes(), wanted.bytes());
    if (failure || at == got.bytes().end()) return;
    failure = fmt::format(
        "{}: a byte was written that is no result, {} bytes from the first element", name,
        (at - got.bytes().begin()) - (got.element(got.spec().origin) - got.bytes().data()));
  };
  const auto compare_all = [&](const Argument& row, const auto& got, const auto& wanted) {
    if (got) compare(row.name, *got, *wanted);
  };
  visit_backward_tensors(compare_all, after.call, image.call);
  for (std::size_t i = 0; i < after.gradients.size(); ++i) {
    compare(group_gradient_argument(static_cast<int>(i)).name, after.gradients[i],
            image.gradients[i]);
  }
  if (after.gates) visit_gate_gradient_tensors(compare_all, *after.gates, *image.gates);
  return failure;
}

std::optional<std::string> check_gradients(const GroupedBackwardCase& problem,
                                           const GroupedBackwardBuffers& before,
                                           const GroupedBackwardBuffers& after) {
  const GradientBounds bounds = ConvolutionBounds(problem, before).run();
  auto failure = check_rows(problem, before, after, bounds);
  if (!failure) {
    failure = check_sums("grad_weight", after.call.grad_weight, bounds.values.grad_weight,
                         bounds.errors.grad_weight);
  }
  if (!failure) {
    failure = check_sums("grad_bias", after.call.grad_bias, bounds.values.grad_bias,
                         bounds.errors.grad_bias);
  }
  if (!failure && problem.gates) failure = GateCheck(problem, *before.gates, *after.gates).run();
  // Inputs stay what they were, and of the gradients only elements of groups and heads are written.
  if (!failure) failure = check_unchanged(with_written(problem, before, after), after);
  return failure;
}

Verdict check_grouped_backward(const GroupedBackwardCase& problem, BackendId backend) {
  Verdict verdict;
  const GroupedBackwardBuffers before = make_buffers(problem);
  const GroupedBackwardBuffers after = before;
  if (const Status status = run_case(problem, after, backend); !status.ok()) {
    (status.code() == Code::kUnsupported ? verdict.unsupported : verdict.failure) =
        status.message();
    if (!verdict.failure) verdict.failure = check_unchanged(before, after);
    return verdict;
  }
  verdict.failure = check_gradients(problem, before, after);
  if (verdict.failure || backend == BackendId::kReference) return verdict;
  const GroupedBackwardBuffers reference = before;
  const Status status = run_case(problem, reference, BackendId::kReference);
  verdict.failure =
      status.ok() ? check_gradients(problem, before, reference) : std::optional(status.message());
  if (verdict.failure) verdict.failure = "the reference: " + *verdict.failure;
  return verdict;
}

std::optional<std::string> check_grouped_backward_repeats(const GroupedBackwardCase& problem,
                                                          BackendId backend) {
  const GroupedBackwardBuffers first = make_buffers(problem);
  const Status status = run_case(problem, first, backend);
  if (status.code() == Code::kUnsupported) return std::nullopt;
  Random random(~problem.seed);
  GroupedBackwardCase fewer = problem;
  const auto drop_some = [&](const Argument& row, auto& spec) {
    if (is_written(row.access) && random.chance(0.4)) spec.reset();
  };
  visit_backward_tensors(drop_some, fewer.call);
  if (fewer.gates) visit_gate_gradient_tensors(drop_some, *fewer.gates);
  for (const auto& [name, other] : {std::pair{"again", &problem}, {"fewer gradients", &fewer}}) {
    const GroupedBackwardBuffers second = make_buffers(*other);
    if (const Status again = run_case(*other, second, backend); !again.ok()) {
      return fmt::format("{}: refused: {}", name, again.message());
    }
    if (auto failure = compare_gradients(second, first)) {
      return fmt::format("{}: {}", name, *failure);
    }
  }
  return std::nullopt;
}

}  // namespace shortconv::tools::verify
