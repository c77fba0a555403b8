// Backward calls with groups of the CUDA backend: a launch for each group, which may start while
// the one before it ends, one for the gates, and one for the last sums of the gradients of weights.
#include "cuda/host/backward_groups.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <span>
#include <string_view>
#include <tuple>

#include "core/check.hpp"
#include "cuda/host/head_columns.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/host/select.hpp"

namespace shortconv::cuda {
namespace {

/// Tokens for each of which a thread of the gates has kGateRows rows more; not tuned.
constexpr std::int64_t kGateTokens = 65536;

/// What a plan keeps.
struct GroupedBackwardConfig {
  std::int64_t gate_rows = 0;  // of a strip
  std::int64_t gate_units = 0;
  bool overlaps = false;  // the kernels have code for PDL
};

/// Lanes of a warp that have different heads.
std::int32_t head_lanes(const GateGradientProblem& gates) {
  const auto heads = static_cast<std::uint64_t>(std::clamp<std::int64_t>(gates.heads, 1, 32));
  return static_cast<std::int32_t>(std::bit_ceil(heads));
}

BackwardPointers pointers_of(const GroupedBackwardProblem& p, const GroupedBackwardPointers& at,
                             std::size_t number) {
  const std::int64_t first = p.groups[number].first_channel;
  BackwardPointers pointers = at.backward;
  pointers.grad_out = at.groups[number];
  skip_channels(p.backward.weight, pointers.weight, first);
  skip_channels(p.backward.bias, pointers.bias, first);
  if (wants_sums(p.backward)) {
    pointers.workspace = static_cast<char*>(pointers.workspace) + sums_offset(p, number);
  }
  return pointers;
}

/// Loads a kernel of a plan; refuses devices without its shared memory.
Status load_kernel(KernelFunction function, int device, GroupedBackwardConfig& config,
                   std::int32_t shared_bytes = 0) {
  std::int32_t most = 0;
  if (Status status = shared_bytes_of(device, most); !status.ok()) return status;
  if (shared_bytes > most) {
    return refuse_groups("x", "expected a device with blocks of ", std::int64_t{shared_bytes},
                         " bytes of shared memory");
  }
  return load(function, device, &config.overlaps, shared_bytes, true);
}

Status plan_groups(const GroupedBackwardProblem& p, GroupedBackwardConfig& config) {
  const int device = p.backward.device.index;
  for (const GroupLayout& group : p.used_groups()) {
    if (!is_wanted(p, group)) continue;
    if (Status status = check_group(p, group); !status.ok()) return status;
    if (group.copy) {
      Status status = load_kernel(copy_group_gradient_kernel(), device, config);
      if (!status.ok()) return status;
      continue;
    }
    const BackwardKernel kernel = group_kernel_of(p, group);
    Status status = load_kernel(kernel.function, device, config, kernel.strip_bytes * kUnitStrips);
    if (!status.ok()) return status;
    const BackwardProblem call = problem_of(p, group);
    BackwardLaunch launch;
    status = divide_grid(call, kernel.columns, group_partition(p), launch);
    if (!status.ok()) return status;
  }
  return {};
}

Status plan_grouped_backward(const GroupedBackwardProblem& p, PlanStorage& storage) {
  bool has_f64 = false;
  visit_tensors(
      [&](const Argument&, const auto& layout) {
        has_f64 |= layout.present && layout.dtype == DType::kF64;
      },
      p);
  if (has_f64) return refuse_f64(BackendId::kCuda);
  const BackwardProblem& call = p.backward;
  if (Status status = require_current(call.device, "x"); !status.ok()) return status;
  GroupedBackwardConfig config;
  if (Status status = plan_groups(p, config); !status.ok()) return status;
  if (wants_gates(p)) {
    if (!has_countable_gates(p)) {
      return refuse_groups("a", "expected tokens, heads and strides of gates below 2^26");
    }
    // The gradients of a unit are few, and so are units of long calls, which are added up in the
    // end.
    const std::int64_t pass = kGateRows * (32 / head_lanes(p.gates));  // rows of a warp
    config.gate_rows = pass * std::max<std::int64_t>(call.tokens / kGateTokens, 1);
    config.gate_units = divide_up(call.tokens, config.gate_rows * kUnitStrips);
    if (config.gate_units * divide_up(p.gates.heads, head_lanes(p.gates)) > kMaxBlocks) {
      return refuse_groups("a", "expected fewer than 2^31 blocks of tokens and heads");
    }
    Status status = load_kernel(gate_gradients_kernel(), call.device.index, config);
    if (!status.ok()) return status;
  }
  if (Status status = load_kernel(finish_grouped_backward_kernel(), call.device.index, config);
      !status.ok()) {
    return status;
  }
  store_choice(storage, config);
  return {};
}

std::int64_t grouped_backward_workspace_bytes(const GroupedBackwardProblem& p,
                                              const PlanStorage& storage) {
  const auto config = load_choice<GroupedBackwardConfig>(storage);
  const std::int64_t gates =
      wants_gate_sums(p) ? 2 * config.gate_units * p.gates.heads * std::int64_t{sizeof(float)} : 0;
  return sums_offset(p, p.used_groups().size()) + gates;
}

/// The launches of a call. Each but the first may start while the one before it ends; each ends
/// after the one before it has.
class GroupedBackwardRun {
 public:
  GroupedBackwardRun(const GroupedBackwardProblem& p, const GroupedBackwardConfig& config,
                     const GroupedBackwardPointers& at, void* stream)
      : p_(p),
        config_(config),
        at_(at),
        stream_(stream),
        sums_(make_sum_params(p.backward, at.backward)) {}

  /// Copies are exact in vectors of any size, convolutions need those of 8 bytes.
  [[nodiscard]] Status check_addresses() const {
    for (std::size_t i = 0; i < p_.used_groups().size(); ++i) {
      const GroupLayout& group = p_.groups[i];
      if (!is_wanted(p_, group) || group.copy || address_alignment(i) >= kLeastGroupAlignment)
        continue;
      return refuse_groups("groups",
                           "expected addresses of x, grad_x and the gradients of outputs aligned "
                           "to 8 bytes");
    }
    return {};
  }

  Status launch_all() {
    // First what has few blocks, so that it does not end last.
    if (config_.gate_units > 0) {
      if (Status status = differentiate_gates(); !status.ok()) return status;
    }
    std::array<std::size_t, kMaxGroups> numbers{};
    const auto order = std::span(numbers).first(p_.used_groups().size());
    set_order(order);
    for (const std::size_t i : order) {
      if (!is_wanted(p_, p_.groups[i])) continue;
      Status status = p_.groups[i].copy ? copy(i) : differentiate(i);
      if (!status.ok()) return status;
    }
    return finish();
  }

 private:
  /// Small groups precede large ones, whose last blocks fill the device; norms take longest, and
  /// copies fill the multiprocessors that the last blocks leave idle. With norms before and after
  /// the others a front of 8192 tokens takes 133 us instead of 122 (H200).
  void set_order(std::span<std::size_t> order) const {
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) {
      const GroupLayout& group = p_.groups[i];
      return std::tuple(group.copy, !group.normalize, group.channels());
    });
  }

  [[nodiscard]] std::int32_t address_alignment(std::size_t number) const {
    std::uintptr_t bits = 0;
    for (const void* address : {at_.backward.x, at_.backward.grad_x, at_.groups[number]}) {
      bits |= reinterpret_cast<std::uintptr_t>(address);
    }
    return alignment_of(static_cast<std::int64_t>(bits & 15));
  }

  template <typename Params>
  Status launch(KernelFunction function, Params& params, std::int64_t blocks, std::int32_t threads,
                std::int32_t shared_bytes = 0) {
    void* arguments[] = {&params};
    const bool programmatic = config_.overlaps && !is_first_;
    is_first_ = false;
    return launch_kernel({.function = function,
                          .blocks = blocks,
                          .threads = threads,
                          .shared_bytes = shared_bytes,
                          .programmatic = programmatic},
                         arguments, stream_);
  }

  Status differentiate(std::size_t number) {
    const GroupLayout& group = p_.groups[number];
    const BackwardProblem call = problem_of(p_, group);
    const BackwardKernel kernel = group_kernel_of(p_, group);
    BackwardLaunch strips{.function = kernel.function,
                          .blocks = 0,
                          .shared_bytes = kernel.strip_bytes * kUnitStrips,
                          .channel_blocks = {}};
    BackwardConfig config;
    config.partition = group_partition(p_);
    if (Status status = divide_grid(call, kernel.columns, config.partition, strips); !status.ok()) {
      return status;
    }
    const BackwardPointers pointers = pointers_of(p_, at_, number);
    BackwardKernelParams params = make_backward_params(call, pointers, config, strips);
    if (wants_sums(call)) {
      add_segment(call, group.first_channel, config.partition.units, pointers.workspace, sums_);
    }
    params.copy_bytes = std::min(group_alignment(p_, group), address_alignment(number));
    params.group = {.head_dim = divisor(group.head_dim),
                    .columns = columns_of(group.input, group.heads, 1),
                    .grad_head_stride = narrow(group.out.head_stride),
                    .head_lanes = narrow(group.head_dim * 32 / kernel.columns),
                    .norm = group.l2_norm};
    if (strips.blocks == 0) return {};  // without tokens: the sums are 0
    return launch(strips.function, params, strips.blocks, kBackwardThreads, strips.shared_bytes);
  }

  Status copy(std::size_t number) {
    const GroupLayout& group = p_.groups[number];
    const BackwardProblem call = problem_of(p_, group);
    if (call.tokens == 0) return {};
    const std::int32_t bytes = std::min(group_alignment(p_, group), address_alignment(number));
    const std::int64_t element = element_bytes(call.x.dtype);
    CopyGradientParams params;
    params.problem = call;
    params.pointers = at_.backward;
    params.vector_bytes = bytes;
    params.head_vectors = divisor(group.head_dim * element / bytes);
    params.vectors = narrow(group.channels() * element / bytes);
    params.columns = columns_of(group.input, group.heads, element);
    params.grad_head_stride_bytes = narrow(group.out.head_stride * element);
    params.grad_out = {.data = at_.groups[number],
                       .stride_bytes = narrow(group.out.token_stride * element)};
    params.grad_x = {.data = at_.backward.grad_x,
                     .stride_bytes = narrow(call.grad_x.token_stride * element)};
    const std::int64_t row_blocks = divide_up(params.vectors, kCopyGradientThreads);
    params.blocks = divisor(row_blocks);
    const std::int64_t blocks = row_blocks * divide_up(call.tokens, kCopyGradientRows);
    params.pdl_launch_from = pdl_launch_from(blocks);
    return launch(copy_group_gradient_kernel(), params, blocks, kCopyGradientThreads);
  }

  [[nodiscard]] float* gate_sums() const {
    if (!wants_gate_sums(p_)) return nullptr;
    return reinterpret_cast<float*>(static_cast<char*>(at_.backward.workspace) +
                                    sums_offset(p_, p_.used_groups().size()));
  }

  /// `map`: its columns; of a tensor [tokens, heads] the default.
  template <typename Layout>
  [[nodiscard]] GateTensor gate_tensor(const Layout& layout, void* data, const HeadMap& map,
                                       std::int64_t column_stride) const {
    if (!layout.present) return {};
    const std::int64_t bytes = element_bytes(layout.dtype);
    return {.data = data,
            .columns = columns_of(map, p_.gates.heads, column_stride * bytes),
            .sequence_stride_bytes = layout.sequence_stride * bytes,
            .stride_bytes = narrow(layout.token_stride * bytes),
            .dtype = layout.dtype};
  }

  Status differentiate_gates() {
    const GateGradientProblem& gates = p_.gates;
    const HeadMap dense{.head_stride = 1, .block_heads = gates.heads};
    GateGradientParams params;
    params.problem = p_.backward;
    params.pointers = at_.backward;
    params.heads = narrow(gates.heads);
    params.head_lanes = head_lanes(gates);
    params.head_blocks = divisor(divide_up(gates.heads, params.head_lanes));
    if (p_.backward.sequence_tokens > 0) {
      params.sequence_tokens = divisor(p_.backward.sequence_tokens);
    }
    params.strip_rows = narrow(config_.gate_rows);
    params.exponential = gates.decay == DecayForm::kExp;
    params.beta_factor = gates.beta_factor;
    params.a = gate_tensor(gates.a, at_.gates.a, gates.a_map, gates.a.channel_stride);
    params.b = gate_tensor(gates.b, at_.gates.b, gates.b_map, gates.b.channel_stride);
    params.grad_g = gate_tensor(gates.grad_g, at_.gates.grad_g, dense, gates.grad_g.head_stride);
    params.grad_beta =
        gate_tensor(gates.grad_beta, at_.gates.grad_beta, dense, gates.grad_beta.head_stride);
    params.grad_a =
        gate_tensor(gates.grad_a, at_.gates.grad_a, gates.a_map, gates.grad_a.channel_stride);
    params.grad_b =
        gate_tensor(gates.grad_b, at_.gates.grad_b, gates.b_map, gates.grad_b.channel_stride);
    params.a_log = at_.gates.a_log;
    params.a_log_stride = gates.a_log.head_stride;
    params.dt_bias = at_.gates.dt_bias;
    params.dt_bias_stride = gates.dt_bias.head_stride;
    params.dt_bias_dtype = gates.dt_bias.dtype;
    params.partial_sums = gate_sums();
    const std::int64_t blocks = config_.gate_units * params.head_blocks.divisor();
    params.pdl_launch_from = pdl_launch_from(blocks);
    return launch(gate_gradients_kernel(), params, blocks, kBackwardThreads);
  }

  Status finish() {
    BackwardSumParams& params = sums_;
    std::int64_t blocks = params.sum_blocks;
    if (wants_gate_sums(p_)) {
      params.gates = {.heads = p_.gates.heads,
                      .units = config_.gate_units,
                      .partial_sums = gate_sums(),
                      .a_log = {at_.gates.grad_a_log, p_.gates.grad_a_log.head_stride},
                      .dt_bias = {at_.gates.grad_dt_bias, p_.gates.grad_dt_bias.head_stride, 0,
                                  p_.gates.grad_dt_bias.dtype}};
      blocks += divide_up(p_.gates.heads, kGateSumHeads);
    }
    return blocks == 0 ? Status()
                       : launch(finish_grouped_backward_kernel(), params, blocks, kSumThreads);
  }

  const GroupedBackwardProblem& p_;
  const GroupedBackwardConfig& config_;
  const GroupedBackwardPointers& at_;
  void* const stream_;
  BackwardSumParams sums_;
  bool is_first_ = true;
};

Status run_grouped_backward(const GroupedBackwardProblem& p, const PlanStorage& storage,
                            const GroupedBackwardPointers& at, void* stream) {
  const auto config = load_choice<GroupedBackwardConfig>(storage);
  if (Status status = check_alignment(p, at); !status.ok()) return status;
  if (Status status = require_current(p.backward.device, "x"); !status.ok()) return status;
  GroupedBackwardRun run(p, config, at, stream);
  if (Status status = run.check_addresses(); !status.ok()) return status;
  return run.launch_all();
}

std::string describe_grouped_backward(const GroupedBackwardProblem& p, const PlanStorage&) {
  const auto launches = std::ranges::count_if(
      p.used_groups(), [&](const auto& group) { return is_wanted(p, group); });
  return concat("backward, groups, ", std::int64_t{launches}, " launches",
                wants_gates(p) ? ", one for the gates" : "", ", one for the last sums");
}

}  // namespace

const OperationKernels<GroupedBackwardOperation> kGroupedBackward{
    .plan = plan_grouped_backward,
    .run = run_grouped_backward,
    .describe = describe_grouped_backward,
    .workspace_bytes = grouped_backward_workspace_bytes};

}  // namespace shortconv::cuda
