// GroupedProblem -> GroupTileConfig -> GroupTileParams.
#include "cuda/host/group_tiles.hpp"

#include <algorithm>
#include <bit>

#include "core/dispatch.hpp"
#include "cuda/host/head_columns.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kGroup = tile_group(2);  // channels of a thread
// Slots of a normalized head: a warp at most, and a lane for each row of a tile at least.
constexpr std::int64_t kMaxNorm = kTileChannels;
constexpr std::int64_t kMinNorm = kTileTokens * kGroup;
constexpr std::int64_t kMaxColumn = (std::int64_t{1} << 30) - 1;  // columns have 31 bits
constexpr std::int64_t kMaxStride = (std::int64_t{1} << 25) - 1;  // as of x, in select.cpp

bool is_multiple(std::int64_t value) { return value % kGroup == 0; }

/// Heads whose channels are adjacent in x and in the output count as one head if nothing is
/// computed of each.
bool is_one_head(const GroupLayout& group) {
  const HeadMap& map = group.input;
  const bool in_order =
      map.head_stride == group.head_dim &&
      (group.heads <= map.block_heads || map.block_stride == map.block_heads * map.head_stride);
  return !is_normalized_in_tiles(group) && (group.heads == 1 || in_order) &&
         (group.heads == 1 || group.out.head_stride == group.head_dim);
}

std::int64_t head_slots(const GroupLayout& group) {
  if (is_one_head(group)) return group.channels();
  if (!is_normalized_in_tiles(group)) return group.head_dim;
  const auto channels = static_cast<std::uint64_t>(group.head_dim);
  return std::max(static_cast<std::int64_t>(std::bit_ceil(channels)), kMinNorm);
}
std::int64_t blocks_of(const GroupLayout& group) {
  const std::int64_t heads = is_one_head(group) ? 1 : group.heads;
  return divide_up(heads * head_slots(group), kTileChannels);
}

bool has_columns(const HeadMap& map, std::int64_t heads, std::int64_t column_stride) {
  const std::int64_t blocks = divide_up(heads, map.block_heads);
  const auto is_small = [&](std::int64_t stride, std::int64_t count) {
    return stride >= 0 && stride <= kMaxColumn / std::max<std::int64_t>(count, 1);
  };
  return column_stride > 0 && is_small(column_stride, 1) &&
         is_small(map.offset, column_stride * 4) &&
         is_small(map.head_stride, map.block_heads * column_stride * 4) &&
         is_small(map.block_stride, blocks * column_stride * 4);
}

bool has_group_layout(const GroupLayout& group) {
  const HeadMap& map = group.input;
  const auto& out = group.out;
  return group.input_scale == 1 && group.channels() > 0 && group.channels() <= kMaxColumn &&
         is_multiple(group.head_dim) && is_multiple(map.offset) && is_multiple(map.head_stride) &&
         is_multiple(map.block_stride) && has_columns(map, group.heads, 1) &&
         is_multiple(out.token_stride) && is_multiple(out.sequence_stride) &&
         is_multiple(out.head_stride) && std::abs(out.token_stride) <= kMaxStride &&
         (group.heads == 1 ||
          (out.head_stride >= 0 && out.head_stride <= kMaxColumn / group.heads));
}

bool has_gate_layout(const GroupedProblem& p) {
  const GateProblem& gates = p.gates;
  return p.has_gates && gates.heads > 0 && gates.heads <= kMaxColumn / kTileTokens &&
         gates.a.dtype == p.forward.x.dtype && gates.b.dtype == p.forward.x.dtype &&
         has_columns(gates.a_map, gates.heads, gates.a.channel_stride) &&
         has_columns(gates.b_map, gates.heads, gates.b.channel_stride);
}

bool has_layout(const GroupedProblem& p) {
  if (!supports_group_tiles(p.forward) || !is_listed(kGroupTileWidths, p.forward.width)) {
    return false;
  }
  return std::ranges::all_of(p.used_groups(), [&](const GroupLayout& group) {
    return has_own_launch(group) ||
           (has_group_layout(group) && group.out.dtype == p.forward.x.dtype);
  });
}

template <typename Use>
void for_groups_in_order(const GroupedProblem& p, Use&& use) {
  for (const bool copy : {false, true}) {
    for (std::size_t i = 0; i < p.used_groups().size(); ++i) {
      if (p.groups[i].copy == copy && !has_own_launch(p.groups[i])) use(p.groups[i], i);
    }
  }
}

TileGroup tile_group_of(const GroupLayout& layout, std::int64_t first_block, void* out) {
  const bool one = is_one_head(layout);
  return {.out = out,
          .first_block = static_cast<std::uint16_t>(first_block),
          .heads = static_cast<std::uint16_t>(one ? 1 : layout.heads),
          .head_dim = narrow(one ? layout.channels() : layout.head_dim),
          .first_channel = narrow(layout.first_channel),
          .head_slots = divisor(head_slots(layout)),
          .columns = columns_of(layout.input, layout.heads, 1),
          .out_stride_bytes = narrow(layout.out.token_stride * 2),
          .out_head_stride = narrow(layout.out.head_stride)};
}

template <typename Layout>
GateRows rows_of(const Layout& layout, const void* data) {
  return {.data = const_cast<void*>(data),
          .sequence_stride = layout.sequence_stride,
          .token_stride = layout.token_stride};
}

TileGateParams gate_params(const GateProblem& p, const GatePointers& at) {
  return {.heads = narrow(p.heads),
          .a_columns = columns_of(p.a_map, p.heads, p.a.channel_stride),
          .b_columns = columns_of(p.b_map, p.heads, p.b.channel_stride),
          .a = rows_of(p.a, at.a),
          .b = rows_of(p.b, at.b),
          .g = rows_of(p.g, at.g),
          .beta = rows_of(p.beta, at.beta),
          .g_head_stride = p.g.head_stride,
          .beta_head_stride = p.beta.head_stride,
          .a_log = at.a_log,
          .dt_bias = at.dt_bias,
          .a_log_stride = p.a_log.head_stride,
          .dt_bias_stride = p.dt_bias.head_stride,
          .dt_bias_dtype = p.dt_bias.dtype,
          .decay = p.decay,
          .beta_factor = p.beta_factor,
          .round_beta = p.round_beta};
}

bool normalizes(const GroupedProblem& p) {
  return std::ranges::any_of(p.used_groups(), is_normalized_in_tiles);
}

/// Decode calls without norms and gates have a kernel of their own.
bool is_decode(const GroupedProblem& p) {
  return !p.forward.query_start_loc.present && p.forward.sequence_tokens == 1 && !p.has_gates &&
         p.forward.state.present && p.forward.initial_state == InitialState::kAll && !normalizes(p);
}

/// Blocks of the grid, and its parameters that depend on them.
void set_blocks(const GroupedProblem& p, const DeviceProperties& device, const TuningPolicy& policy,
                GroupTileConfig& config) {
  LaunchParams& launch = config.launch.params;
  const std::int64_t copied = config.channel_blocks - config.convolved_blocks;
  std::int64_t blocks = 0;  // of a unit
  if (config.kernel == GroupKernel::kDecode) {
    constexpr std::int64_t kWarps = kGroupDecodeThreads / 32;
    config.launch.threads = kGroupDecodeThreads;
    blocks = divide_up(config.channel_blocks, kWarps);
    config.launch.blocks = p.forward.sequences * blocks;
  } else {
    const std::int64_t wave = policy.wave_blocks * device.multiprocessors;
    const auto rounds = [&](std::int64_t channel_blocks, std::int64_t most) {
      return launch.tiles * channel_blocks >= policy.group_rounds_waves * wave ? most : 1;
    };
    config.tile_rounds =
        normalizes(p) ? static_cast<std::uint32_t>(rounds(config.convolved_blocks, kTileRounds))
                      : 1;
    config.copy_rounds = static_cast<std::uint32_t>(rounds(copied, kCopyRounds));
    config.convolving_blocks =
        static_cast<std::uint32_t>(divide_up(config.convolved_blocks, config.tile_rounds));
    blocks = config.convolving_blocks + divide_up(copied, config.copy_rounds);
    config.tile_gate_blocks =
        config.has_gates ? narrow(divide_up(p.gates.heads, kGateBlockHeads)) : 0;
    config.launch.blocks = launch.start_blocks + launch.tiles * (blocks + config.tile_gate_blocks);
  }
  if (config.launch.blocks > kMaxBlocks) return;
  launch.channel_blocks = divisor(blocks);
  const std::int64_t last = policy.pdl_last_blocks * device.multiprocessors;
  launch.pdl_launch_from =
      static_cast<std::uint32_t>(std::max<std::int64_t>(config.launch.blocks - last, 0));
}

}  // namespace

GroupTileConfig select_group_tiles(const GroupedProblem& p, const DeviceProperties& device,
                                   const TuningPolicy& policy) {
  GroupTileConfig config;
  if (!has_layout(p)) return config;
  std::int64_t convolved = 0, copied = 0;
  for_groups_in_order(p, [&](const GroupLayout& group, std::size_t) {
    (group.copy ? copied : convolved) += blocks_of(group);
  });
  if (convolved == 0 || convolved + copied > kMaxChannelBlocks) return config;
  config.has_gates = has_gate_layout(p);
  config.launch =
      select_tiles(p.forward, convolved * kTileChannels, device, policy, config.alignment);
  config.kernel = is_decode(p)                                 ? GroupKernel::kDecode
                  : config.launch.params.start_blocks_take_all ? GroupKernel::kFewTiles
                                                               : GroupKernel::kTiles;
  config.convolved_blocks = static_cast<std::uint32_t>(convolved);
  config.channel_blocks = static_cast<std::uint32_t>(convolved + copied);
  set_blocks(p, device, policy, config);
  return config.launch.blocks <= kMaxBlocks ? config : GroupTileConfig();
}

bool has_own_launch(const GroupLayout& group) { return group.copy && !has_group_layout(group); }

bool is_normalized_in_tiles(const GroupLayout& group) {
  return group.normalize && group.head_dim <= kMaxNorm && group.l2_norm.eps >= kMinTileEps;
}

bool are_aligned(const GroupedProblem& p, const GroupTileConfig& config,
                 const GroupedPointers& at) {
  bool aligned = has_aligned_rows(config.alignment, at.forward);
  for_groups_in_order(p, [&](const GroupLayout&, std::size_t number) {
    TensorPointers outputs;
    outputs.out = at.groups[number];
    aligned &= has_aligned_rows(config.alignment, outputs);
  });
  return aligned;
}

GroupTileParams make_group_tile_params(const GroupedProblem& p, const GroupTileConfig& config,
                                       const GroupedPointers& at) {
  LaunchParams launch = config.launch.params;
  restrict_to_alignment(config.alignment, at.forward, launch);
  GroupTileParams params;
  params.forward = make_kernel_params(p.forward, at.forward, launch);
  params.convolved_blocks = config.convolved_blocks;
  params.channel_blocks = config.channel_blocks;
  params.copy_rounds = config.copy_rounds;
  params.tile_rounds = config.tile_rounds;
  params.convolving_blocks = config.convolving_blocks;
  if (config.tile_gate_blocks > 0) {
    params.gate_blocks = launch.tiles * static_cast<std::uint32_t>(config.tile_gate_blocks);
    params.tile_gate_blocks = divisor(config.tile_gate_blocks);
  }
  params.forward.channels = narrow(
      (config.kernel == GroupKernel::kDecode ? config.channel_blocks : config.convolved_blocks) *
      std::int64_t{kTileChannels});
  std::size_t next = 0;
  std::int64_t first_block = 0;
  for_groups_in_order(p, [&](const GroupLayout& group, std::size_t number) {
    params.groups[next] = tile_group_of(group, first_block, at.groups[number]);
    params.norms[next] = is_normalized_in_tiles(group) ? group.l2_norm : L2Norm{.eps = 0};
    params.out_sequence_strides[next] = group.out.sequence_stride;
    const std::int64_t end = first_block + blocks_of(group);
    std::fill(params.group_of_block + first_block, params.group_of_block + end,
              static_cast<std::uint8_t>(next++));
    first_block = end;
  });
  if (config.has_gates) params.gates = gate_params(p.gates, at.gates);
  return params;
}

}  // namespace shortconv::cuda
