// Grouped calls, norms and gates. A norm is defined in fp32 and computed in it, but for fp64
// elements; all else is fp64.
#include <cmath>
#include <vector>

#include "reference/gates.hpp"
#include "reference/reference.hpp"
#include "reference/tensor_views.hpp"

namespace shortconv::reference {
namespace {

/// x / sqrt(sum + eps) * scale, in place.
template <typename Float>
void normalize(std::vector<Float>& head, const L2Norm& norm) {
  std::vector<Float> sums(head.size());
  for (std::size_t i = 0; i < head.size(); ++i) sums[i] = head[i] * head[i];
  while (sums.size() > 1) {
    if (sums.size() % 2 == 1) sums.push_back(0);
    for (std::size_t i = 0; 2 * i < sums.size(); ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    sums.resize(sums.size() / 2);
  }
  const Float root = std::sqrt(sums[0] + static_cast<Float>(norm.eps));
  const Float inverse = 1 / root;
  for (Float& element : head) {
    element *= inverse;
    if (norm.scale != 1) element *= static_cast<Float>(norm.scale);
  }
}

template <typename Float>
void normalize_head(DType dtype, const char* from, std::int64_t from_stride, char* to,
                    std::int64_t to_stride, std::int64_t count, const L2Norm& norm) {
  const std::int64_t bytes = element_bytes(dtype);
  std::vector<Float> head;
  for (std::int64_t i = 0; i < count; ++i) {
    head.push_back(static_cast<Float>(load_element(dtype, from + i * from_stride * bytes)));
  }
  if (!head.empty()) normalize(head, norm);
  for (std::int64_t i = 0; i < count; ++i) {
    store_element(dtype, to + i * to_stride * bytes, static_cast<double>(head[i]));
  }
}

void normalize_head(DType dtype, const char* from, std::int64_t from_stride, char* to,
                    std::int64_t to_stride, std::int64_t count, const L2Norm& norm) {
  const auto use = dtype == DType::kF64 ? &normalize_head<double> : &normalize_head<float>;
  use(dtype, from, from_stride, to, to_stride, count, norm);
}

double rounded(DType dtype, double value) {
  char bytes[sizeof(double)];
  store_element(dtype, bytes, value);
  return load_element(dtype, bytes);
}

/// Offset of a row; without an axis of sequences `sequence_tokens` is 0.
template <typename Layout>
std::int64_t offset_of_row(const Layout& layout, std::int64_t sequence_tokens, std::int64_t row) {
  if (sequence_tokens == 0) return row * layout.token_stride;
  return row / sequence_tokens * layout.sequence_stride +
         row % sequence_tokens * layout.token_stride;
}

/// The gates of one row, or zeros.
void store_gates(const GateProblem& p, const GatePointers& at, std::int64_t sequence_tokens,
                 std::int64_t row, bool zeros) {
  const auto load = [](const auto& layout, void* data, std::int64_t offset) {
    return load_element(layout.dtype, element(layout, data, offset));
  };
  for (std::int64_t head = 0; head < p.heads; ++head) {
    double g = 0, beta = 0;
    if (!zeros) {
      const double a = load(
          p.a, at.a,
          offset_of_row(p.a, sequence_tokens, row) + column_of(p.a_map, head) * p.a.channel_stride);
      const double b = load(
          p.b, at.b,
          offset_of_row(p.b, sequence_tokens, row) + column_of(p.b_map, head) * p.b.channel_stride);
      const double a_log = load(p.a_log, at.a_log, head * p.a_log.head_stride);
      const double dt_bias = load(p.dt_bias, at.dt_bias, head * p.dt_bias.head_stride);
      g = -std::exp(a_log) * softplus(a + dt_bias);
      if (p.decay == DecayForm::kExp) g = std::exp(g);
      beta = sigmoid(b);
      if (p.round_beta) beta = rounded(p.b.dtype, beta);
      beta *= static_cast<double>(p.beta_factor);
    }
    store_element(
        p.g.dtype,
        element(p.g, at.g, offset_of_row(p.g, sequence_tokens, row) + head * p.g.head_stride), g);
    store_element(p.beta.dtype,
                  element(p.beta, at.beta,
                          offset_of_row(p.beta, sequence_tokens, row) + head * p.beta.head_stride),
                  beta);
  }
}

/// The rest of a grouped call: rows whose convolution has been computed, and padding.
class GroupedRows {
 public:
  GroupedRows(const GroupedProblem& p, const GroupedPointers& at) : p_(p), at_(at) {}

  void finish(std::int64_t row) const {
    visit_heads(row, [&](const GroupLayout& group, const char* x, char* out) {
      if (group.copy) copy_head(group, x, out);
      if (!group.normalize) return;
      normalize_head(group.out.dtype, out, 1, out, 1, group.head_dim, group.l2_norm);
    });
    if (p_.has_gates) store_gates(p_.gates, at_.gates, p_.forward.sequence_tokens, row, false);
  }

  /// Convolved groups are padded by the forward call.
  void pad(std::int64_t row) const {
    const PaddedRows policy = p_.forward.padded_rows;
    if (policy == PaddedRows::kUntouched) return;
    visit_heads(row, [&](const GroupLayout& group, const char* x, char* out) {
      if (!group.copy) return;
      if (policy == PaddedRows::kCopy) return copy_head(group, x, out);
      for (std::int64_t d = 0; d < group.head_dim; ++d) {
        store_element(group.out.dtype, out + d * element_bytes(group.out.dtype), 0);
      }
    });
    if (p_.has_gates) store_gates(p_.gates, at_.gates, p_.forward.sequence_tokens, row, true);
  }

 private:
  /// use(group, first element in x, first element in its output) for each head.
  template <typename Use>
  void visit_heads(std::int64_t row, const Use& use) const {
    for (std::size_t i = 0; i < p_.used_groups().size(); ++i) {
      const GroupLayout& group = p_.groups[i];
      for (std::int64_t head = 0; head < group.heads; ++head) {
        const std::int64_t from = row_offset(p_.forward, p_.forward.x, row) +
                                  column_of(group.input, head) * p_.forward.x.channel_stride;
        const std::int64_t to =
            row_offset(p_.forward, group.out, row) + head * group.out.head_stride;
        use(group, element(p_.forward.x, at_.forward.x, from),
            element(group.out, at_.groups[i], to));
      }
    }
  }

  void copy_head(const GroupLayout& group, const char* x, char* out) const {
    const std::int64_t bytes = element_bytes(group.out.dtype);
    for (std::int64_t d = 0; d < group.head_dim; ++d) {
      std::memcpy(out + d * bytes, x + d * p_.forward.x.channel_stride * bytes,
                  static_cast<std::size_t>(bytes));
    }
  }

  const GroupedProblem& p_;
  const GroupedPointers& at_;
};

}  // namespace

GroupedChannel grouped_channel(const GroupedProblem& p, const GroupedPointers& at,
                               std::int64_t channel) {
  for (std::size_t i = 0; i < p.used_groups().size(); ++i) {
    const GroupLayout& group = p.groups[i];
    const std::int64_t inside = channel - group.first_channel;
    if (group.copy || inside < 0 || inside >= group.channels()) continue;
    const std::int64_t head = inside / group.head_dim, d = inside % group.head_dim;
    return {.column = column_of(group.input, head) + d,
            .input_scale = static_cast<double>(group.input_scale),
            .out = &group.out,
            .out_data = at.groups[i],
            .out_offset = head * group.out.head_stride + d};
  }
  return {};
}

Status grouped(const GroupedProblem& p, const PlanStorage&, const GroupedPointers& at, void*) {
  const GroupedRows rows(p, at);
  const TensorViews view{p.forward, at.forward, &p, &at};
  if (p.forward.violations.present) report_violations(p.forward, at.forward);
  forward_rows(
      view, [&](std::int64_t row) { rows.finish(row); }, [&](std::int64_t row) { rows.pad(row); });
  return {};
}

Status l2_norm(const L2NormCall& call, void*) {
  for (std::int64_t row = 0; row < call.rows; ++row) {
    for (std::int64_t head = 0; head < call.heads; ++head) {
      const std::int64_t from =
          offset_of_row(call.x, call.sequence_tokens, row) + head * call.x.head_stride;
      const std::int64_t to =
          offset_of_row(call.out, call.sequence_tokens, row) + head * call.out.head_stride;
      const std::int64_t bytes = element_bytes(call.x.dtype);
      normalize_head(call.x.dtype, static_cast<const char*>(call.x_data) + from * bytes,
                     call.x.channel_stride, static_cast<char*>(call.out_data) + to * bytes,
                     call.out.channel_stride, call.head_dim, call.norm);
    }
  }
  return {};
}

Status delta_gates(const GatesCall& call, void*) {
  for (std::int64_t row = 0; row < call.rows; ++row) {
    store_gates(call.gates, call.at, call.sequence_tokens, row, false);
  }
  return {};
}

}  // namespace shortconv::reference
