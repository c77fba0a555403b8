#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/random.hpp"
#include "core/element.hpp"
#include "verify/grouped_case.hpp"
#include "verify/on_gpu.hpp"

namespace shortconv::tools::verify {
namespace {

struct GateBuffers {
  TensorBuffer a, b, a_log, dt_bias, g, beta;

  [[nodiscard]] std::vector<const TensorBuffer*> tensors() const {
    return {&a, &b, &a_log, &dt_bias, &g, &beta};
  }
};

struct GroupedBuffers {
  CaseBuffers call;  // `out` is that of the call without groups
  TensorBuffer rows;
  std::vector<TensorBuffer> outs;  // one if they are shared
  std::optional<GateBuffers> gates;

  [[nodiscard]] const TensorBuffer& out(std::size_t group) const {
    return outs[outs.size() == 1 ? 0 : group];
  }
  [[nodiscard]] std::vector<const TensorBuffer*> tensors() const {
    std::vector<const TensorBuffer*> list = call.tensors();
    list.push_back(&rows);
    for (const TensorBuffer& one : outs) list.push_back(&one);
    if (gates) std::ranges::copy(gates->tensors(), std::back_inserter(list));
    return list;
  }
};

void fill(const TensorBuffer& buffer, std::uint64_t seed, double scale) {
  std::uint64_t number = 0;
  for_each_element(buffer.spec(), [&](std::int64_t offset) {
    buffer.store(offset, scale * normal_from(mix(seed ^ mix(number++))));
  });
}

HeadMap complete(HeadMap map, std::int64_t heads, std::int64_t head_dim) {
  if (map.head_stride == 0) map.head_stride = head_dim;
  if (map.block_heads == 0) map.block_heads = heads;
  return map;
}

/// First column of a head.
std::int64_t column_of(const HeadMap& map, std::int64_t head) {
  return map.offset + head / map.block_heads * map.block_stride +
         head % map.block_heads * map.head_stride;
}

/// Offset of a row, with the indices of the axes after the tokens.
std::int64_t offset_in_row(const TensorSpec& spec, std::size_t row_axes, std::int64_t row,
                           std::initializer_list<std::int64_t> last) {
  std::int64_t offset = spec.origin;
  if (row_axes == 2) {
    offset += row / spec.shape[1] * spec.strides[0] + row % spec.shape[1] * spec.strides[1];
  } else {
    offset += row * spec.strides[0];
  }
  std::size_t axis = row_axes;
  for (const std::int64_t index : last) offset += index * spec.strides[axis++];
  return offset;
}

/// Visits all elements of the groups: visit(group, row, channel of the convolution or -1, column of
/// x, offset in the group's output).
template <typename Visit>
void for_each_output(const GroupedCase& problem, const Visit& visit) {
  const std::size_t row_axes = problem.rows.shape.size() - 1;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    const GroupSpec& group = problem.groups[i];
    const HeadMap map = complete(group.input, group.heads(), group.head_dim());
    for (std::int64_t row = 0; row < problem.call.rows(); ++row) {
      for (std::int64_t head = 0; head < group.heads(); ++head) {
        const std::int64_t offset = offset_in_row(group.out, row_axes, row, {head, 0});
        for (std::int64_t d = 0; d < group.head_dim(); ++d) {
          const std::int64_t channel = group.copy ? -1 : first + head * group.head_dim() + d;
          visit(i, row, channel, column_of(map, head) + d, offset + d);
        }
      }
    }
    if (!group.copy) first += group.heads() * group.head_dim();
  }
}

GroupedBuffers make_buffers(const GroupedCase& problem) {
  GroupedBuffers buffers{.call = make_buffers(problem.call),
                         .rows = TensorBuffer(problem.rows),
                         .outs = {},
                         .gates = {}};
  const std::size_t row_axes = problem.rows.shape.size() - 1;
  fill(buffers.rows, mix(problem.seed), problem.call.x_scale);
  for_each_output(problem, [&](std::size_t i, std::int64_t row, std::int64_t channel,
                               std::int64_t column, std::int64_t) {
    if (channel < 0) return;
    // Values of the call without groups, NaN among them.
    const double value = buffers.call.x.load(problem.call.x.row_offset(row, channel));
    buffers.rows.store(offset_in_row(problem.rows, row_axes, row, {column}), value);
    const auto scaled = static_cast<float>(value) * problem.groups[i].input_scale;
    if (problem.groups[i].input_scale != 1) {
      buffers.call.x.store(problem.call.x.row_offset(row, channel), static_cast<double>(scaled));
    }
  });
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    if (i == 0 || !problem.share_outputs) buffers.outs.emplace_back(problem.groups[i].out);
  }
  if (problem.gates) {
    const GateSpec& spec = *problem.gates;
    buffers.gates = {TensorBuffer(spec.a),       TensorBuffer(spec.b), TensorBuffer(spec.a_log),
                     TensorBuffer(spec.dt_bias), TensorBuffer(spec.g), TensorBuffer(spec.beta)};
    fill(buffers.gates->a, mix(problem.seed + 1), 8);
    fill(buffers.gates->b, mix(problem.seed + 2), 3);
    fill(buffers.gates->a_log, mix(problem.seed + 3), 1);
    fill(buffers.gates->dt_bias, mix(problem.seed + 4), 2);
  }
  return buffers;
}

GateArgs make_gates(const GateSpec& spec, const GateBuffers& buffers) {
  GateArgs gates;
  gates.a = buffers.a.view();
  gates.b = buffers.b.view();
  gates.a_log = buffers.a_log.view();
  gates.dt_bias = buffers.dt_bias.view();
  gates.g = buffers.g.view();
  gates.beta = buffers.beta.view();
  gates.a_map = spec.a_map;
  gates.b_map = spec.b_map;
  gates.decay = spec.decay;
  gates.beta_factor = spec.beta_factor;
  gates.round_beta = spec.round_beta;
  return gates;
}

Status run_gates(const GateSpec& spec, const GateBuffers& buffers, BackendId backend) {
  const GateArgs args = make_gates(spec, buffers);
  if (backend != BackendId::kCuda) return delta_gates(args, backend);
  return gates_on_gpu(args, buffers.tensors());
}

Status run_norm(const TensorBuffer& buffer, const L2Norm& norm, BackendId backend) {
  const L2NormArgs args{.x = buffer.view(), .out = buffer.view(), .norm = norm, .backend = backend};
  if (backend != BackendId::kCuda) return l2_norm(args);
  return norm_on_gpu(args, {&buffer});
}

Status run_grouped(const GroupedCase& problem, const GroupedBuffers& buffers, BackendId backend) {
  std::vector<ChannelGroup> groups;
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    const GroupSpec& group = problem.groups[i];
    groups.push_back({.out = buffers.out(i).view(group.out),
                      .input = group.input,
                      .copy = group.copy,
                      .l2_norm = group.l2_norm,
                      .input_scale = group.input_scale});
  }
  GroupedArgs args;
  args.forward = make_arguments(problem.call, buffers.call, backend);
  args.forward.x = buffers.rows.view();
  args.forward.out = {};
  args.groups = groups;
  if (problem.gates) args.gates = make_gates(*problem.gates, *buffers.gates);
  if (backend != BackendId::kCuda) return forward_groups(args);
  return grouped_on_gpu(args, groups, buffers.tensors());
}

bool same_or_nan(const TensorBuffer& got, std::int64_t at, const TensorBuffer& wanted,
                 std::int64_t wanted_at) {
  return got.same_element(at, wanted, wanted_at) ||
         (std::isnan(got.load(at)) && std::isnan(wanted.load(wanted_at)));
}

/// What the outputs hold after the call without groups, the norms and the gates.
struct Expected {
  std::vector<TensorBuffer> outs;  // [rows, heads, head_dim], dense
  std::optional<GateBuffers> gates;
};

Status compute_expected(const GroupedCase& problem, const GroupedBuffers& plain, BackendId backend,
                        Expected& expected) {
  const std::size_t row_axes = problem.rows.shape.size() - 1;
  for (const GroupSpec& group : problem.groups) {
    expected.outs.emplace_back(
        dense(group.out.dtype, {problem.call.rows(), group.heads(), group.head_dim()}));
  }
  const auto offset_of = [&](std::size_t i, std::int64_t row, std::int64_t channel) {
    const GroupSpec& group = problem.groups[i];
    return row * group.heads() * group.head_dim() + channel;
  };
  std::vector<std::int64_t> first(problem.groups.size(), 0);
  std::int64_t channels = 0;
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    first[i] = channels;
    if (!problem.groups[i].copy)
      channels += problem.groups[i].heads() * problem.groups[i].head_dim();
  }
  const auto bytes_of = [&](std::size_t i) {
    return static_cast<std::size_t>(element_bytes(problem.groups[i].out.dtype));
  };
  for_each_output(problem, [&](std::size_t i, std::int64_t row, std::int64_t channel, std::int64_t,
                               std::int64_t) {
    if (channel < 0) return;
    std::memcpy(expected.outs[i].element(offset_of(i, row, channel - first[i])),
                plain.call.out.element(problem.call.out.row_offset(row, channel)), bytes_of(i));
  });
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    if (!problem.groups[i].l2_norm) continue;
    Status status = run_norm(expected.outs[i], *problem.groups[i].l2_norm, backend);
    if (!status.ok()) return status;
  }
  expected.gates = plain.gates;
  if (problem.gates) {
    Status status = run_gates(*problem.gates, *expected.gates, backend);
    if (!status.ok()) return status;
  }
  // Copies, and rows of padding.
  const std::vector<std::int64_t> owners = owners_of_rows(problem.call);
  std::vector<std::int64_t> next(problem.groups.size(), 0);  // elements come in this order
  for_each_output(problem, [&](std::size_t i, std::int64_t row, std::int64_t channel,
                               std::int64_t column, std::int64_t offset) {
    const std::int64_t at = next[i]++;
    const bool padding = owners[row] < 0;
    if (!padding && channel >= 0) return;
    const std::int64_t x_at = offset_in_row(problem.rows, row_axes, row, {column});
    if (!padding || problem.call.padded_rows == PaddedRows::kCopy) {
      if (problem.rows.dtype == problem.groups[i].out.dtype) {
        std::memcpy(expected.outs[i].element(at), plain.rows.element(x_at), bytes_of(i));
      } else {
        expected.outs[i].store(at, plain.rows.load(x_at));
      }
    } else if (problem.call.padded_rows == PaddedRows::kZero) {
      expected.outs[i].store(at, 0);
    } else {
      std::memcpy(expected.outs[i].element(at), plain.out(i).element(offset), bytes_of(i));
    }
  });
  return {};
}

/// Gates of rows of padding: 0, or as they were.
std::optional<std::string> check_gates(const GroupedCase& problem, const GroupedBuffers& before,
                                       const GroupedBuffers& after, const Expected& expected) {
  const std::size_t row_axes = problem.rows.shape.size() - 1;
  const std::vector<std::int64_t> owners = owners_of_rows(problem.call);
  const GateSpec& spec = *problem.gates;
  const auto check = [&](std::string_view label, const TensorBuffer& old, const TensorBuffer& got,
                         const TensorBuffer& wanted) -> std::optional<std::string> {
    for (std::int64_t row = 0; row < problem.call.rows(); ++row) {
      for (std::int64_t head = 0; head < spec.a_log.shape[0]; ++head) {
        const std::int64_t at = offset_in_row(got.spec(), row_axes, row, {head});
        bool same = got.same_element(at, wanted, at);
        if (owners[row] < 0) {
          same = problem.call.padded_rows == PaddedRows::kUntouched ? got.same_element(at, old, at)
                                                                    : got.load(at) == 0;
        }
        if (!same) {
          return fmt::format("{} row {}{}, head {}: got {}, expected {}", label, row,
                             owners[row] < 0 ? " (padding)" : "", head, got.load(at),
                             wanted.load(at));
        }
      }
    }
    return check_gaps(label, old, got);
  };
  auto failure = check("g", before.gates->g, after.gates->g, expected.gates->g);
  if (!failure)
    failure = check("beta", before.gates->beta, after.gates->beta, expected.gates->beta);
  for (const auto& [label, tensor] :
       {std::pair{"a", &GateBuffers::a}, std::pair{"b", &GateBuffers::b},
        std::pair{"a_log", &GateBuffers::a_log}, std::pair{"dt_bias", &GateBuffers::dt_bias}}) {
    if (failure) break;
    failure = check_unchanged(label, (*before.gates).*tensor, (*after.gates).*tensor);
  }
  return failure;
}

std::optional<std::string> check_outputs(const GroupedCase& problem, const GroupedBuffers& before,
                                         const GroupedBuffers& after, const Expected& expected,
                                         Verdict& verdict) {
  std::optional<std::string> failure;
  std::vector<std::int64_t> next(problem.groups.size(), 0);
  std::vector<TensorBuffer> images = before.outs;
  for_each_output(problem, [&](std::size_t i, std::int64_t row, std::int64_t channel, std::int64_t,
                               std::int64_t offset) {
    const std::int64_t at = next[i]++;
    const TensorBuffer& got = after.out(i);
    std::memcpy(images[problem.share_outputs ? 0 : i].element(offset), got.element(offset),
                static_cast<std::size_t>(element_bytes(got.spec().dtype)));
    ++verdict.outputs;
    if (failure || same_or_nan(got, offset, expected.outs[i], at)) return;
    failure = fmt::format("groups[{}].out: {}: got {}, expected {}", i,
                          locate_row(problem.call, row, channel), got.load(offset),
                          expected.outs[i].load(at));
  });
  for (std::size_t i = 0; !failure && i < images.size(); ++i) {
    if (std::ranges::equal(images[i].bytes(), after.outs[i].bytes())) continue;
    failure = fmt::format("groups[{}].out: a byte of no element was written", i);
  }
  return failure;
}

/// The difference to fp64 that a gate may have, relative to it.
double gate_error(const GateSpec& gates, bool is_beta, double exact) {
  constexpr double kError = 2e-6;
  if (!is_beta) {  // the relative error of exp(g) is the error of g
    const bool is_exponential = gates.decay == DecayForm::kExp && exact > 0;
    return is_exponential ? kError * (1 + std::fabs(std::log(exact))) : kError;
  }
  // A rounded beta may be the neighbor of the exact one's.
  if (gates.round_beta && gates.b.dtype == DType::kBF16) return 0x1p-7;
  if (gates.round_beta && gates.b.dtype == DType::kF16) return 0x1p-10;
  return kError;
}

std::optional<std::string> compare_gates(const GateSpec& gates, std::string_view label,
                                         const TensorBuffer& got, const TensorBuffer& wanted) {
  // Smaller results have fewer bits.
  const bool is_f16 = label == "beta" && gates.round_beta && gates.b.dtype == DType::kF16;
  const double smallest = is_f16 ? 0x1p-24 : 0x1p-126;
  std::optional<std::string> failure;
  for_each_element(got.spec(), [&](std::int64_t offset) {
    const double a = got.load(offset), b = wanted.load(offset);
    const double error = gate_error(gates, label == "beta", b);
    if (failure || std::fabs(a - b) <= error * std::fabs(b) + smallest) return;
    failure = fmt::format("{}: got {}, expected {}", label, a, b);
  });
  return failure;
}

}  // namespace

Verdict check_grouped(const GroupedCase& problem, BackendId backend) {
  const GroupedBuffers before = make_buffers(problem);
  const GroupedBuffers after = before;
  GroupedBuffers plain = before;
  Verdict verdict;
  const auto refuse = [&](std::string_view what, const Status& status) {
    (status.code() == Code::kUnsupported ? verdict.unsupported : verdict.failure) =
        fmt::format("{}: {}", what, status.message());
    return verdict;
  };
  if (Status status = run_grouped(problem, after, backend); !status.ok()) {
    return refuse("groups", status);
  }
  if (Status status = run_case(problem.call, plain.call, backend); !status.ok()) {
    return refuse("without groups", status);
  }
  Expected expected;
  if (Status status = compute_expected(problem, plain, backend, expected); !status.ok()) {
    return refuse("norms and gates", status);
  }
  verdict.failure = check_outputs(problem, before, after, expected, verdict);
  if (!verdict.failure && problem.gates) {
    verdict.failure = check_gates(problem, before, after, expected);
  }
  if (!verdict.failure && problem.call.state) {
    verdict.failure = compare_states(*after.call.state, *plain.call.state, true);
  }
  if (!verdict.failure && problem.call.state) {
    verdict.failure = check_gaps("state", *before.call.state, *after.call.state);
  }
  if (!verdict.failure) verdict.failure = check_unchanged("x", before.rows, after.rows);
  if (!verdict.failure && problem.call.violations) {
    verdict.failure = check_unchanged("violations", plain.call.violations, after.call.violations);
  }
  return verdict;
}

std::optional<std::string> check_group_operations(const GroupedCase& problem, BackendId backend) {
  Random random(problem.seed);
  for (const GroupSpec& group : problem.groups) {
    if (!group.l2_norm) continue;
    const TensorBuffer got(group.out);
    fill(got, random.next(), 3);
    const TensorBuffer wanted = got;
    for (const auto& [buffer, one] : {std::pair{&got, backend}, {&wanted, BackendId::kReference}}) {
      if (Status status = run_norm(*buffer, *group.l2_norm, one); !status.ok()) {
        return status.message();
      }
    }
    if (auto failure = compare_elements("l2_norm", got, wanted, true)) return failure;
  }
  if (!problem.gates) return std::nullopt;
  const GroupedBuffers got = make_buffers(problem);
  const GroupedBuffers wanted = got;
  for (const auto& [buffers, one] : {std::pair{&got, backend}, {&wanted, BackendId::kReference}}) {
    if (Status status = run_gates(*problem.gates, *buffers->gates, one); !status.ok()) {
      return status.message();
    }
  }
  auto failure = compare_gates(*problem.gates, "g", got.gates->g, wanted.gates->g);
  if (!failure)
    failure = compare_gates(*problem.gates, "beta", got.gates->beta, wanted.gates->beta);
  return failure;
}

}  // namespace shortconv::tools::verify
