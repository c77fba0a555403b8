// Random cases for kernels that do not take everything.
#include <numeric>
#include <utility>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "verify/case.hpp"

namespace shortconv::tools::verify {
namespace {

constexpr std::int64_t kGroup = 4;  // channels

/// Aligned and without gaps; the last two axes may change places.
TensorSpec packed(Random& random, DType dtype, const std::vector<std::int64_t>& shape, bool swaps) {
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  if (swaps) std::swap(order[order.size() - 1], order[order.size() - 2]);
  TensorSpec spec = lay_out(random, dtype, shape, order, {.padding = 0});
  spec.elements -= std::exchange(spec.origin, 0);
  return spec;
}

bool overlap(WindowsKind kind) {
  return kind == WindowsKind::kOverlapping || kind == WindowsKind::kOverlappingSlots;
}

TensorSpec packed_windows(Random& random, const Case& problem) {
  const std::vector<std::int64_t>& shape = problem.windows->shape;
  const DType dtype = problem.state->dtype;
  if (!overlap(problem.windows_kind)) return packed(random, dtype, shape, random.chance(0.4));
  const std::int64_t columns = std::max<std::int64_t>(shape[1] + shape[2] - 1, 0);
  TensorSpec spec = dense(dtype, {shape[0], columns, shape[3]});
  spec.strides = {spec.strides[0], spec.strides[1], spec.strides[1], spec.strides[2]};
  spec.shape = shape;
  return spec;
}

void pack(Random& random, Case& problem) {
  if (problem.layout != Layout::kChannelMajor) {
    problem.layout = Layout::kTokenMajor;
    problem.x = packed(random, problem.x.dtype, problem.x.shape, false);
    problem.out = problem.x;
    for (std::optional<TensorSpec>* gate : {&problem.input_gate, &problem.output_gate}) {
      if (*gate) *gate = problem.x;
    }
  }
  if (random.chance(0.8)) {
    problem.weight = packed(random, problem.weight.dtype, problem.weight.shape, false);
    if (problem.bias) problem.bias = dense(problem.bias->dtype, problem.bias->shape);
  }
  if (!problem.state) return;
  const TensorSpec& state = problem.state.emplace(
      packed(random, problem.state->dtype, problem.state->shape, random.chance(0.4)));
  if (!problem.windows) return;
  if (problem.windows_kind == WindowsKind::kPool) {
    problem.windows->strides = {state.strides[0], state.strides[1], state.strides[1],
                                state.strides[2]};
    problem.windows->origin = problem.base_column * state.strides[1];
    problem.windows->elements = state.elements;
  } else {
    problem.windows = packed_windows(random, problem);
  }
}

void use_type(Case& problem, DType dtype) {
  problem.weight.dtype = problem.weight.dtype == problem.x.dtype ? dtype : DType::kF32;
  problem.x.dtype = dtype;
  problem.out.dtype = dtype;
  if (problem.bias) problem.bias->dtype = problem.weight.dtype;
  if (problem.state) problem.state->dtype = dtype;
  if (problem.windows) problem.windows->dtype = dtype;
  for (std::optional<TensorSpec>* gate : {&problem.input_gate, &problem.output_gate}) {
    if (*gate) (*gate)->dtype = dtype;
  }
}

bool decodes_single_tokens(const Case& problem) {
  return problem.op == Op::kDecode && problem.rows() == problem.sequences();
}

/// A history of one more column.
bool has_room_for_older(const Case& problem) {
  const bool ordered = !problem.cache_seqlens && !problem.snapshots;
  return ordered && problem.state->shape[1] > problem.history();
}
void keep_one_older(Case& problem) {
  problem.shift_full_state = true;
  problem.base_column = 1;
  problem.read_offsets.reset();
}

/// Ordered states, gates perhaps, and nothing else that is rare.
bool is_ordinary(const Case& problem) {
  const bool rare = problem.cache_seqlens || problem.snapshots || problem.intermediate_slots ||
                    problem.shift_full_state || problem.seq_idx;
  return !rare && problem.weight.dtype == problem.x.dtype;
}
bool has_gates(const Case& problem) { return problem.input_gate || problem.output_gate; }
bool may_have_f32_states(const Case& problem) {
  return problem.state && !problem.seq_idx && problem.schedule == Schedule::kFlat;
}
void leave_out_gates(Case& problem) {
  problem.input_gate.reset();
  problem.output_gate.reset();
  if (problem.epilogue == Epilogue::kOutputGate) problem.epilogue = Epilogue::kNone;
}

}  // namespace

Case make_fast_case(std::uint64_t seed, DType dtype) {
  Random random(seed);
  const bool wants_decode = random.chance(0.25);
  const bool wants_older = wants_decode && random.chance(0.35);
  const bool wants_gates = !wants_older && random.chance(0.2);
  const bool wants_drafts = wants_gates && !wants_decode && random.chance(0.4);
  const bool wants_f32_states = !wants_gates && dtype != DType::kF32 && random.chance(0.25);
  for (std::uint64_t drawn = mix(seed);; drawn = mix(drawn)) {
    Case problem = make_case(drawn);
    const bool groups = problem.channels() % kGroup == 0 || problem.layout == Layout::kChannelMajor;
    if (problem.dilation != 1 || problem.width > capabilities().widths.back() || !groups) continue;
    // Further widths have fewer kernels.
    if (problem.width > capabilities().model_widths.back() && random.chance(0.7)) continue;
    if (wants_decode && !decodes_single_tokens(problem)) continue;
    if (wants_older && !has_room_for_older(problem)) continue;
    if (wants_older) keep_one_older(problem);
    if (wants_gates && !(is_ordinary(problem) && has_gates(problem))) continue;
    if (wants_drafts && problem.op != Op::kVerify) continue;
    if (wants_f32_states && !may_have_f32_states(problem)) continue;
    if (!wants_gates) leave_out_gates(problem);
    use_type(problem, dtype);
    if (wants_f32_states) problem.state->dtype = DType::kF32;
    if (wants_f32_states && problem.windows) problem.windows->dtype = DType::kF32;
    if (random.chance(0.9)) pack(random, problem);
    if (problem.in_place) problem.out = problem.x;
    problem.seed = seed;
    return problem;
  }
}

}  // namespace shortconv::tools::verify
