#include <algorithm>

#include "core/check.hpp"
#include "core/history.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/host/backward.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/host/select.hpp"

namespace shortconv::cuda {
namespace {

bool has_epilogue(const BackwardProblem& p) {
  return p.epilogue != Epilogue::kNone || p.input_gate.present;
}

constexpr std::int64_t kMaxCount = std::int64_t{1} << 30;
constexpr std::int64_t kMaxStride = std::int64_t{1} << 26;  // in bytes, times 16 rows

/// Calls visit(layout) for each tensor with a row for each token.
template <typename Visit>
void visit_rows(const BackwardProblem& p, const Visit& visit) {
  for (const auto* layout : {&p.x, &p.grad_out, &p.grad_x, &p.input_gate, &p.output_gate,
                             &p.grad_input_gate, &p.grad_output_gate}) {
    if (layout->present) visit(*layout);
  }
}

bool is_dense(const BackwardProblem& p) { return !p.query_start_loc.present; }

}  // namespace

bool is_packed(const BackwardProblem& p) {
  bool packed = true;
  visit_rows(p, [&](const auto& layout) {
    if (!is_dense(p) || p.sequences == 1) return;
    if (layout.sequence_stride != p.sequence_tokens * layout.token_stride) packed = false;
  });
  return packed;
}

std::int32_t alignment_of(std::int64_t bits) {
  bits |= 16;
  return narrow(bits & -bits);
}

std::int32_t row_alignment(const BackwardProblem& p) {
  const std::int64_t bytes = element_bytes(p.x.dtype);
  std::int64_t bits = p.channels * bytes;
  visit_rows(p, [&](const auto& layout) {
    bits |= layout.token_stride * bytes;
    if (is_dense(p) && p.sequences > 1) bits |= layout.sequence_stride * bytes;
  });
  return alignment_of(bits);
}

namespace {

bool has_states(const BackwardProblem& p) {
  return p.initial_state.present || p.grad_final_state.present;
}

BackwardKernel kernel_of(const BackwardProblem& p, bool has_adjacent_channels) {
  const BackwardFeatures features{.width = static_cast<int>(p.width),
                                  .activation = p.activation,
                                  .has_bias = p.bias.present || p.grad_bias.present,
                                  .has_epilogue = has_epilogue(p),
                                  .fits_packed_strips = is_packed(p) && !has_states(p),
                                  .has_adjacent_channels = has_adjacent_channels};
  switch (p.x.dtype) {
    case DType::kF16:
      return backward_kernel_f16(features);
    case DType::kBF16:
      return backward_kernel_bf16(features);
    case DType::kF32:
      return backward_kernel_f32(features);
    case DType::kF64:
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kBool:
      break;
  }
  return {};
}

/// Whether channels of a row are adjacent, in all tensors.
bool has_adjacent_channels(const BackwardProblem& p) {
  bool adjacent = true;
  visit_rows(p, [&](const auto& layout) {
    if (layout.channel_stride != 1) adjacent = false;
  });
  return adjacent;
}

/// Bytes that divide all strides between runs of adjacent tokens, and the runs of a sequence; 1 if
/// tokens are not adjacent, or if these strides are too long.
std::int32_t run_alignment(const BackwardProblem& p) {
  const std::int64_t bytes = element_bytes(p.x.dtype);
  std::int64_t bits = 0;
  visit_rows(p, [&](const auto& layout) {
    const std::int64_t stride = layout.channel_stride * bytes;
    if (layout.token_stride != 1 || std::abs(stride) > kMaxStride) bits |= 1;
    bits |= stride;
    if (!is_dense(p) || p.sequences == 1) return;
    bits |= layout.sequence_stride * bytes | p.sequence_tokens * bytes;
  });
  return alignment_of(bits);
}

/// Sizes and strides in 31 bits, with room for the rows that a kernel adds to them.
bool is_countable(const BackwardProblem& p) {
  bool countable = p.tokens < kMaxCount && p.channels < kMaxCount / 8 && p.sequences < kMaxCount;
  visit_rows(p, [&](const auto& layout) {
    if (std::abs(layout.token_stride) * element_bytes(layout.dtype) > kMaxStride) countable = false;
  });
  return countable && std::abs(p.query_start_loc.sequence_stride) < kMaxStride;
}

}  // namespace

bool allows_strips(const BackwardProblem& p) {
  bool one_type = p.weight.dtype == p.x.dtype || p.weight.dtype == DType::kF32;
  visit_rows(p, [&](const auto& layout) {
    if (layout.dtype != p.x.dtype) one_type = false;
  });
  return one_type && p.dilation == 1 && is_countable(p);
}

Status divide_grid(const BackwardProblem& p, std::int64_t columns,
                   const BackwardPartition& partition, BackwardLaunch& launch) {
  const std::int64_t channel_blocks = divide_up(p.channels, columns);
  launch.blocks = partition.units * channel_blocks;
  if (launch.blocks > kMaxBlocks) {
    return {Code::kUnsupported,
            concat("x: needs ", launch.blocks,
                   " blocks of the backward kernel; a grid has at most ", kMaxBlocks)};
  }
  launch.channel_blocks = FastDivisor(static_cast<std::uint32_t>(channel_blocks));
  return {};
}

std::int64_t sum_blocks(const BackwardProblem& p) {
  const std::int64_t rows = p.grad_bias.present ? p.width + 1 : p.grad_weight.present ? p.width : 0;
  return rows * divide_up(p.channels, kSumColumns);
}

namespace {

/// Without a function if there is no kernel for these strips, or too little shared memory.
Status divide_strips(const BackwardProblem& p, bool adjacent_channels, std::int32_t shared_bytes,
                     const BackwardConfig& config, BackwardLaunch& launch) {
  const BackwardKernel kernel = kernel_of(p, adjacent_channels);
  if (!allows_strips(p) || kernel.function == nullptr) return {};
  if (adjacent_channels && config.row_alignment < 8) return {};
  if (kernel.strip_bytes * kUnitStrips > shared_bytes) return {};
  if (Status status = divide_grid(p, kernel.columns, config.partition, launch); !status.ok()) {
    return status;
  }
  launch.function = kernel.function;
  launch.shared_bytes = kernel.strip_bytes * kUnitStrips;
  return {};
}

Status divide_general(const BackwardProblem& p, std::int32_t shared_bytes,
                      const BackwardPartition& partition, BackwardLaunch& launch) {
  const int width = narrow(p.width), history = narrow(history_of(p));
  const int channels = general_backward_channels(width, history, shared_bytes);
  launch.function = backward_general_kernel();
  launch.threads = kUnitStrips * channels;
  launch.shared_bytes = general_backward_bytes(width, history, channels);
  return divide_grid(p, channels, partition, launch);
}

std::int64_t state_blocks(const BackwardProblem& p) {
  return p.grad_initial_state.present ? p.sequences * divide_up(p.channels, kSumThreads) : 0;
}

template <typename Layout>
BackwardRows rows_of(const Layout& layout, void* data) {
  if (!layout.present) return {};
  const std::int64_t bytes = element_bytes(layout.dtype);
  return {data, layout.sequence_stride * bytes, layout.channel_stride * bytes,
          narrow(layout.token_stride * bytes)};
}

template <typename Layout>
BackwardStates states_of(const Layout& layout, void* data) {
  if (!layout.present) return {};
  return {data, layout.sequence_stride, layout.column_stride, layout.channel_stride, layout.dtype};
}

Weights weights_of(const BackwardProblem& p, const BackwardPointers& at) {
  const auto aligned = [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  };
  const bool packed = p.weight.tap_stride == 1 && p.weight.channel_stride == p.width &&
                      aligned(at.weight) &&
                      (!p.bias.present || (p.bias.channel_stride == 1 && aligned(at.bias)));
  return {at.weight, at.bias, p.weight.channel_stride, p.weight.tap_stride, p.bias.channel_stride,
          packed};
}

}  // namespace

Status select_backward(const BackwardProblem& p, std::int32_t shared_bytes,
                       BackwardConfig& config) {
  config = {};
  config.partition = backward_partition(p);
  if (Status status = divide_general(p, shared_bytes, config.partition, config.general);
      !status.ok()) {
    return status;
  }
  if (config.general.blocks > 0) {
    config.row_alignment = has_adjacent_channels(p) ? row_alignment(p) : 0;
    config.run_alignment = run_alignment(p);
    if (Status status = divide_strips(p, true, shared_bytes, config, config.row_strips);
        !status.ok()) {
      return status;
    }
    if (Status status = divide_strips(p, false, shared_bytes, config, config.channel_strips);
        !status.ok()) {
      return status;
    }
  }
  config.finish_blocks = sum_blocks(p) + state_blocks(p);
  if (config.finish_blocks > kMaxBlocks) {
    return {Code::kUnsupported, concat("grad_initial_state: needs ", config.finish_blocks,
                                       " blocks; a grid has at most ", kMaxBlocks)};
  }
  return {};
}

const BackwardLaunch* choose_strips(const BackwardConfig& config, const BackwardPointers& at,
                                    std::int32_t& copy_bytes) {
  std::uintptr_t read = 0, written = 0;
  for (const void* address : {at.x, at.grad_out, at.input_gate, at.output_gate}) {
    read |= reinterpret_cast<std::uintptr_t>(address);
  }
  for (const void* address : {at.grad_x, at.grad_input_gate, at.grad_output_gate}) {
    written |= reinterpret_cast<std::uintptr_t>(address);
  }
  if (config.row_strips.blocks > 0 && (read | written) % 8 == 0) {
    copy_bytes = config.row_alignment == 16 && read % 16 == 0 ? 16 : 8;
    return &config.row_strips;
  }
  const auto is_aligned = [&](std::int32_t bytes) {
    return config.run_alignment % bytes == 0 && (read | written) % bytes == 0;
  };
  copy_bytes = is_aligned(16) ? 16 : is_aligned(4) ? 4 : 0;
  return config.channel_strips.blocks > 0 ? &config.channel_strips : nullptr;
}

std::uint32_t pdl_launch_from(std::int64_t blocks) {
  constexpr std::int64_t kLastBlocks = 1024;
  return static_cast<std::uint32_t>(std::max<std::int64_t>(blocks - kLastBlocks, 0));
}

BackwardKernelParams make_backward_params(const BackwardProblem& p, const BackwardPointers& at,
                                          const BackwardConfig& config,
                                          const BackwardLaunch& strips) {
  BackwardKernelParams params;
  params.channel_blocks = strips.channel_blocks;
  params.units = FastDivisor(static_cast<std::uint32_t>(config.partition.units));
  params.channels = narrow(p.channels);
  params.tokens = narrow(p.tokens);
  params.partition = config.partition;
  params.x = rows_of(p.x, at.x);
  params.grad_out = rows_of(p.grad_out, at.grad_out);
  params.grad_x = rows_of(p.grad_x, at.grad_x);
  params.input_gate = rows_of(p.input_gate, at.input_gate);
  params.output_gate = rows_of(p.output_gate, at.output_gate);
  params.grad_input_gate = rows_of(p.grad_input_gate, at.grad_input_gate);
  params.grad_output_gate = rows_of(p.grad_output_gate, at.grad_output_gate);
  params.is_dense = is_dense(p);
  params.is_packed = is_packed(p);
  if (params.is_dense) {
    params.sequence_tokens = FastDivisor(static_cast<std::uint32_t>(p.sequence_tokens));
  }
  params.has_f32_weights = p.weight.dtype == DType::kF32;
  params.weights = weights_of(p, at);
  if (wants_sums(p)) params.partial_sums = static_cast<float*>(at.workspace);
  params.query_start_loc = at.query_start_loc;
  params.query_start_loc_stride_bytes =
      narrow(p.query_start_loc.sequence_stride * element_bytes(p.query_start_loc.dtype));
  params.sequences = narrow(p.sequences);
  params.seq_idx = at.seq_idx;
  params.seq_idx_sequence_stride = p.seq_idx.sequence_stride;
  params.seq_idx_token_stride = p.seq_idx.token_stride;
  params.seq_idx_dtype = p.seq_idx.dtype;
  params.activation = p.activation;
  params.residual = p.epilogue == Epilogue::kResidual;
  params.initial_state = states_of(p.initial_state, at.initial_state);
  params.grad_final_state = states_of(p.grad_final_state, at.grad_final_state);
  params.grad_initial_state = states_of(p.grad_initial_state, at.grad_initial_state);
  params.has_states = has_states(p);
  params.pdl_launch_from = pdl_launch_from(strips.blocks);
  return params;
}

void add_segment(const BackwardProblem& p, std::int64_t first_channel, std::int64_t units,
                 const void* partial_sums, BackwardSumParams& params) {
  if (sum_blocks(p) == 0) return;
  params.segments[params.segment_count++] = {
      .partial_sums = static_cast<const float*>(partial_sums),
      .units = units,
      .channels = p.channels,
      .first_channel = first_channel,
      .first_block = params.sum_blocks,
      .channel_blocks =
          FastDivisor(static_cast<std::uint32_t>(divide_up(p.channels, kSumColumns)))};
  params.sum_blocks += static_cast<std::uint32_t>(sum_blocks(p));
}

BackwardSumParams make_sum_params(const BackwardProblem& p, const BackwardPointers& at) {
  BackwardSumParams params;
  params.problem = p;
  params.pointers = at;
  params.width = narrow(p.width);
  if (p.grad_weight.present) {
    params.weight = {at.grad_weight, p.grad_weight.channel_stride, p.grad_weight.tap_stride,
                     p.grad_weight.dtype};
  }
  if (p.grad_bias.present) {
    params.bias = {at.grad_bias, p.grad_bias.channel_stride, 0, p.grad_bias.dtype};
  }
  params.accumulate = p.accumulate;
  params.state_channel_blocks = FastDivisor(
      static_cast<std::uint32_t>(std::max<std::int64_t>(divide_up(p.channels, kSumThreads), 1)));
  return params;
}

}  // namespace shortconv::cuda
