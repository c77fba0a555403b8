// Random backward calls.
#include <algorithm>
#include <numeric>

#include "common/random.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"
#include "verify/backward_case.hpp"

namespace shortconv::tools::verify {
namespace {

DType any_dtype(Random& random) { return random.pick(capabilities().dtypes).value; }

/// Any strides. With the last two axes swapped, rows are channels-first.
TensorSpec lay_out_freely(Random& random, DType dtype, const std::vector<std::int64_t>& shape) {
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  if (shape.size() > 1 && random.chance(0.4)) {
    std::swap(order[order.size() - 1], order[order.size() - 2]);
  } else if (random.chance(0.1)) {
    random.shuffle(order);
  }
  const bool odd = random.chance(0.15);
  return lay_out(random, dtype, shape, order,
                 {.inner_stride = odd ? 2 : 1,
                  .padding = random.chance(0.4) ? 0 : 0.35,
                  .reversal = odd ? 0.3 : 0});
}

/// Channels innermost, aligned to 8 bytes at least, perhaps with gaps between rows that keep that.
TensorSpec lay_out_aligned(Random& random, DType dtype, std::vector<std::int64_t> shape) {
  const std::int64_t channels = shape.back();
  shape.back() += random.chance(0.5) ? 0 : random.pick({4, 8, 16});
  TensorSpec spec = dense(dtype, std::move(shape));
  spec.shape.back() = channels;
  if (random.chance(0.2)) spec.origin = 8 / element_bytes(dtype);
  spec.elements += spec.origin;
  return spec;
}

/// Tokens innermost, in runs of a multiple of 16 bytes.
TensorSpec lay_out_runs(Random& random, DType dtype, const std::vector<std::int64_t>& shape) {
  const std::size_t axes = shape.size();
  const std::int64_t tokens = shape[axes - 2], channels = shape[axes - 1];
  const std::int64_t run = (tokens + 7) / 8 * 8 + (random.chance(0.5) ? 0 : 8);
  TensorSpec spec = dense(dtype, shape);
  spec.strides[axes - 1] = run;
  spec.strides[axes - 2] = 1;
  if (axes == 3) spec.strides[0] = channels * run;
  spec.elements = (axes == 3 ? shape[0] : 1) * channels * run;
  return spec;
}

bool has_rows(const Argument& row) {
  return row.sizes[1] == Size::kTokens && row.sizes[2] == Size::kChannels;
}

/// Strides and alignment of all tensors; their types and shapes are there.
void lay_out_tensors(Random& random, BackwardCase& problem) {
  const bool aligned = problem.is_fast;
  const bool plain = !problem.input_gate && !problem.output_gate && !problem.residual;
  const bool runs = aligned && plain && problem.width <= 4 && random.chance(0.4);
  visit_backward_tensors(
      [&](const Argument& row, auto& spec) {
        if (!spec) return;
        if (row.dtypes == DTypes::kIndex && spec->shape.size() == 1) {
          spec = lay_out_list(random, spec->dtype, spec->shape[0]);
        } else if (aligned && has_rows(row)) {
          spec = runs ? lay_out_runs(random, spec->dtype, spec->shape)
                      : lay_out_aligned(random, spec->dtype, spec->shape);
        } else {
          spec = lay_out_freely(random, spec->dtype, spec->shape);
        }
      },
      problem);
}

/// Sequences of up to `most` rows in all.
void draw_rows(Random& random, BackwardCase& problem, DType dtype, std::int64_t channels,
               std::int64_t most) {
  enum class Kind { kPacked, kDense, kNumbered, kOneNumbered, kOne };
  const Kind kind = random.pick({Kind::kPacked, Kind::kPacked, Kind::kDense, Kind::kNumbered,
                                 Kind::kOneNumbered, Kind::kOne});
  std::int64_t sequences = random.between(1, random.chance(0.2) ? 40 : 5);
  if (kind == Kind::kPacked && random.chance(0.05)) sequences = 0;
  if (kind == Kind::kOne || kind == Kind::kOneNumbered) sequences = 1;
  std::int64_t length = random.between(0, most / std::max<std::int64_t>(sequences, 1));
  if (random.chance(0.3)) length = length / 8 * 8;
  problem.starts = {kind == Kind::kPacked ? random.between(0, 3) : 0};
  for (std::int64_t s = 0; s < sequences; ++s) {
    const bool empty = kind == Kind::kPacked && random.chance(0.2);
    const std::int64_t tokens = kind == Kind::kPacked ? random.between(0, length) : length;
    problem.starts.push_back(problem.starts.back() + (empty ? 0 : tokens));
  }
  const DType index = random.pick({DType::kI32, DType::kI64});
  std::vector<std::int64_t> shape = {sequences, length};
  if (kind == Kind::kPacked) {
    problem.query_start_loc = dense(index, {sequences + 1});
    shape = {problem.starts.back() + random.between(0, 3)};
  } else if (kind == Kind::kOne || kind == Kind::kOneNumbered) {
    shape = {length};
  }
  if (kind == Kind::kNumbered || kind == Kind::kOneNumbered) {
    const double change = random.pick({0.2, 0.05, 0.01});
    std::int64_t number = 0;
    for (std::int64_t row = 0; row < sequences * length; ++row) {
      if (random.chance(change)) number = random.between(-2, 9);
      problem.numbers.push_back(number);
    }
    problem.seq_idx = dense(index, shape);
  }
  shape.push_back(channels);
  problem.x = dense(dtype, std::move(shape));
}

void draw_inputs(Random& random, BackwardCase& problem) {
  const DType dtype = problem.x->dtype;
  const std::vector<std::int64_t>& rows = problem.x->shape;
  const DType other = problem.is_fast ? DType::kF32 : any_dtype(random);
  const DType weight_dtype = random.chance(0.5) ? dtype : other;
  problem.grad_out = dense(problem.is_fast ? dtype : any_dtype(random), rows);
  problem.weight = dense(weight_dtype, {problem.channels(), problem.width});
  if (random.chance(0.5)) problem.bias = dense(weight_dtype, {problem.channels()});
  const double rare = problem.is_fast ? 0.15 : 0.3;
  if (random.chance(rare)) problem.input_gate = dense(dtype, rows);
  if (random.chance(rare)) problem.output_gate = dense(dtype, rows);
  problem.residual = !problem.input_gate && !problem.output_gate && random.chance(rare);
  const std::vector<std::int64_t> states = {problem.sequences(), problem.history(),
                                            problem.channels()};
  // About half of the calls have states: there are kernels for calls with and without.
  if (random.chance(0.3)) problem.initial_state = dense(any_dtype(random), states);
  if (!problem.seq_idx && random.chance(0.3)) {
    problem.grad_final_state = dense(any_dtype(random), states);
  }
}

void draw_gradients(Random& random, BackwardCase& problem) {
  constexpr double kWanted = 0.9;
  const auto want = [&](auto& gradient, const std::optional<TensorSpec>& input, bool or_f32) {
    if (!input || !random.chance(kWanted)) return;
    gradient = input;
    if (or_f32 && random.chance(0.5)) gradient->dtype = DType::kF32;
  };
  want(problem.grad_x, problem.x, false);
  want(problem.grad_weight, problem.weight, true);
  want(problem.grad_bias, problem.bias, true);
  want(problem.grad_initial_state, problem.initial_state, true);
  want(problem.grad_input_gate, problem.input_gate, false);
  want(problem.grad_output_gate, problem.output_gate, false);
  const auto is_f32 = [](const auto& spec) { return !spec || spec->dtype == DType::kF32; };
  problem.accumulate =
      is_f32(problem.grad_weight) && is_f32(problem.grad_bias) && random.chance(0.3);
}

}  // namespace

BackwardCase make_backward_case(std::uint64_t seed, std::span<const std::uint8_t> choices) {
  Random random(seed, choices);
  BackwardCase problem;
  problem.seed = seed;
  problem.is_fast = random.chance(0.65);
  problem.width = problem.is_fast ? random.pick(capabilities().widths) : make_width(random);
  if (problem.is_fast && random.chance(0.3)) problem.width = random.between(2, 4);
  if (!problem.is_fast && random.chance(0.2)) {
    const int most = (capabilities().max_width - 1) / (problem.width - 1);
    problem.dilation =
        problem.width == 2 && random.chance(0.3) ? most : std::min(random.pick({2, 3, 4}), most);
  }
  problem.activation = random.pick(capabilities().activations).value;
  problem.threads = random.pick({1, 1, 2, 3});
  const DType dtype = any_dtype(random);
  std::int64_t channels = random.chance(0.1) ? random.between(250, 530) : random.between(1, 70);
  if (problem.is_fast) {
    const std::int64_t group = 8 / element_bytes(dtype) * (random.chance(0.5) ? 1 : 2);
    channels = group * random.between(1, random.chance(0.3) ? 40 : 8);
  }
  const bool is_long = channels < 100 && random.chance(0.3);
  draw_rows(random, problem, dtype, channels, is_long ? 600 : 120);
  draw_inputs(random, problem);
  draw_gradients(random, problem);
  lay_out_tensors(random, problem);
  return problem;
}

BackwardCase with_other_layouts(const BackwardCase& problem, std::uint64_t seed) {
  Random random(mix(seed));
  BackwardCase other = problem;
  visit_backward_tensors(
      [&](const Argument& row, auto& spec) {
        if (is_written(row.access) && random.chance(0.3)) spec.reset();
      },
      other);
  other.is_fast = random.chance(0.3) && problem.is_fast;
  other.threads = random.pick({1, 2, 3});
  lay_out_tensors(random, other);
  return other;
}

}  // namespace shortconv::tools::verify
