// Backward calls with groups: the rows of the convolved groups and the gradients of their results
// are gathered in fp64, as a backward call without groups takes them.
#include <cmath>
#include <vector>

#include "reference/gates.hpp"
#include "reference/reference.hpp"
#include "reference/tensor_views.hpp"

namespace shortconv::reference {
namespace {

/// A matrix [tokens, channels] of fp64, and its layout.
class Matrix {
 public:
  Matrix(const BackwardProblem& p, std::int64_t channels)
      : channels_(channels), values_(static_cast<std::size_t>(p.tokens * channels)) {
    layout_.dtype = DType::kF64;
    layout_.present = true;
    layout_.has_elements = !values_.empty();
    layout_.sequence_stride = p.sequence_tokens * channels;
    layout_.token_stride = channels;
    layout_.channel_stride = 1;
  }

  double& at(std::int64_t row, std::int64_t channel) {
    return values_[static_cast<std::size_t>(row * channels_ + channel)];
  }
  void* data() { return values_.data(); }
  [[nodiscard]] const auto& layout() const { return layout_; }

 private:
  std::int64_t channels_;
  std::vector<double> values_;
  TensorLayout<Axis::kSequence, Axis::kToken, Axis::kChannel> layout_;
};

class GroupedBackward {
 public:
  GroupedBackward(const GroupedBackwardProblem& p, const GroupedBackwardPointers& at)
      : p_(p), at_(at), call_(p.backward) {}

  Status run() {
    for (const GroupLayout& group : p_.used_groups()) {
      if (!group.copy) gather(group);
    }
    Matrix results(call_, call_.channels);
    if (Status status = convolve(results); !status.ok()) return status;
    visit_heads([&](const GroupLayout& group, std::int64_t row, std::int64_t head) {
      if (group.normalize) differentiate_norm(group, row, head, results);
    });
    if (Status status = differentiate(); !status.ok()) return status;
    visit_heads([&](const GroupLayout& group, std::int64_t row, std::int64_t head) {
      store_head(group, row, head);
    });
    if (p_.has_gates) differentiate_gates();
    return {};
  }

 private:
  template <typename Use>
  void visit_heads(const Use& use) const {
    for (const GroupLayout& group : p_.used_groups()) {
      for (std::int64_t row = 0; row < call_.tokens; ++row) {
        for (std::int64_t head = 0; head < group.heads; ++head) use(group, row, head);
      }
    }
  }

  /// Element d of a head in a row of x or of grad_x.
  template <typename Layout>
  [[nodiscard]] char* in_row(const Layout& layout, void* data, const GroupLayout& group,
                             std::int64_t row, std::int64_t head, std::int64_t d) const {
    const std::int64_t column = column_of(group.input, head) + d;
    return element(layout, data, row_offset(call_, layout, row) + column * layout.channel_stride);
  }

  [[nodiscard]] double gradient(const GroupLayout& group, std::int64_t row, std::int64_t head,
                                std::int64_t d) const {
    void* data = at_.groups[static_cast<std::size_t>(&group - p_.groups.data())];
    return load_element(group.out.dtype, element(group.out, data,
                                                 row_offset(call_, group.out, row) +
                                                     head * group.out.head_stride + d));
  }

  void gather(const GroupLayout& group) {
    for (std::int64_t row = 0; row < call_.tokens; ++row) {
      for (std::int64_t channel = 0; channel < group.channels(); ++channel) {
        const std::int64_t head = channel / group.head_dim, d = channel % group.head_dim;
        x_.at(row, group.first_channel + channel) =
            load_element(call_.x.dtype, in_row(call_.x, at_.backward.x, group, row, head, d));
        grad_out_.at(row, group.first_channel + channel) = gradient(group, row, head, d);
      }
    }
  }

  /// The results of the forward call, and NaN in rows without a sequence.
  Status convolve(Matrix& results) {
    for (std::int64_t row = 0; row < call_.tokens; ++row) {
      for (std::int64_t channel = 0; channel < call_.channels; ++channel) {
        results.at(row, channel) = std::nan("");
      }
    }
    Problem forward;
    forward.device = call_.device;
    forward.x = x_.layout();
    forward.out = results.layout();
    forward.weight = call_.weight;
    forward.bias = call_.bias;
    forward.query_start_loc = call_.query_start_loc;
    forward.seq_idx = call_.seq_idx;
    forward.activation = call_.activation;
    forward.padded_rows = PaddedRows::kUntouched;
    forward.width = call_.width;
    forward.tokens = call_.tokens;
    forward.channels = call_.channels;
    forward.sequences = call_.sequences;
    forward.sequence_tokens = call_.sequence_tokens;
    TensorPointers at;
    at.x = x_.data();
    at.out = results.data();
    at.weight = at_.backward.weight;
    at.bias = at_.backward.bias;
    at.query_start_loc = at_.backward.query_start_loc;
    at.seq_idx = at_.backward.seq_idx;
    return reference::forward(forward, {}, at, nullptr);
  }

  /// From the gradient of normalized results to that of the results before:
  ///   n * scale * (grad - y * n^2 * sum(grad * y)), n = 1 / sqrt(sum(y^2) + eps)
  void differentiate_norm(const GroupLayout& group, std::int64_t row, std::int64_t head,
                          Matrix& results) {
    const std::int64_t first = group.first_channel + head * group.head_dim;
    double squares = 0, products = 0;
    for (std::int64_t d = 0; d < group.head_dim; ++d) {
      char rounded[sizeof(double)];
      store_element(group.out.dtype, rounded, results.at(row, first + d));
      const double y = load_element(group.out.dtype, rounded);
      results.at(row, first + d) = y;
      squares += y * y;
      products += grad_out_.at(row, first + d) * y;
    }
    const double n = 1 / std::sqrt(squares + static_cast<double>(group.l2_norm.eps));
    for (std::int64_t d = 0; d < group.head_dim; ++d) {
      double& grad = grad_out_.at(row, first + d);
      grad = n * static_cast<double>(group.l2_norm.scale) *
             (grad - results.at(row, first + d) * n * n * products);
    }
  }

  Status differentiate() {
    BackwardProblem plain = call_;
    BackwardPointers at = at_.backward;
    plain.x = x_.layout();
    plain.grad_out = grad_out_.layout();
    plain.grad_x = grad_x_.layout();
    at.x = x_.data();
    at.grad_out = grad_out_.data();
    at.grad_x = grad_x_.data();
    return reference::backward(plain, {}, at, nullptr);
  }

  /// Rows without a sequence have gradients of 0.
  void store_head(const GroupLayout& group, std::int64_t row, std::int64_t head) {
    if (!call_.grad_x.present) return;
    for (std::int64_t d = 0; d < group.head_dim; ++d) {
      const double grad = !group.copy
                              ? grad_x_.at(row, group.first_channel + head * group.head_dim + d)
                          : has_sequence(row) ? gradient(group, row, head, d)
                                              : 0;
      store_element(call_.grad_x.dtype,
                    in_row(call_.grad_x, at_.backward.grad_x, group, row, head, d), grad);
    }
  }

  [[nodiscard]] bool has_sequence(std::int64_t row) const {
    if (call_.seq_idx.present) {
      return load_index(call_.seq_idx.dtype, at_.backward.seq_idx,
                        row_offset(call_, call_.seq_idx, row)) >= 0;
    }
    if (!call_.query_start_loc.present) return true;
    const auto bound = [&](std::int64_t number) {
      return load_bound(call_.query_start_loc, at_.backward.query_start_loc, number, call_.tokens);
    };
    return row >= bound(0) && row < bound(call_.sequences);
  }

  void differentiate_gates() const {
    const GateGradientProblem& p = p_.gates;
    const GateGradientPointers& at = at_.gates;
    for (std::int64_t head = 0; head < p.heads; ++head) {
      double a_log_sum = 0, dt_bias_sum = 0;
      for (std::int64_t row = 0; row < call_.tokens; ++row) {
        const auto of_row = [&](const auto& layout, void* data, std::int64_t in_row) {
          return element(layout, data, row_offset(call_, layout, row) + in_row);
        };
        const std::int64_t a_column = column_of(p.a_map, head), b_column = column_of(p.b_map, head);
        const double a_log =
            load_element(p.a_log.dtype, element(p.a_log, at.a_log, head * p.a_log.head_stride));
        const double dt_bias = load_element(
            p.dt_bias.dtype, element(p.dt_bias, at.dt_bias, head * p.dt_bias.head_stride));
        const double sum =
            load_element(p.a.dtype, of_row(p.a, at.a, a_column * p.a.channel_stride)) + dt_bias;
        const double g = -std::exp(a_log) * (sum > 20 ? sum : std::log1p(std::exp(sum)));
        double grad_g =
            load_element(DType::kF32, of_row(p.grad_g, at.grad_g, head * p.grad_g.head_stride));
        if (p.decay == DecayForm::kExp) grad_g *= std::exp(g);
        double grad_a = -std::exp(a_log) * grad_g * softplus_slope(sum);
        const double beta =
            sigmoid(load_element(p.b.dtype, of_row(p.b, at.b, b_column * p.b.channel_stride)));
        double grad_b = load_element(DType::kF32, of_row(p.grad_beta, at.grad_beta,
                                                         head * p.grad_beta.head_stride)) *
                        static_cast<double>(p.beta_factor) * beta * (1 - beta);
        if (has_sequence(row)) {
          a_log_sum += grad_g * g;
          dt_bias_sum += grad_a;
        } else {
          grad_a = grad_b = 0;
        }
        if (p.grad_a.present) {
          store_element(p.grad_a.dtype,
                        of_row(p.grad_a, at.grad_a, a_column * p.grad_a.channel_stride), grad_a);
        }
        if (p.grad_b.present) {
          store_element(p.grad_b.dtype,
                        of_row(p.grad_b, at.grad_b, b_column * p.grad_b.channel_stride), grad_b);
        }
      }
      const auto store_sum = [head](const auto& layout, void* data, double sum) {
        if (!layout.present) return;
        store_element(layout.dtype, element(layout, data, head * layout.head_stride), sum);
      };
      store_sum(p.grad_a_log, at.grad_a_log, a_log_sum);
      store_sum(p.grad_dt_bias, at.grad_dt_bias, dt_bias_sum);
    }
  }

  const GroupedBackwardProblem& p_;
  const GroupedBackwardPointers& at_;
  const BackwardProblem& call_;
  // Of the convolved groups. None is a copy of another: copies of vectors need a newer libstdc++
  // than the wheel may.
  Matrix x_{call_, call_.channels}, grad_out_{call_, call_.channels},
      grad_x_{call_, call_.channels};
};

}  // namespace

Status grouped_backward(const GroupedBackwardProblem& p, const PlanStorage&,
                        const GroupedBackwardPointers& at, void*) {
  return GroupedBackward(p, at).run();
}

}  // namespace shortconv::reference
