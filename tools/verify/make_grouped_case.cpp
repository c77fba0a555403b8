#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "verify/grouped_case.hpp"
#include "verify/place_heads.hpp"

namespace shortconv::tools::verify {
namespace {

/// Heads of a group within each of the blocks of a row.
struct BlockPart {
  std::int64_t heads = 1, head_dim = 1;
  bool copy = false;
};

TensorSpec any_order(Random& random, DType dtype, const std::vector<std::int64_t>& shape,
                     double padding) {
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order);
  return lay_out(random, dtype, shape, order, {.padding = padding});
}

/// Rows in memory order, with gaps between them at times.
TensorSpec row_major(Random& random, DType dtype, const std::vector<std::int64_t>& shape,
                     double padding) {
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  TensorSpec spec = lay_out(random, dtype, shape, order, {.padding = padding});
  if (spec.strides.back() != 1) return dense(dtype, shape);
  if (padding == 0) spec.origin = 0;  // aligned
  return spec;
}

std::vector<std::int64_t> with_last(std::vector<std::int64_t> shape,
                                    std::initializer_list<std::int64_t> last) {
  shape.pop_back();
  shape.insert(shape.end(), last);
  return shape;
}

/// The same call over another number of channels.
void set_channels(Random& random, Case& problem, std::int64_t channels, double padding) {
  problem.layout = Layout::kTokenMajor;
  const auto rows = [&](TensorSpec& spec) {
    spec = row_major(random, spec.dtype, with_last(spec.shape, {channels}), padding);
  };
  rows(problem.x);
  problem.out = dense(problem.out.dtype, problem.x.shape);
  if (problem.input_gate) rows(*problem.input_gate);
  if (problem.output_gate) rows(*problem.output_gate);
  problem.weight =
      any_order(random, problem.weight.dtype, {channels, problem.weight.shape[1]}, padding);
  if (problem.bias) problem.bias = dense(problem.bias->dtype, {channels});
  if (problem.state) {
    problem.state = any_order(random, problem.state->dtype,
                              with_last(problem.state->shape, {channels}), padding);
  }
}

/// A call as layers of models have it, for which the CUDA backend needs one launch.
bool is_plain(const Case& call) {
  const bool has_one_type =
      call.weight.dtype == call.x.dtype && (!call.state || call.state->dtype == call.x.dtype);
  return call.width == 4 && element_bytes(call.x.dtype) == 2 && has_one_type &&
         call.epilogue == Epilogue::kNone && !call.input_gate && !call.shift_full_state &&
         !call.cache_seqlens && !call.snapshots && !call.seq_idx;
}

Case draw_call(Random& random, bool is_fast, bool wants_plain,
               std::span<const std::uint8_t> choices) {
  for (;; choices = {}) {  // the same draws would give the same case
    const std::uint64_t seed = random.next();
    const auto types = capabilities().dtypes;
    DType dtype = random.pick(types).value;
    if (dtype == DType::kF64 || wants_plain) {
      dtype = random.chance(0.3) ? DType::kF16 : DType::kBF16;
    }
    Case call = is_fast ? make_fast_case(seed, dtype) : make_case(seed, choices);
    const bool is_f64 = call.x.dtype == DType::kF64 || call.out.dtype == DType::kF64 ||
                        call.weight.dtype == DType::kF64 ||
                        (call.state && call.state->dtype == DType::kF64);
    if (call.op == Op::kVerify || is_f64 || (wants_plain && !is_plain(call))) continue;
    call.seed = seed;
    call.schedule = Schedule::kFlat;
    call.max_seqlen = 0;
    call.in_place = false;
    return call;
  }
}

std::vector<BlockPart> draw_parts(Random& random, std::int64_t blocks, bool is_fast) {
  std::vector<BlockPart> parts;
  const std::int64_t convolved = random.between(1, 3);
  const std::int64_t copied = random.chance(0.4) ? random.between(1, 2) : 0;
  std::int64_t left = 640;  // channels of the convolution
  for (std::int64_t i = 0; i < convolved + copied; ++i) {
    BlockPart part{.copy = i >= convolved};
    part.head_dim = is_fast && part.copy && random.chance(0.2) ? 2
                    : is_fast ? random.pick({8, 32, 64, 96, 128, 128, 128, 192, 256})
                              : random.pick({1, 2, 3, 5, 8, 16, 24, 40, 64, 96, 100, 128, 130});
    if (part.head_dim * blocks > left) part.head_dim = is_fast ? 8 : random.between(1, 4);
    const std::int64_t most = std::clamp<std::int64_t>(left / (part.head_dim * blocks), 1, 4);
    part.heads = random.between(1, most);
    left = std::max<std::int64_t>(left - part.heads * part.head_dim * blocks, 16);
    parts.push_back(part);
  }
  random.shuffle(parts);
  return parts;
}

void place_groups(Random& random, GroupedCase& problem, std::int64_t blocks,
                  const std::vector<BlockPart>& parts, bool is_fast) {
  std::int64_t column = 0;
  std::vector<std::size_t> order(parts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  random.shuffle(order);
  problem.groups.resize(parts.size());
  for (const std::size_t i : order) {
    const std::int64_t gap = !is_fast && random.chance(0.2) ? random.between(1, 5) : 0;
    if (!is_fast && random.chance(0.3)) column += random.between(1, 7);
    problem.groups[i].input =
        place_heads(random, blocks, parts[i].heads, parts[i].head_dim, gap, column);
  }
  for (GroupSpec& group : problem.groups) group.input.block_stride = blocks > 1 ? column : 0;
  const std::int64_t columns = blocks * column + (is_fast ? 0 : random.between(0, 9));
  const std::vector<std::int64_t> shape = with_last(problem.call.x.shape, {columns});
  const bool any = !is_fast && random.chance(0.2);
  problem.rows = any ? any_order(random, problem.call.x.dtype, shape, 0.3)
                     : row_major(random, problem.call.x.dtype, shape, is_fast ? 0 : 0.3);
}

/// Column slices of one tensor, if the groups have one dtype.
void share_outputs(Random& random, GroupedCase& problem) {
  std::int64_t columns = 0;
  for (const GroupSpec& group : problem.groups) {
    if (group.out.dtype != problem.groups[0].out.dtype) return;
    columns += group.heads() * group.head_dim();
  }
  problem.share_outputs = true;
  const TensorSpec all = row_major(random, problem.groups[0].out.dtype,
                                   with_last(problem.call.x.shape, {columns}), 0.3);
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

void draw_groups(Random& random, GroupedCase& problem, std::int64_t blocks,
                 const std::vector<BlockPart>& parts, bool is_fast) {
  place_groups(random, problem, blocks, parts, is_fast);
  const bool scales = !problem.call.input_gate && random.chance(0.2);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    GroupSpec& group = problem.groups[i];
    group.copy = parts[i].copy;
    const DType dtype = group.copy ? problem.call.x.dtype : problem.call.out.dtype;
    group.out =
        row_major(random, dtype,
                  with_last(problem.call.x.shape, {blocks * parts[i].heads, parts[i].head_dim}),
                  is_fast ? 0 : 0.3);
    if (group.copy) continue;
    if (random.chance(0.6)) {
      group.l2_norm.emplace();
      if (random.chance(0.3)) group.l2_norm->eps = 1e-3f;
      if (random.chance(0.3)) group.l2_norm->scale = 0.08838834764f;
    }
    if (scales && random.chance(0.6)) group.input_scale = random.pick({0.3535533905f, 2.0f, -1.5f});
  }
  if (random.chance(0.3)) share_outputs(random, problem);
}

void draw_gates(Random& random, GroupedCase& problem, bool is_fast) {
  GateSpec& gates = problem.gates.emplace();
  const std::int64_t blocks = random.between(1, 4), in_block = random.between(1, 4);
  const std::int64_t heads = blocks * in_block;
  const auto rows = [&](DType dtype, HeadMap& map) {
    std::int64_t column = is_fast ? 0 : random.between(0, 3);
    const std::int64_t first = column;
    map = place_heads(random, blocks, in_block, 1, 0, column);
    const std::int64_t block = column - first + random.between(0, 3);
    map.block_stride = blocks > 1 ? block : 0;
    return row_major(random, dtype, with_last(problem.call.x.shape, {first + blocks * block}),
                     is_fast ? 0 : 0.3);
  };
  const DType dtype = is_fast && random.chance(0.7)
                          ? problem.call.x.dtype
                          : random.pick({DType::kBF16, DType::kF16, DType::kF32});
  gates.a = rows(dtype, gates.a_map);
  gates.b = rows(dtype, gates.b_map);
  gates.a_log = dense(DType::kF32, {heads});
  gates.dt_bias = dense(random.pick({DType::kF32, DType::kBF16}), {heads});
  const std::vector<std::int64_t> shape = with_last(problem.call.x.shape, {heads});
  gates.g = any_order(random, DType::kF32, shape, is_fast ? 0 : 0.3);
  gates.beta = any_order(random, DType::kF32, shape, is_fast ? 0 : 0.3);
  if (random.chance(0.3)) gates.decay = DecayForm::kExp;
  if (random.chance(0.3)) gates.beta_factor = 2;
  gates.round_beta = random.chance(0.3);
}

/// Traits of the call that a case with groups has as well.
bool is_trait_of_groups(std::string_view key) {
  return key == "width" || key == "dtype" || key == "activation" || key == "packed" ||
         key == "padded-rows" || key == "initial-state";
}

}  // namespace

GroupedCase make_grouped_case(std::uint64_t seed, std::span<const std::uint8_t> choices) {
  Random random(seed ^ 0x67726f757073, choices);
  GroupedCase problem;
  problem.seed = seed;
  const bool is_fast = random.chance(0.6), wants_plain = is_fast && random.chance(0.7);
  problem.call = draw_call(random, is_fast, wants_plain, choices);
  const std::int64_t blocks = random.chance(0.5) ? 1 : random.between(2, 4);
  const std::vector<BlockPart> parts = draw_parts(random, blocks, is_fast);
  std::int64_t channels = 0;
  for (const BlockPart& part : parts) {
    if (!part.copy) channels += blocks * part.heads * part.head_dim;
  }
  set_channels(random, problem.call, channels, is_fast ? 0 : 0.3);
  draw_groups(random, problem, blocks, parts, is_fast);
  // Consumers of decoded rows often compute norms and gates themselves.
  if (problem.call.op == Op::kDecode && random.chance(0.7)) {
    for (GroupSpec& group : problem.groups) group.l2_norm.reset();
    return problem;
  }
  if (random.chance(0.4)) draw_gates(random, problem, is_fast);
  return problem;
}

std::vector<std::pair<std::string_view, std::string>> traits(const GroupedCase& problem) {
  std::vector<std::pair<std::string_view, std::string>> list{{"op", "groups"}};
  for (auto& trait : traits(problem.call)) {
    if (is_trait_of_groups(trait.first)) list.push_back(std::move(trait));
  }
  const auto any = [&](const auto& has) {
    return std::ranges::any_of(problem.groups, has) ? "yes" : "no";
  };
  list.emplace_back("copies", any([](const GroupSpec& group) { return group.copy; }));
  list.emplace_back("norms", any([](const GroupSpec& group) { return group.l2_norm.has_value(); }));
  list.emplace_back("scales", any([](const GroupSpec& group) { return group.input_scale != 1; }));
  list.emplace_back("gates", problem.gates ? "yes" : "no");
  return list;
}

TraitValues possible_grouped_traits() {
  TraitValues list{{"op", {"groups"}}};
  for (auto& trait : possible_traits()) {
    if (is_trait_of_groups(trait.first)) list.push_back(std::move(trait));
  }
  for (const std::string_view own : {"copies", "norms", "scales", "gates"}) {
    list.push_back({own, {"no", "yes"}});
  }
  return list;
}

std::string to_string(const GroupedCase& problem) {
  const auto map_text = [](const HeadMap& map) {
    return fmt::format("offset {} head_stride {} block_heads {} block_stride {}", map.offset,
                       map.head_stride, map.block_heads, map.block_stride);
  };
  std::string text =
      fmt::format("groups, seed {}\n  rows {}\n", problem.seed, describe(problem.rows));
  for (const GroupSpec& group : problem.groups) {
    text += fmt::format("  group{} out {} from {}", group.copy ? ", copied," : "",
                        describe(group.out), map_text(group.input));
    if (group.l2_norm) {
      text += fmt::format(", l2_norm eps {} scale {}", group.l2_norm->eps, group.l2_norm->scale);
    }
    if (group.input_scale != 1) text += fmt::format(", input_scale {}", group.input_scale);
    text += "\n";
  }
  if (problem.gates) {
    const GateSpec& gates = *problem.gates;
    text += fmt::format(
        "  gates a {} from {}, b {} from {}, decay {}, beta_factor {}, round_beta {}\n",
        describe(gates.a), map_text(gates.a_map), describe(gates.b), map_text(gates.b_map),
        static_cast<int>(gates.decay), gates.beta_factor, gates.round_beta);
  }
  return text + "  of " + to_string(problem.call);
}

}  // namespace shortconv::tools::verify
