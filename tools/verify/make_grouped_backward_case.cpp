// Random backward calls with groups.
#include <algorithm>
#include <numeric>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "verify/grouped_backward_case.hpp"
#include "verify/place_heads.hpp"

namespace shortconv::tools::verify {
namespace {

/// Heads of a group within each of the blocks of a row.
struct BlockPart {
  std::int64_t heads = 1, head_dim = 1;
  bool copy = false, normalize = false;
};

std::vector<std::int64_t> with_last(std::vector<std::int64_t> shape,
                                    std::initializer_list<std::int64_t> last) {
  shape.pop_back();
  shape.insert(shape.end(), last);
  return shape;
}

/// f64, which only the reference backend has, now and then.
DType any_dtype(Random& random) {
  return random.chance(0.1) ? DType::kF64 : random.pick(capabilities().dtypes).value;
}

/// Rows and heads at multiples of 8 bytes, perhaps with gaps that keep that.
TensorSpec lay_out_aligned(Random& random, DType dtype, const std::vector<std::int64_t>& shape) {
  const std::int64_t unit = 8 / std::min<std::int64_t>(element_bytes(dtype), 8);
  TensorSpec spec = dense(dtype, shape);
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    spec.strides[axis] = stride;
    stride = (stride * std::max<std::int64_t>(shape[axis], 1) + unit - 1) / unit * unit;
    if (random.chance(0.25)) stride += unit * random.pick({1, 2, 4, 16});
  }
  if (random.chance(0.2)) spec.origin = unit;  // 8 bytes, but not 16
  spec.elements = spec.origin + stride;
  return spec;
}

/// Axes in any order; the last one adjacent if `is_adjacent`.
TensorSpec lay_out_freely(Random& random, DType dtype, const std::vector<std::int64_t>& shape,
                          bool is_adjacent) {
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  if (random.chance(0.3)) random.shuffle(std::span(order).first(order.size() - is_adjacent));
  const bool odd = !is_adjacent && random.chance(0.15);
  return lay_out(random, dtype, shape, order,
                 {.inner_stride = odd ? 2 : 1,
                  .padding = random.chance(0.4) ? 0 : 0.35,
                  .reversal = odd ? 0.3 : 0});
}

/// The rows, types and options of a call without groups.
BackwardCase draw_call(Random& random, bool is_fast) {
  for (;;) {
    BackwardCase call = make_backward_case(random.next());
    if (call.is_fast != is_fast) continue;
    call.grad_out.reset();
    for (auto* tensor :
         {&call.input_gate, &call.output_gate, &call.grad_input_gate, &call.grad_output_gate}) {
      tensor->reset();
    }
    for (auto* tensor : {&call.initial_state, &call.grad_final_state, &call.grad_initial_state}) {
      tensor->reset();
    }
    call.residual = false;
    call.dilation = 1;
    if (is_fast) call.width = static_cast<int>(random.between(2, 4));
    if (!is_fast && random.chance(0.1)) {
      call.x->dtype = DType::kF64;
      if (call.grad_x) call.grad_x->dtype = DType::kF64;
    }
    return call;
  }
}

std::vector<BlockPart> draw_parts(Random& random, const GroupedBackwardCase& problem,
                                  std::int64_t blocks) {
  const DType dtype = problem.call.x->dtype;
  const std::int64_t unit = problem.is_fast ? 8 / element_bytes(dtype) : 1;
  std::int64_t left = problem.call.rows() > 150 ? 160 : 640;  // columns
  std::vector<BlockPart> parts;
  const std::int64_t count = random.between(1, 5);
  for (std::int64_t i = 0; i < count; ++i) {
    BlockPart part{.copy = random.chance(i == 0 ? 0.03 : 0.25)};
    part.normalize = !part.copy && random.chance(0.5);
    if (!problem.is_fast) {
      part.head_dim = random.pick({1, 2, 3, 5, 8, 16, 24, 40, 64, 96, 100, 128, 130});
    } else if (part.normalize) {
      part.head_dim = random.pick({8, 16, 32, 64, dtype == DType::kF32 ? 64 : 128});
    } else {
      part.head_dim = unit * random.pick({1, 2, 3, 4, 8, 16, 24, 32, 64});
    }
    if (part.head_dim * blocks > left) part.head_dim = problem.is_fast ? 8 : random.between(1, 4);
    const std::int64_t most = std::clamp<std::int64_t>(left / (part.head_dim * blocks), 1, 4);
    part.heads = random.between(1, most);
    left = std::max<std::int64_t>(left - part.heads * part.head_dim * blocks, 16);
    parts.push_back(part);
  }
  return parts;
}

/// Gives each group its columns, in any order and with columns of no group, and returns their
/// number.
std::int64_t place_groups(Random& random, GroupedBackwardCase& problem, std::int64_t blocks,
                          const std::vector<BlockPart>& parts) {
  const std::int64_t unit = problem.is_fast ? 8 / element_bytes(problem.call.x->dtype) : 1;
  std::int64_t column = 0;
  problem.groups.resize(parts.size());
  for (const std::int64_t number : shuffled(random, std::ssize(parts))) {
    const auto i = static_cast<std::size_t>(number);
    const std::int64_t gap = random.chance(0.15) ? unit * random.between(1, 5) : 0;
    if (random.chance(0.25)) column += unit * random.between(1, 7);
    problem.groups[i].input =
        place_heads(random, blocks, parts[i].heads, parts[i].head_dim, gap, column);
  }
  for (GroupSpec& group : problem.groups) group.input.block_stride = blocks > 1 ? column : 0;
  return blocks * column + (random.chance(0.3) ? random.between(0, 9) : 0);
}

/// Column slices of one tensor, if the groups have one dtype.
void share_gradients(Random& random, GroupedBackwardCase& problem) {
  std::int64_t columns = 0;
  for (const GroupSpec& group : problem.groups) {
    if (group.out.dtype != problem.groups[0].out.dtype) return;
    columns += group.heads() * group.head_dim();
  }
  problem.share_gradients = true;
  const std::vector<std::int64_t> shape = with_last(problem.call.x->shape, {columns});
  const DType dtype = problem.groups[0].out.dtype;
  const TensorSpec all = problem.is_fast ? lay_out_aligned(random, dtype, shape)
                                         : lay_out_freely(random, dtype, shape, true);
  std::int64_t column = 0;
  for (GroupSpec& group : problem.groups) {
    const std::int64_t heads = group.heads(), head_dim = group.head_dim();
    group.out = all;
    group.out.shape = with_last(all.shape, {heads, head_dim});
    group.out.strides = with_last(all.strides, {head_dim, 1});
    group.out.origin = all.origin + column;
    column += heads * head_dim;
  }
}

void draw_groups(Random& random, GroupedBackwardCase& problem) {
  const std::int64_t blocks = random.chance(0.5) ? 1 : random.between(2, 4);
  const std::vector<BlockPart> parts = draw_parts(random, problem, blocks);
  BackwardCase& call = problem.call;
  const DType dtype = call.x->dtype;
  const std::int64_t columns = place_groups(random, problem, blocks, parts);
  std::int64_t channels = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    GroupSpec& group = problem.groups[i];
    const BlockPart& part = parts[i];
    group.copy = part.copy;
    const bool other_type = !problem.is_fast && !part.copy && random.chance(0.4);
    const DType type = other_type ? any_dtype(random) : dtype;
    const std::vector<std::int64_t> shape =
        with_last(call.x->shape, {blocks * part.heads, part.head_dim});
    group.out = problem.is_fast ? lay_out_aligned(random, type, shape)
                                : lay_out_freely(random, type, shape, true);
    if (!part.copy) channels += blocks * part.heads * part.head_dim;
    if (!part.normalize) continue;
    group.l2_norm.emplace();
    if (random.chance(0.3)) group.l2_norm->eps = 1e-3f;
    if (random.chance(0.3)) group.l2_norm->scale = random.pick({0.08838834764f, -1.5f});
  }
  if (random.chance(0.3)) share_gradients(random, problem);

  const auto lay_out_rows = [&](std::optional<TensorSpec>& spec) {
    if (!spec) return;
    const std::vector<std::int64_t> shape = with_last(spec->shape, {columns});
    spec = problem.is_fast ? lay_out_aligned(random, dtype, shape)
                           : lay_out_freely(random, dtype, shape, random.chance(0.7));
  };
  lay_out_rows(call.x);
  lay_out_rows(call.grad_x);
  for (auto* spec : {&call.weight, &call.grad_weight}) {
    if (!*spec) continue;
    *spec = lay_out_freely(random, (*spec)->dtype, {channels, call.width}, false);
  }
  for (auto* spec : {&call.bias, &call.grad_bias}) {
    if (*spec) *spec = lay_out_freely(random, (*spec)->dtype, {channels}, false);
  }
}

/// Columns of a and b for `blocks` blocks of `in_block` heads; in one tensor b is before a.
void place_gates(Random& random, GateGradientSpec& gates, std::int64_t blocks,
                 std::int64_t in_block, std::int64_t& columns_of_a, std::int64_t& columns_of_b) {
  const auto of_one = [&](HeadMap& map) {
    std::int64_t column = random.between(0, 3);
    const std::int64_t first = column;
    map = place_heads(random, blocks, in_block, 1, random.chance(0.1) ? 1 : 0, column);
    const std::int64_t block = column - first + random.between(0, 3);
    map.block_stride = blocks > 1 ? block : 0;
    return first + blocks * block;
  };
  if (!gates.share_columns) {
    columns_of_a = of_one(gates.a_map);
    columns_of_b = of_one(gates.b_map);
    return;
  }
  gates.b_map = {.block_heads = in_block, .block_stride = 2 * in_block};
  gates.a_map = gates.b_map;
  gates.a_map.offset = in_block;
  columns_of_a = columns_of_b = blocks * 2 * in_block;
}

void draw_gates(Random& random, GroupedBackwardCase& problem) {
  GateGradientSpec& gates = problem.gates.emplace();
  gates.share_columns = random.chance(0.4);
  const std::int64_t blocks = random.between(1, 4), in_block = random.between(1, 4);
  const std::int64_t heads = blocks * in_block;
  std::int64_t columns_of_a = 0, columns_of_b = 0;
  place_gates(random, gates, blocks, in_block, columns_of_a, columns_of_b);
  const auto type = [&] {
    if (!problem.is_fast) return any_dtype(random);
    return random.pick({DType::kF32, DType::kF16, DType::kBF16});
  };
  const auto rows = [&](std::optional<TensorSpec>& spec, DType dtype, std::int64_t columns) {
    spec = lay_out_freely(random, dtype, with_last(problem.call.x->shape, {columns}), false);
  };
  const auto list = [&](std::optional<TensorSpec>& spec, DType dtype) {
    spec = lay_out_list(random, dtype, heads);
  };
  const DType dtype = random.chance(0.7) ? problem.call.x->dtype : type();
  rows(gates.a, dtype, columns_of_a);
  rows(gates.b, dtype, columns_of_b);
  if (gates.share_columns) gates.b = gates.a;
  list(gates.a_log, DType::kF32);
  list(gates.dt_bias, random.chance(0.5) ? DType::kF32 : type());
  rows(gates.grad_g, DType::kF32, heads);
  rows(gates.grad_beta, DType::kF32, heads);
  const auto wanted = [&] { return random.chance(0.85); };
  const auto like = [&](DType input) { return random.chance(0.7) ? input : type(); };
  if (wanted()) rows(gates.grad_a, like(dtype), columns_of_a);
  if (wanted()) rows(gates.grad_b, like(dtype), columns_of_b);
  if (wanted()) list(gates.grad_a_log, DType::kF32);
  if (wanted()) list(gates.grad_dt_bias, like(gates.dt_bias->dtype));
  if (random.chance(0.3)) gates.decay = DecayForm::kExp;
  if (random.chance(0.3)) gates.beta_factor = 2;
}

}  // namespace

GroupedBackwardCase make_grouped_backward_case(std::uint64_t seed) {
  Random random(seed ^ 0x6772616473);
  GroupedBackwardCase problem;
  problem.seed = seed;
  problem.is_fast = random.chance(0.75);
  problem.call = draw_call(random, problem.is_fast);
  problem.call.seed = seed;
  draw_groups(random, problem);
  if (random.chance(0.5)) draw_gates(random, problem);
  return problem;
}

}  // namespace shortconv::tools::verify
