// Calls with groups of the C ABI, and their gradients; see capi_fuzzer.cpp.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "capi_arguments.hpp"

namespace shortconv::fuzz {
namespace {

void require_text(int status) {
  if (status != SHORTCONV_OK && shortconv_last_error()[0] == '\0') std::abort();
  if (status == SHORTCONV_INTERNAL) std::abort();
}

// The gradients of a call with groups: their outputs are the gradients that are read.
void group_gradients(FuzzedDataProvider& data, Arguments& make,
                     const shortconv_grouped_args& forward) {
  const auto maybe = [&](const shortconv_tensor* like, std::int32_t dtype) -> shortconv_tensor* {
    const bool has_axes = like->ndim >= 0 && like->ndim <= SHORTCONV_MAX_DIMS;
    if (!has_axes || data.ConsumeBool()) return nullptr;
    std::vector<std::int64_t> sizes(like->shape, like->shape + like->ndim);
    for (const std::int64_t size : sizes) {
      if (size < 0 || size > 200) return nullptr;  // disturbed
    }
    return make.tensor(sizes, dtype);
  };
  shortconv_backward_args call{};
  call.struct_size = sizeof call;
  call.activation = forward.forward->activation;
  call.accumulate = data.ConsumeIntegralInRange<int>(0, 1);
  call.backend = data.ConsumeIntegralInRange<int>(0, 3);
  call.x = forward.forward->x;
  call.weight = forward.forward->weight;
  call.query_start_loc = forward.forward->query_start_loc;
  call.grad_x = maybe(call.x, call.x->dtype);
  call.grad_weight = maybe(call.weight, SHORTCONV_F32);
  shortconv_gate_gradient_args gates{};
  gates.struct_size = sizeof gates;
  if (forward.gates != nullptr) {
    gates.decay = forward.gates->decay;
    gates.a = forward.gates->a;
    gates.b = forward.gates->b;
    gates.a_log = forward.gates->a_log;
    gates.dt_bias = forward.gates->dt_bias;
    gates.grad_g = forward.gates->g;
    gates.grad_beta = forward.gates->beta;
    gates.grad_a = maybe(gates.a, gates.a->dtype);
    gates.grad_b = maybe(gates.b, SHORTCONV_F32);
    gates.grad_a_log = maybe(gates.a_log, SHORTCONV_F32);
    gates.grad_dt_bias = maybe(gates.dt_bias, SHORTCONV_F32);
    gates.a_map = forward.gates->a_map;
    gates.b_map = forward.gates->b_map;
    gates.beta_factor = forward.gates->beta_factor;
  }
  shortconv_grouped_backward_args args{};
  args.struct_size = sizeof args;
  args.group_count = forward.group_count;
  args.backward = &call;
  args.groups = forward.groups;
  args.gates = forward.gates != nullptr ? &gates : nullptr;
  shortconv_grouped_backward_plan plan{};
  const int planned = shortconv_plan_backward_groups(&args, &plan);
  require_text(planned);
  const int ran = planned == SHORTCONV_OK ? shortconv_run_backward_groups(&plan, &args, nullptr)
                                          : shortconv_backward_groups(&args, nullptr);
  if ((planned == SHORTCONV_OK) != (ran == SHORTCONV_OK)) std::abort();
}

}  // namespace

void groups(FuzzedDataProvider& data) {
  Arguments make(data);
  constexpr std::int32_t kFloats[] = {SHORTCONV_F32, SHORTCONV_F16, SHORTCONV_BF16, SHORTCONV_F64};
  constexpr std::int32_t kInts[] = {SHORTCONV_I32, SHORTCONV_I64};
  constexpr float kFactors[] = {0, 1, -2.5f, 1e-6f, INFINITY, NAN};
  const auto small = [&](int high) { return data.ConsumeIntegralInRange<std::int64_t>(0, high); };
  const auto one_in = [&](int n) { return data.ConsumeIntegralInRange<int>(0, n - 1) == 0; };
  const auto rare = [&](std::int64_t number) {
    return one_in(48) ? data.ConsumeIntegral<std::int64_t>() : number;
  };
  const std::int64_t sequences = small(4), tokens = small(12), columns = small(120);
  const bool dense = one_in(3), decodes = one_in(4);
  const auto rows = [&](std::initializer_list<std::int64_t> last) {
    std::vector<std::int64_t> sizes =
        dense ? std::vector{sequences, tokens} : std::vector{decodes ? sequences : tokens};
    sizes.insert(sizes.end(), last);
    return sizes;
  };
  const auto map = [&](std::int64_t heads, std::int64_t head_dim) {
    shortconv_head_map to{};
    to.offset = rare(small(20));
    to.head_stride = rare(one_in(2) ? 0 : head_dim + small(3));
    to.block_heads = rare(one_in(2) ? 0 : 1 + small(static_cast<int>(heads)));
    to.block_stride = rare(small(40));
    return to;
  };
  const auto x_dtype = data.PickValueInArray(kFloats), out_dtype = data.PickValueInArray(kFloats);
  shortconv_forward_args forward{};
  forward.struct_size = sizeof forward;
  forward.op = decodes ? SHORTCONV_OP_DECODE : data.ConsumeIntegralInRange<int>(0, 2);
  forward.x = make.tensor(rows({columns}), x_dtype);
  shortconv_channel_group group[9] = {};
  const auto count =
      data.ConsumeIntegralInRange<std::int32_t>(one_in(16) ? -1 : 1, one_in(16) ? 9 : 4);
  std::int64_t channels = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int64_t heads = small(4), head_dim = small(17);
    group[i].struct_size =
        one_in(64) ? data.ConsumeIntegral<std::uint32_t>() % 256 : sizeof group[i];
    group[i].copy = one_in(4) ? 1 : 0;
    group[i].out = make.tensor(rows({heads, head_dim}), group[i].copy == 1 ? x_dtype : out_dtype);
    group[i].input = map(heads, head_dim);
    group[i].l2_norm = group[i].copy == 0 && one_in(2) ? 1 : 0;
    group[i].eps = one_in(8) ? data.PickValueInArray(kFactors) : 0;
    group[i].scale = one_in(8) ? data.PickValueInArray(kFactors) : 0;
    group[i].input_scale = one_in(8) ? data.PickValueInArray(kFactors) : 0;
    if (group[i].copy == 0) channels += heads * head_dim;
  }
  forward.weight = make.tensor({channels, 2 + small(4)}, data.PickValueInArray(kFloats));
  if (one_in(2)) {
    forward.state = make.tensor({small(6), 5 + small(2), channels}, data.PickValueInArray(kFloats));
  }
  if (!dense && !decodes) {
    shortconv_tensor* bounds = make.tensor({sequences + 1}, data.PickValueInArray(kInts));
    make.fill_indices(bounds, -2, tokens + 2);
    forward.query_start_loc = bounds;
  }
  forward.activation = data.ConsumeIntegralInRange<int>(0, 1);
  forward.padded_rows = data.ConsumeIntegralInRange<int>(0, 2);
  forward.backend = data.ConsumeIntegralInRange<int>(0, 3);
  forward.threads = data.ConsumeIntegralInRange<int>(-1, 2);
  shortconv_gate_args gates{};
  const std::int64_t heads = small(4);
  gates.struct_size = sizeof gates;
  gates.decay = data.ConsumeIntegralInRange<int>(0, one_in(16) ? 3 : 1);
  gates.a = make.tensor(rows({small(20)}), data.PickValueInArray(kFloats));
  gates.b = make.tensor(rows({small(20)}), data.PickValueInArray(kFloats));
  gates.a_log = make.tensor({heads}, SHORTCONV_F32);
  gates.dt_bias = make.tensor({heads}, data.PickValueInArray(kFloats));
  gates.g = make.tensor(rows({heads}), SHORTCONV_F32);
  gates.beta = make.tensor(rows({heads}), SHORTCONV_F32);
  gates.a_map = map(heads, 1);
  gates.b_map = map(heads, 1);
  gates.beta_factor = one_in(8) ? data.PickValueInArray(kFactors) : 0;
  gates.round_beta = data.ConsumeIntegralInRange<int>(0, 1);
  gates.backend = forward.backend;
  shortconv_grouped_args args{};
  args.struct_size = sizeof args;
  args.group_count = count;
  args.forward = &forward;
  args.groups = group;
  args.gates = one_in(2) ? &gates : nullptr;

  shortconv_grouped_plan plan{};
  const int planned = shortconv_plan_groups(&args, &plan);
  require_text(planned);
  const int ran = planned == SHORTCONV_OK ? shortconv_run_groups(&plan, &args, nullptr)
                                          : shortconv_forward_groups(&args, nullptr);
  if ((planned == SHORTCONV_OK) != (ran == SHORTCONV_OK)) std::abort();
  group_gradients(data, make, args);
  require_text(shortconv_delta_gates(&gates, nullptr));
  shortconv_l2_norm_args norm{};
  norm.struct_size = sizeof norm;
  norm.x = group[0].out;
  norm.out = one_in(2) ? group[0].out : group[1].out;
  require_text(shortconv_l2_norm(&norm, nullptr));
}

}  // namespace shortconv::fuzz
