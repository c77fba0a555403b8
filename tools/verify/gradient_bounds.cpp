#include "verify/gradient_bounds.hpp"

#include <cmath>
#include <vector>

#include "shortconv/argument_table.hpp"
#include "verify/bounded.hpp"
#include "verify/compare.hpp"

namespace shortconv::tools::verify {
namespace {

struct Activated {
  Bounded value, slope;
};

/// Of a sum that `magnitude` is the sum of absolute values of.
Activated activate(const BackwardCase& problem, double a, double magnitude) {
  const double error = computing_error(problem.width, Activation::kNone, a, magnitude);
  switch (problem.activation) {
    case Activation::kNone:
      break;
    case Activation::kSilu: {
      constexpr double kLargestCurvature = 0.5;  // of silu, at a = 0
      constexpr double kSlopeRelativeError = 5e-7;
      constexpr double kSmallestSlope = 5.3e-37;  // smaller ones may count as 0
      const double s = 1 / (1 + std::exp(-a));
      const double terms = s + std::fabs(a) * s * (1 - s);
      return {{a * s, computing_error(problem.width, problem.activation, a * s, magnitude)},
              {s * (1 + a * (1 - s)),
               kLargestCurvature * error + kSlopeRelativeError * terms + kSmallestSlope}};
    }
  }
  return {{a, error}, {1, 0}};
}

TensorSpec in_fp64(const TensorSpec& spec) { return dense(DType::kF64, spec.shape); }

void clear(const TensorBuffer& buffer) {
  for_each_element(buffer.spec(), [&](std::int64_t offset) { buffer.store(offset, 0); });
}

class GradientAnalysis {
 public:
  GradientAnalysis(const BackwardCase& problem, const BackwardBuffers& inputs,
                   const TensorBuffer* grad_out_errors)
      : p_(problem), in_(inputs), grad_out_errors_(grad_out_errors) {
    visit_backward_tensors(
        [&](const Argument& row, const auto& spec, auto& values, auto& errors) {
          if (!spec || !is_written(row.access)) return;
          values.emplace(in_fp64(*spec));
          errors.emplace(in_fp64(*spec));
          clear(*values);  // rows without a sequence have gradients of 0, exactly
          clear(*errors);
        },
        problem, bounds_.values, bounds_.errors);
  }

  GradientBounds run() {
    const std::vector<Part> parts = p_.parts();
    for (channel_ = 0; channel_ < p_.channels(); ++channel_) {
      load_weights();
      tap_sums_.assign(static_cast<std::size_t>(p_.width), {});
      bias_sum_ = {};
      for (const Part& part : parts) run_part(part);
      for (std::int64_t tap = 0; tap < p_.width; ++tap) {
        store_sum(&BackwardBuffers::grad_weight, {channel_, tap},
                  tap_sums_[static_cast<std::size_t>(tap)]);
      }
      store_sum(&BackwardBuffers::grad_bias, {channel_}, bias_sum_);
    }
    return std::move(bounds_);
  }

 private:
  using Tensor = std::optional<TensorBuffer> BackwardBuffers::*;
  using Index = std::initializer_list<std::int64_t>;

  [[nodiscard]] double load(const std::optional<TensorBuffer>& tensor, Index index) const {
    return tensor->load(tensor->spec().offset(index));
  }
  [[nodiscard]] Bounded load_row(const std::optional<TensorBuffer>& tensor,
                                 std::int64_t row) const {
    return {tensor->load(tensor->spec().row_offset(row, channel_)), 0};
  }
  void store_at(Tensor tensor, std::int64_t offset, const Bounded& result) const {
    (bounds_.values.*tensor)->store(offset, result.value);
    (bounds_.errors.*tensor)->store(offset, result.error);
  }
  void store(Tensor tensor, Index index, const Bounded& result) const {
    if (!(bounds_.values.*tensor)) return;
    store_at(tensor, (bounds_.values.*tensor)->spec().offset(index), result);
  }
  void store_row(Tensor tensor, std::int64_t row, const Bounded& result) const {
    if (!(bounds_.values.*tensor)) return;
    store_at(tensor, (bounds_.values.*tensor)->spec().row_offset(row, channel_), result);
  }
  void store_sum(Tensor tensor, Index index, Products sum) const {
    if (!(in_.*tensor)) return;
    const std::int64_t terms = sum.terms;
    if (p_.accumulate) sum.add({1, 0}, {load(in_.*tensor, index), 0});
    store(tensor, index, sum.after(terms + 3));
  }

  void load_weights() {
    taps_.clear();
    for (std::int64_t tap = 0; tap < p_.width; ++tap) {
      taps_.push_back(load(in_.weight, {channel_, tap}));
    }
    bias_ = in_.bias ? load(in_.bias, {channel_}) : 0;
  }
  [[nodiscard]] double tap(std::int64_t number) const {
    return taps_[static_cast<std::size_t>(number)];
  }

  void run_part(const Part& part) {
    const std::int64_t tokens = part.end - part.begin;
    std::vector<double> inputs;
    for (std::int64_t n = -p_.history(); n < tokens; ++n) {
      inputs.push_back(input_of(p_, in_, part, n, channel_));
    }
    std::vector<Bounded> grads;
    for (std::int64_t t = 0; t < tokens; ++t) {
      grads.push_back(sum_gradient(part.begin + t, inputs.data() + t));
    }
    for (std::int64_t n = -p_.history(); n < tokens; ++n) {
      const Bounded gradient = input_gradient(part, n, grads);
      if (n >= 0) {
        store_input_gradient(part.begin + n, gradient);
      } else if (part.has_states) {
        store(&BackwardBuffers::grad_initial_state, {part.sequence, p_.history() + n, channel_},
              gradient);
      }
    }
  }

  /// The gradient of the sum of a row, and what it adds to those of the weights.
  Bounded sum_gradient(std::int64_t row, const double* window) {
    double a = bias_, magnitude = std::fabs(bias_);
    for (std::int64_t k = 0; k < p_.width; ++k) {
      a += tap(k) * window[k * p_.dilation];
      magnitude += std::fabs(tap(k) * window[k * p_.dilation]);
    }
    const Activated activated = activate(p_, a, magnitude);
    Bounded gradient = load_row(in_.grad_out, row);
    if (grad_out_errors_ != nullptr) {
      gradient.error = grad_out_errors_->load(p_.grad_out->row_offset(row, channel_));
    }
    if (in_.output_gate) {
      store_row(&BackwardBuffers::grad_output_gate, row, gradient * activated.value);
      gradient = gradient * load_row(in_.output_gate, row);
    }
    if (p_.activation != Activation::kNone) gradient = gradient * activated.slope;
    for (std::int64_t k = 0; k < p_.width; ++k) {
      tap_sums_[static_cast<std::size_t>(k)].add({window[k * p_.dilation], 0}, gradient);
    }
    bias_sum_.add({1, 0}, gradient);
    return gradient;
  }

  /// The chain of input n of a part.
  [[nodiscard]] Bounded input_gradient(const Part& part, std::int64_t n,
                                       const std::vector<Bounded>& grads) const {
    const std::int64_t tokens = part.end - part.begin, first_kept = tokens - p_.history();
    Products chain;
    if (in_.grad_final_state && n >= first_kept) {
      chain.add({1, 0}, {load(in_.grad_final_state, {part.sequence, n - first_kept, channel_}), 0});
    }
    for (std::int64_t k = 0; k < p_.width; ++k) {
      const std::int64_t t = n + (p_.width - 1 - k) * p_.dilation;
      if (t >= 0 && t < tokens) chain.add({tap(k), 0}, grads[static_cast<std::size_t>(t)]);
    }
    return chain.after(p_.width + 1);
  }

  void store_input_gradient(std::int64_t row, Bounded gradient) const {
    if (in_.input_gate) {
      store_row(&BackwardBuffers::grad_input_gate, row, gradient * load_row(in_.x, row));
      gradient = gradient * load_row(in_.input_gate, row);
    }
    if (p_.residual) gradient = gradient + load_row(in_.grad_out, row);
    store_row(&BackwardBuffers::grad_x, row, gradient);
  }

  const BackwardCase& p_;
  const BackwardBuffers& in_;
  const TensorBuffer* grad_out_errors_;
  GradientBounds bounds_;
  std::int64_t channel_ = 0;
  std::vector<double> taps_;
  double bias_ = 0;
  std::vector<Products> tap_sums_;
  Products bias_sum_;
};

}  // namespace

GradientBounds bound_gradients(const BackwardCase& problem, const BackwardBuffers& inputs,
                               const TensorBuffer* grad_out_errors) {
  return GradientAnalysis(problem, inputs, grad_out_errors).run();
}

}  // namespace shortconv::tools::verify
