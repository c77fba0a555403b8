// Calls with groups of the CUDA backend: one launch of the tile kernels where they support the
// call, else a launch for each group, one for the norms, one for the gates. Nothing waits or
// allocates.
#include "cuda/host/groups.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "cuda/group_params.hpp"
#include "cuda/host/general.hpp"
#include "cuda/host/group_tiles.hpp"
#include "cuda/host/head_columns.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/host/select.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kWarps = kGroupThreads / 32;  // of a block

bool has_f64(const GroupedProblem& p) {
  bool found = p.forward.state.dtype == DType::kF64 || p.forward.out.dtype == DType::kF64;
  visit_tensors([&](const Argument&,
                    const auto& layout) { found |= layout.present && layout.dtype == DType::kF64; },
                p);
  return found;
}

bool has_own_norm(const GroupLayout& group) {
  return group.normalize && !is_normalized_in_tiles(group);
}

Status check_blocks(std::string_view argument, std::int64_t blocks) {
  if (blocks <= kMaxBlocks) return {};
  return {Code::kUnsupported,
          concat(argument, ": needs ", blocks, " blocks; a grid has at most ", kMaxBlocks)};
}

std::int64_t row_units(const Problem& p) { return divide_up(p.tokens, kGroupTokens); }

/// Blocks of a group, snapshots among them, or of the gates.
std::int64_t group_blocks(const Problem& p, const GroupLayout& group) {
  const std::int64_t units = row_units(p) + (group.copy ? 0 : p.snapshot_count);
  return units * divide_up(group.channels(), kGroupThreads);
}
/// Rows of a warp that normalizes one head of them: the most with which the GPU is full.
std::int32_t norm_rows(const Problem& p, std::int64_t heads) {
  std::int32_t rows = 1;
  while (rows < kMaxNormRows && divide_up(p.tokens, 2 * rows) * heads >= kNormWarps) rows *= 2;
  return rows;
}
std::int64_t norm_blocks(const Problem& p, std::int64_t heads) {
  return divide_up(divide_up(p.tokens, norm_rows(p, heads)) * heads, kWarps);
}
std::int64_t norm_heads(const GroupedProblem& p) {
  std::int64_t heads = 0;
  for (const GroupLayout& group : p.used_groups()) {
    if (group.normalize && group.channels() > 0) heads += group.heads;
  }
  return heads;
}
std::int64_t gate_blocks(const GroupedProblem& p) {
  return row_units(p.forward) * divide_up(p.gates.heads, kGroupThreads);
}

Status check_grids(const GroupedProblem& p) {
  if (Status status = check_blocks("x", row_units(p.forward)); !status.ok()) return status;
  for (const GroupLayout& group : p.used_groups()) {
    if (group.channels() == 0) continue;  // its number of heads has no limit
    if (Status status = check_blocks("groups", group_blocks(p.forward, group)); !status.ok()) {
      return status;
    }
  }
  if (Status status = check_blocks("groups", norm_blocks(p.forward, norm_heads(p))); !status.ok()) {
    return status;
  }
  return p.has_gates ? check_blocks("g", gate_blocks(p)) : Status();
}

/// One launch, if the tile kernels support the call.
Status plan_tiles(const GroupedProblem& p, GroupTileConfig& config) {
  DeviceProperties properties;
  if (Status status = properties_of(p.forward.device.index, properties); !status.ok()) {
    return status;
  }
  config = select_group_tiles(p, properties, policy_for(properties));
  if (config.launch.blocks == 0) return {};
  config.function =
      group_tiles_kernel(config.kernel, p.forward.x.dtype, p.forward.width, p.forward.activation);
  bool has_pdl = false;
  if (Status status = load(config.function, p.forward.device.index, &has_pdl); !status.ok()) {
    return status;
  }
  if (!has_pdl) config.launch.params.pdl = PdlMode::kOff;
  return {};
}

Status plan_grouped(const GroupedProblem& p, PlanStorage& storage) {
  GroupTileConfig tiles;
  store_choice(storage, tiles);
  if (has_f64(p)) return refuse_f64(BackendId::kCuda);
  for (const GroupLayout& group : p.used_groups()) {
    if (group.input_scale == 1) continue;
    return {Code::kUnsupported, "input_scale: the backend 'cuda' supports only 1"};
  }
  if (p.forward.tokens == 0) return {};
  if (Status status = check_grids(p); !status.ok()) return status;
  if (Status status = require_current(p.forward.device, "x"); !status.ok()) return status;
  for (const KernelFunction function : {convolve_group_kernel(), copy_group_kernel(),
                                        normalize_groups_kernel(), store_gates_kernel()}) {
    const std::int32_t shared_bytes =
        function == convolve_group_kernel() ? max_general_shared_bytes(kGroupThreads) : 0;
    if (Status status = load(function, p.forward.device.index, nullptr, shared_bytes);
        !status.ok()) {
      return status;
    }
  }
  if (Status status = plan_tiles(p, tiles); !status.ok()) return status;
  store_choice(storage, tiles);
  return p.forward.violations.present ? plan_violations(p.forward) : Status();
}

/// The call of one group: its channels, and its output.
GroupKernelParams params_of(const GroupedProblem& p, const GroupedPointers& at,
                            std::size_t number) {
  GroupKernelParams params{.general = {p.forward, at.forward, {}}, .group = p.groups[number]};
  const GroupLayout& group = params.group;
  Problem& call = params.general.problem;
  TensorPointers& pointers = params.general.pointers;
  call.channels = group.channels();
  call.out.dtype = group.out.dtype;
  call.out.sequence_stride = group.out.sequence_stride;
  call.out.token_stride = group.out.token_stride;
  call.out.channel_stride = 1;
  pointers.out = at.groups[number];
  if (!group.copy) {
    skip_channels(call.weight, pointers.weight, group.first_channel);
    skip_channels(call.bias, pointers.bias, group.first_channel);
    skip_channels(call.state, pointers.state, group.first_channel);
    skip_channels(call.input_gate, pointers.input_gate, group.first_channel);
    skip_channels(call.output_gate, pointers.output_gate, group.first_channel);
  }
  params.general.launch.tiles = static_cast<std::uint32_t>(row_units(call));
  params.general.launch.channel_blocks =
      FastDivisor(static_cast<std::uint32_t>(divide_up(call.channels, kGroupThreads)));
  return params;
}

template <typename Params>
Status launch(KernelFunction function, Params& params, std::int64_t blocks, void* stream,
              std::int32_t shared_bytes = 0, bool programmatic = false) {
  void* arguments[] = {&params};
  return launch_kernel({.function = function,
                        .blocks = blocks,
                        .threads = kGroupThreads,
                        .shared_bytes = shared_bytes,
                        .programmatic = programmatic},
                       arguments, stream);
}

Status launch_group(const GroupedProblem& p, const GroupedPointers& at, std::size_t number,
                    void* stream) {
  GroupKernelParams params = params_of(p, at, number);
  const GroupLayout& group = params.group;
  if (group.channels() == 0) return {};
  const std::int64_t blocks = group_blocks(p.forward, group);
  if (group.copy) return launch(copy_group_kernel(), params, blocks, stream);
  return launch(convolve_group_kernel(), params, blocks, stream,
                general_window_bytes(history_of(p.forward), p.forward.width) * kGroupThreads);
}

/// The norms of groups for which `is_wanted`, after their convolutions. `overlaps`: the kernel
/// before lets this one start early.
template <typename IsWanted>
Status launch_norms(const GroupedProblem& p, const GroupedPointers& at, const IsWanted& is_wanted,
                    bool overlaps, void* stream) {
  NormKernelParams params;
  params.general = {p.forward, at.forward, {}};
  std::size_t next = 0;
  for (std::size_t i = 0; i < p.used_groups().size(); ++i) {
    const GroupLayout& group = p.groups[i];
    if (!is_wanted(group) || group.channels() == 0) continue;
    params.groups[next++] = {.out = at.groups[i],
                             .heads = group.heads,
                             .head_dim = group.head_dim,
                             .head_stride = group.out.head_stride,
                             .token_stride = group.out.token_stride,
                             .sequence_stride = group.out.sequence_stride,
                             .dtype = group.out.dtype,
                             .norm = group.l2_norm};
    params.heads += group.heads;
  }
  if (params.heads == 0) return {};
  params.rows = norm_rows(p.forward, params.heads);
  return launch(normalize_groups_kernel(), params, norm_blocks(p.forward, params.heads), stream, 0,
                overlaps);
}

Status launch_gates(const GroupedProblem& p, const GroupedPointers& at, void* stream) {
  GateKernelParams params{.general = {p.forward, at.forward, {}}, .gates = p.gates, .at = at.gates};
  params.general.launch.channel_blocks =
      FastDivisor(static_cast<std::uint32_t>(divide_up(p.gates.heads, kGroupThreads)));
  return launch(store_gates_kernel(), params, gate_blocks(p), stream);
}

Status launch_tiles(const GroupedProblem& p, const GroupTileConfig& config,
                    const GroupedPointers& at, void* stream) {
  GroupTileParams params = make_group_tile_params(p, config, at);
  void* arguments[] = {&params};
  return launch_kernel({.function = config.function,
                        .blocks = config.launch.blocks,
                        .threads = config.launch.threads,
                        .programmatic = config.launch.params.pdl != PdlMode::kOff},
                       arguments, stream);
}

Status run_grouped(const GroupedProblem& p, const PlanStorage& storage, const GroupedPointers& at,
                   void* stream) {
  if (Status status = check_alignment(p, at); !status.ok()) return status;
  if (Status status = require_current(p.forward.device, "x"); !status.ok()) return status;
  if (p.forward.violations.present) {
    if (Status status = run_violations(p.forward, at.forward, stream); !status.ok()) return status;
  }
  if (p.forward.tokens == 0) return {};
  const auto tiles = load_choice<GroupTileConfig>(storage);
  const bool has_tiles = tiles.launch.blocks > 0 && are_aligned(p, tiles, at);
  if (has_tiles) {
    if (Status status = launch_tiles(p, tiles, at, stream); !status.ok()) return status;
  }
  const auto launch_norms_of = [&](const auto& is_wanted) {
    const bool overlaps = has_tiles && tiles.launch.params.pdl != PdlMode::kOff;
    return launch_norms(p, at, is_wanted, overlaps, stream);
  };
  if (has_tiles) {  // right after them
    if (Status status = launch_norms_of(has_own_norm); !status.ok()) return status;
  }
  for (std::size_t i = 0; i < p.used_groups().size(); ++i) {
    const GroupLayout& group = p.groups[i];
    if (has_tiles && !has_own_launch(group)) continue;
    if (Status status = launch_group(p, at, i, stream); !status.ok()) return status;
  }
  if (!has_tiles) {
    const auto is_normalized = [](const GroupLayout& group) { return group.normalize; };
    if (Status status = launch_norms_of(is_normalized); !status.ok()) return status;
  }
  const bool has_gates = p.has_gates && p.gates.heads > 0 && !(has_tiles && tiles.has_gates);
  return has_gates ? launch_gates(p, at, stream) : Status();
}

std::string describe_grouped(const GroupedProblem& p, const PlanStorage& storage) {
  const auto tiles = load_choice<GroupTileConfig>(storage);
  if (tiles.launch.blocks > 0) {
    return concat("groups, ", name_of(tiles.kernel), ", ", tiles.launch.blocks, " blocks of ",
                  std::int64_t{tiles.launch.threads}, " threads",
                  p.has_gates && !tiles.has_gates ? ", and a launch for the gates" : "",
                  std::ranges::any_of(p.used_groups(), has_own_launch)
                      ? ", and one for each group of narrow columns"
                      : "",
                  std::ranges::any_of(p.used_groups(), has_own_norm)
                      ? ", and one for the norms of wide heads"
                      : "");
  }
  return concat("groups, ", std::int64_t{p.group_count}, " launches and those of norms and gates");
}

/// `items` of a call without a plan, `per_block` of them in a block.
template <typename Call>
Status launch_items(KernelFunction function, const Call& call, std::string_view argument,
                    std::int64_t items, std::int64_t per_block, void* stream) {
  const std::int64_t blocks = divide_up(items, per_block);
  if (Status status = check_blocks(argument, blocks); !status.ok()) return status;
  if (Status status = require_current(call.device, argument); !status.ok()) return status;
  if (Status status = load(function, call.device.index); !status.ok()) return status;
  Call params = call;
  return launch(function, params, blocks, stream);
}

}  // namespace

const OperationKernels<GroupedOperation> kGrouped{
    .plan = plan_grouped, .run = run_grouped, .describe = describe_grouped};

Status run_l2_norm(const L2NormCall& call, void* stream) {
  if (call.x.dtype == DType::kF64) return refuse_f64(BackendId::kCuda);
  if (!aligned(call.x_data, call.x.dtype)) return refuse_unaligned("x");
  if (!aligned(call.out_data, call.out.dtype)) return refuse_unaligned("out");
  return launch_items(l2_norm_kernel(), call, "x", call.rows * call.heads, kWarps, stream);
}

Status run_delta_gates(const GatesCall& call, void* stream) {
  std::string_view unaligned;
  bool has_f64 = false;
  visit_gate_tensors(
      [&](const Argument& row, const auto& layout, const auto& pointer) {
        if (!aligned(pointer, layout.dtype)) unaligned = row.name;
        has_f64 |= layout.dtype == DType::kF64;
      },
      call.gates, call.at);
  if (has_f64) return refuse_f64(BackendId::kCuda);
  if (Status status = refuse_unaligned(unaligned); !status.ok()) return status;
  return launch_items(delta_gates_kernel(), call, "a", call.rows * call.gates.heads, kGroupThreads,
                      stream);
}

}  // namespace shortconv::cuda
