// Backward calls: the gradients of the specification in fp64, one part of a sequence and one
// channel at a time.
#include <cmath>
#include <vector>

#include "core/history.hpp"
#include "reference/gates.hpp"
#include "reference/reference.hpp"
#include "reference/tensor_views.hpp"

namespace shortconv::reference {
namespace {

struct Activated {
  double value = 0, slope = 0;
};

Activated activate(Activation activation, double a) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kSilu: {
      const double s = sigmoid(a);
      return {a * s, s * (1 + a * (1 - s))};
    }
  }
  return {a, 1};
}

/// Sums over all tokens, of one channel.
struct WeightSums {
  std::vector<double> taps;
  double bias = 0;
};

/// Tokens [begin, end) of a row of the batch that convolve with each other and with nothing else.
struct Part {
  std::int64_t sequence = 0;
  std::int64_t begin = 0, end = 0;  // packed rows
  bool has_states = false;          // begins with the initial state, ends with the final one
};

class Backward {
 public:
  Backward(const BackwardProblem& p, const BackwardPointers& at) : p_(p), at_(at) {}

  void run() {
    parts_ = find_parts();
    for (std::int64_t channel = 0; channel < p_.channels; ++channel) {
      clear_rows(channel);
      WeightSums sums{.taps = std::vector<double>(static_cast<std::size_t>(p_.width))};
      for (const Part& part : parts_) run_part(part, channel, sums);
      for (std::int64_t tap = 0; tap < p_.width; ++tap) {
        store_sum(p_.grad_weight, at_.grad_weight,
                  channel * p_.grad_weight.channel_stride + tap * p_.grad_weight.tap_stride,
                  sums.taps[static_cast<std::size_t>(tap)]);
      }
      store_sum(p_.grad_bias, at_.grad_bias, channel * p_.grad_bias.channel_stride, sums.bias);
    }
  }

 private:
  [[nodiscard]] std::int64_t sequence_begin(std::int64_t sequence) const {
    if (!p_.query_start_loc.present) return sequence * p_.sequence_tokens;
    return load_bound(p_.query_start_loc, at_.query_start_loc, sequence, p_.tokens);
  }

  [[nodiscard]] std::vector<Part> find_parts() const {
    std::vector<Part> parts;
    for (std::int64_t s = 0; s < p_.sequences; ++s) {
      const std::int64_t begin = sequence_begin(s), end = std::max(sequence_begin(s + 1), begin);
      if (!p_.seq_idx.present) {
        parts.push_back({.sequence = s, .begin = begin, .end = end, .has_states = true});
        continue;
      }
      std::int64_t first = begin;
      for (std::int64_t row = begin; row < end; ++row) {
        if (row + 1 < end && seq_idx(row + 1) == seq_idx(row)) continue;
        const bool padding = seq_idx(row) < 0;
        // The first part reads the initial state; without a part its gradient is 0.
        if (!padding) {
          parts.push_back(
              {.sequence = s, .begin = first, .end = row + 1, .has_states = first == begin});
        } else if (first == begin) {
          parts.push_back({.sequence = s, .begin = begin, .end = begin, .has_states = true});
        }
        first = row + 1;
      }
      if (begin == end)
        parts.push_back({.sequence = s, .begin = begin, .end = begin, .has_states = true});
    }
    return parts;
  }

  [[nodiscard]] std::int64_t seq_idx(std::int64_t row) const {
    return load_index(p_.seq_idx.dtype, at_.seq_idx, row_offset(p_, p_.seq_idx, row));
  }
  template <typename Layout>
  [[nodiscard]] double load(const Layout& layout, void* data, std::int64_t offset) const {
    return load_element(layout.dtype, element(layout, data, offset));
  }
  template <typename Layout>
  [[nodiscard]] double load_row(const Layout& layout, void* data, std::int64_t row,
                                std::int64_t channel) const {
    return load(layout, data, row_offset(p_, layout, row) + channel * layout.channel_stride);
  }
  template <typename Layout>
  void store_row(const Layout& layout, void* data, std::int64_t row, std::int64_t channel,
                 double value) const {
    if (!layout.present) return;
    const std::int64_t offset = row_offset(p_, layout, row) + channel * layout.channel_stride;
    store_element(layout.dtype, element(layout, data, offset), value);
  }
  template <typename Layout>
  void store_sum(const Layout& layout, void* data, std::int64_t offset, double sum) const {
    if (!layout.present) return;
    if (p_.accumulate) sum += load(layout, data, offset);
    store_element(layout.dtype, element(layout, data, offset), sum);
  }
  template <typename Layout>
  [[nodiscard]] std::int64_t state_offset(const Layout& layout, std::int64_t sequence,
                                          std::int64_t column, std::int64_t channel) const {
    return sequence * layout.sequence_stride + column * layout.column_stride +
           channel * layout.channel_stride;
  }

  /// Rows without a sequence have gradients of 0.
  void clear_rows(std::int64_t channel) const {
    for (std::int64_t row = 0; row < p_.tokens; ++row) {
      store_row(p_.grad_x, at_.grad_x, row, channel, 0);
      store_row(p_.grad_input_gate, at_.grad_input_gate, row, channel, 0);
      store_row(p_.grad_output_gate, at_.grad_output_gate, row, channel, 0);
    }
  }

  /// Input n of a part: its tokens from 0 on, the initial state below. A product with the gate is
  /// rounded to the dtype of x, as in the forward call.
  [[nodiscard]] double input(const Part& part, std::int64_t n, std::int64_t channel) const {
    if (n < 0) {
      if (!part.has_states || !p_.initial_state.present) return 0;
      return load(p_.initial_state, at_.initial_state,
                  state_offset(p_.initial_state, part.sequence, history_ + n, channel));
    }
    const double x = load_row(p_.x, at_.x, part.begin + n, channel);
    if (!p_.input_gate.present) return x;
    double product = x * load_row(p_.input_gate, at_.input_gate, part.begin + n, channel);
    if (p_.x.dtype == DType::kF64) return product;
    char rounded[8] = {};
    store_element(p_.x.dtype, rounded, static_cast<float>(product));
    return load_element(p_.x.dtype, rounded);
  }

  void run_part(const Part& part, std::int64_t channel, WeightSums& sums) {
    const std::int64_t tokens = part.end - part.begin;
    std::vector<double> inputs(static_cast<std::size_t>(history_ + tokens));
    std::vector<double> taps(static_cast<std::size_t>(p_.width));
    for (std::int64_t n = -history_; n < tokens; ++n) {
      inputs[static_cast<std::size_t>(history_ + n)] = input(part, n, channel);
    }
    for (std::int64_t tap = 0; tap < p_.width; ++tap) {
      taps[static_cast<std::size_t>(tap)] = load(
          p_.weight, at_.weight, channel * p_.weight.channel_stride + tap * p_.weight.tap_stride);
    }
    const std::vector<double> grads = sum_gradients(part, channel, inputs, taps, sums);
    for (std::int64_t n = -history_; n < tokens; ++n) {
      store_input_gradient(part, n, channel, input_gradient(part, n, channel, grads, taps));
    }
  }

  /// Gradients of the sums a, and their contributions to those of weight and bias.
  std::vector<double> sum_gradients(const Part& part, std::int64_t channel,
                                    const std::vector<double>& inputs,
                                    const std::vector<double>& taps, WeightSums& sums) {
    const std::int64_t tokens = part.end - part.begin;
    std::vector<double> grads(static_cast<std::size_t>(tokens));
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t row = part.begin + t;
      const auto input_of = [&](std::int64_t tap) {
        return inputs[static_cast<std::size_t>(t + tap * p_.dilation)];
      };
      double a = p_.bias.present ? load(p_.bias, at_.bias, channel * p_.bias.channel_stride) : 0;
      for (std::int64_t tap = 0; tap < p_.width; ++tap) {
        a += taps[static_cast<std::size_t>(tap)] * input_of(tap);
      }
      const Activated activated = activate(p_.activation, a);
      double grad = load_row(p_.grad_out, at_.grad_out, row, channel);
      if (p_.output_gate.present) {
        store_row(p_.grad_output_gate, at_.grad_output_gate, row, channel, grad * activated.value);
        grad *= load_row(p_.output_gate, at_.output_gate, row, channel);
      }
      grad *= activated.slope;
      grads[static_cast<std::size_t>(t)] = grad;
      sums.bias += grad;
      for (std::int64_t tap = 0; tap < p_.width; ++tap) {
        sums.taps[static_cast<std::size_t>(tap)] += grad * input_of(tap);
      }
    }
    return grads;
  }

  /// The chain of the specification: the furthest token first, from the gradient of the final state
  /// on, so that a sequence may be cut anywhere.
  [[nodiscard]] double input_gradient(const Part& part, std::int64_t n, std::int64_t channel,
                                      const std::vector<double>& grads,
                                      const std::vector<double>& taps) const {
    const std::int64_t tokens = part.end - part.begin;
    double chain = 0;
    if (p_.grad_final_state.present && n >= tokens - history_) {
      chain =
          load(p_.grad_final_state, at_.grad_final_state,
               state_offset(p_.grad_final_state, part.sequence, n - (tokens - history_), channel));
    }
    for (std::int64_t tap = 0; tap < p_.width; ++tap) {
      const std::int64_t t = n + (p_.width - 1 - tap) * p_.dilation;
      if (t < 0 || t >= tokens) continue;
      chain =
          std::fma(taps[static_cast<std::size_t>(tap)], grads[static_cast<std::size_t>(t)], chain);
    }
    return chain;
  }

  void store_input_gradient(const Part& part, std::int64_t n, std::int64_t channel,
                            double gradient) const {
    if (n < 0) {
      if (!part.has_states || !p_.grad_initial_state.present) return;
      const std::int64_t offset =
          state_offset(p_.grad_initial_state, part.sequence, history_ + n, channel);
      store_element(p_.grad_initial_state.dtype,
                    element(p_.grad_initial_state, at_.grad_initial_state, offset), gradient);
      return;
    }
    const std::int64_t row = part.begin + n;
    if (p_.epilogue == Epilogue::kResidual) {
      gradient += load_row(p_.grad_out, at_.grad_out, row, channel);
    }
    if (!p_.input_gate.present) return store_row(p_.grad_x, at_.grad_x, row, channel, gradient);
    const double x = load_row(p_.x, at_.x, row, channel);
    const double gate = load_row(p_.input_gate, at_.input_gate, row, channel);
    store_row(p_.grad_x, at_.grad_x, row, channel, gradient * gate);
    store_row(p_.grad_input_gate, at_.grad_input_gate, row, channel, gradient * x);
  }

  const BackwardProblem& p_;
  const BackwardPointers& at_;
  const std::int64_t history_ = history_of(p_);
  std::vector<Part> parts_;
};

}  // namespace

Status backward(const BackwardProblem& p, const PlanStorage&, const BackwardPointers& at, void*) {
  Backward(p, at).run();
  return {};
}

}  // namespace shortconv::reference
