#include "verify/backward_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/random.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"
#include "verify/check.hpp"
#include "verify/compare.hpp"
#include "verify/on_gpu.hpp"

namespace shortconv::tools::verify {
namespace {

bool is_index(const Argument& row) { return row.dtypes == DTypes::kIndex; }

/// Of a tensor's values, by its name.
std::uint64_t seed_of(const BackwardCase& problem, std::string_view name) {
  std::uint64_t seed = mix(problem.seed);
  for (const char letter : name) seed = mix(seed ^ static_cast<unsigned char>(letter));
  return seed;
}

void fill(const TensorBuffer& buffer, std::uint64_t seed) {
  constexpr double kScale = 0.7;
  std::uint64_t number = 0;
  for_each_element(buffer.spec(), [&](std::int64_t offset) {
    buffer.store(offset, kScale * normal_from(mix(seed ^ number++)));
  });
}

void fill_rows_without_a_sequence(const BackwardCase& problem, const BackwardBuffers& buffers) {
  std::vector<bool> has_sequence(static_cast<std::size_t>(problem.rows()));
  for (const Part& part : problem.parts()) {
    std::fill(has_sequence.begin() + part.begin, has_sequence.begin() + part.end, true);
  }
  for (const auto* tensor :
       {&buffers.x, &buffers.grad_out, &buffers.input_gate, &buffers.output_gate}) {
    for (std::int64_t row = 0; *tensor && row < problem.rows(); ++row) {
      for (std::int64_t c = 0;
           !has_sequence[static_cast<std::size_t>(row)] && c < problem.channels(); ++c) {
        (*tensor)->store((*tensor)->spec().row_offset(row, c),
                         std::numeric_limits<double>::quiet_NaN());
      }
    }
  }
}

BackwardArgs make_arguments(const BackwardCase& problem, const BackwardBuffers& buffers,
                            BackendId backend) {
  BackwardArgs args;
  visit_backward_tensors(
      [](const Argument&, const auto& buffer, auto& tensor) {
        if (buffer) tensor = buffer->view();
      },
      buffers, args);
  args.dilation = problem.dilation;
  args.activation = problem.activation;
  args.residual = problem.residual;
  args.accumulate = problem.accumulate;
  args.backend = backend;
  args.threads = problem.threads;
  return args;
}

/// What the plan of a call on the GPU asks for; `args` have their tensors on the host.
Status find_workspace_bytes(BackwardArgs args, std::int64_t& bytes) {
  visit_backward_tensors(
      [](const Argument&, auto& tensor) {
        if constexpr (std::is_same_v<decltype(tensor), TensorRef&>) {
          tensor.device = {DeviceType::kCuda, 0};
        } else if (tensor) {
          tensor->device = {DeviceType::kCuda, 0};
        }
      },
      args);
  BackwardProblem problem;
  BackwardPlan plan;
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  if (status.ok()) bytes = workspace_bytes(plan);
  return status;
}

}  // namespace

std::int64_t BackwardCase::rows() const {
  return x->shape.size() == 2 ? x->shape[0] : x->shape[0] * x->shape[1];
}

std::vector<Part> BackwardCase::parts() const {
  std::vector<Part> parts;
  for (std::int64_t s = 0; s < sequences(); ++s) {
    const std::int64_t begin = starts[s], end = starts[s + 1];
    if (!seq_idx || begin == end || numbers[begin] < 0) {
      parts.push_back({.sequence = s, .begin = begin, .end = seq_idx ? begin : end});
    }
    for (std::int64_t row = begin; seq_idx && row < end;) {
      std::int64_t next = row + 1;
      while (next < end && numbers[next] == numbers[row]) ++next;
      if (numbers[row] >= 0) {
        parts.push_back({.sequence = s, .begin = row, .end = next, .has_states = row == begin});
      }
      row = next;
    }
  }
  return parts;
}

std::vector<const TensorBuffer*> BackwardBuffers::tensors() const {
  std::vector<const TensorBuffer*> list;
  visit_backward_tensors(
      [&](const Argument&, const auto& buffer) {
        if (buffer) list.push_back(&*buffer);
      },
      *this);
  return list;
}

BackwardBuffers make_buffers(const BackwardCase& problem) {
  BackwardBuffers buffers;
  visit_backward_tensors(
      [&](const Argument& row, const auto& spec, auto& buffer) {
        if (!spec) return;
        if (is_index(row)) {
          const bool bounds = &spec == &problem.query_start_loc;
          buffer = index_buffer(IndexTensor{*spec, bounds ? problem.starts : problem.numbers});
          return;
        }
        buffer.emplace(*spec);
        if (!is_written(row.access) || problem.accumulate) {
          fill(*buffer, seed_of(problem, row.name));
        }
      },
      problem, buffers);
  fill_rows_without_a_sequence(problem, buffers);
  return buffers;
}

Status run_case(const BackwardCase& problem, const BackwardBuffers& buffers, BackendId backend) {
  BackwardArgs args = make_arguments(problem, buffers, backend);
  if (backend != BackendId::kCuda) return backward(args);
  std::int64_t bytes = 0;
  if (Status status = find_workspace_bytes(args, bytes); !status.ok()) return status;
  const TensorBuffer workspace(dense(DType::kU8, {bytes}));  // full of NaN
  const TensorBuffer before = workspace;
  args.workspace = workspace.element(0);
  args.workspace_bytes = bytes;
  std::vector<const TensorBuffer*> tensors = buffers.tensors();
  tensors.push_back(&workspace);
  if (Status status = backward_on_gpu(args, tensors); !status.ok()) return status;
  const auto failure = check_gaps("workspace", before, workspace);
  return failure ? Status{Code::kInternal, *failure} : Status{};
}

double input_of(const BackwardCase& problem, const BackwardBuffers& buffers, const Part& part,
                std::int64_t n, std::int64_t channel) {
  if (n < 0) {
    if (!part.has_states || !buffers.initial_state) return 0;
    const TensorBuffer& state = *buffers.initial_state;
    return state.load(state.spec().offset({part.sequence, problem.history() + n, channel}));
  }
  const std::int64_t row = part.begin + n;
  const double x = buffers.x->load(problem.x->row_offset(row, channel));
  if (!buffers.input_gate) return x;
  const double gate = buffers.input_gate->load(problem.input_gate->row_offset(row, channel));
  return rounded_to(problem.x->dtype, x * gate);
}

std::vector<std::pair<std::string_view, std::string>> traits(const BackwardCase& problem) {
  const auto text = [](std::string_view value) { return std::string(value); };
  const auto yes = [](bool value) { return std::string(value ? "yes" : "no"); };
  const Epilogue epilogue = problem.residual      ? Epilogue::kResidual
                            : problem.output_gate ? Epilogue::kOutputGate
                                                  : Epilogue::kNone;
  return {{"op", "backward"},
          {"width", std::to_string(problem.width)},
          {"dtype", text(name(problem.x->dtype))},
          {"weight", text(name(problem.weight->dtype))},
          {"state", problem.initial_state ? text(name(problem.initial_state->dtype)) : "none"},
          {"dilation", std::to_string(problem.dilation)},
          {"activation", text(name(problem.activation))},
          {"epilogue", text(name(epilogue))},
          {"input-gate", yes(problem.input_gate.has_value())},
          {"bias", yes(problem.bias.has_value())},
          {"packed", yes(problem.query_start_loc.has_value())},
          {"threads", std::to_string(problem.threads)},
          {"numbered", yes(problem.seq_idx.has_value())},
          {"final-state", yes(problem.grad_final_state.has_value())},
          {"accumulate", yes(problem.accumulate)},
          {"fast", yes(problem.is_fast)}};
}

TraitValues possible_backward_traits() {
  const Capabilities& can = capabilities();
  const auto names_of = [](const auto& list) {
    std::vector<std::string> names;
    for (const auto& entry : list) names.emplace_back(entry.name);
    return names;
  };
  const std::vector<std::string> types = names_of(can.dtypes), yes_or_no{"no", "yes"};
  std::vector<std::string> widths, state_types = types;
  for (int width = 2; width <= can.max_width; ++width) widths.push_back(std::to_string(width));
  state_types.emplace_back("none");
  return {{"op", {"backward"}},
          {"width", widths},
          {"dtype", types},
          {"weight", types},
          {"state", state_types},
          {"dilation", {"1", "2", "3", "4", "63"}},
          {"activation", names_of(can.activations)},
          {"epilogue", names_of(can.epilogues)},
          {"input-gate", yes_or_no},
          {"bias", yes_or_no},
          {"packed", yes_or_no},
          {"threads", {"1", "2", "3"}},
          {"numbered", yes_or_no},
          {"final-state", yes_or_no},
          {"accumulate", yes_or_no},
          {"fast", yes_or_no}};
}

std::string to_string(const BackwardCase& problem) {
  std::string text = fmt::format("case {}\n ", problem.seed);
  for (const auto& [key, value] : traits(problem)) text += fmt::format(" {}={}", key, value);
  text += "\n";
  visit_backward_tensors(
      [&](const Argument& row, const auto& spec) {
        if (spec && !is_index(row)) text += fmt::format("  {} {}\n", row.name, describe(*spec));
      },
      problem);
  const auto index = [](const auto& spec, const std::vector<std::int64_t>& values) {
    return spec ? std::optional(IndexTensor{*spec, values}) : std::nullopt;
  };
  return text + describe("query_start_loc", index(problem.query_start_loc, problem.starts)) +
         describe("seq_idx", index(problem.seq_idx, problem.numbers));
}

}  // namespace shortconv::tools::verify
