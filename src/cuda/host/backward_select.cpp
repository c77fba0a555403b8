#include <algorithm>

#include "core/check.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/host/backward.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/host/select.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kMaxStripRows = 128;
constexpr std::int64_t kMinStripRows = 16;

bool has_epilogue(const BackwardProblem& p) {
  return p.epilogue != Epilogue::kNone || p.input_gate.present;
}

BackwardKernel kernel_of(const BackwardProblem& p) {
  const BackwardFeatures features{static_cast<int>(p.width), p.activation,
                                  p.bias.present || p.grad_bias.present, has_epilogue(p)};
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

/// Calls visit(layout) for each tensor with a row for each token.
template <typename Visit>
void visit_rows(const BackwardProblem& p, const Visit& visit) {
  for (const auto* layout : {&p.x, &p.grad_out, &p.grad_x, &p.input_gate, &p.output_gate,
                             &p.grad_input_gate, &p.grad_output_gate}) {
    if (layout->present) visit(*layout);
  }
}

bool is_dense(const BackwardProblem& p) { return !p.query_start_loc.present; }

/// Whether one token stride leads from each row to the next, in all tensors.
bool is_packed(const BackwardProblem& p) {
  bool packed = true;
  visit_rows(p, [&](const auto& layout) {
    if (!is_dense(p) || p.sequences == 1) return;
    if (layout.sequence_stride != p.sequence_tokens * layout.token_stride) packed = false;
  });
  return packed;
}

/// Bytes that divide all strides of rows.
std::int64_t stride_alignment(const BackwardProblem& p) {
  const std::int64_t bytes = element_bytes(p.x.dtype);
  std::int64_t bits = p.channels * bytes;
  visit_rows(p, [&](const auto& layout) {
    bits |= layout.token_stride * bytes;
    if (is_dense(p) && p.sequences > 1) bits |= layout.sequence_stride * bytes;
  });
  return bits & -bits;
}

/// Sizes and strides in 31 bits, with room for the rows that a kernel adds to them.
bool is_countable(const BackwardProblem& p) {
  constexpr std::int64_t kMaxCount = std::int64_t{1} << 30;
  constexpr std::int64_t kMaxStride = std::int64_t{1} << 26;  // in bytes, times 16 rows
  bool countable = p.tokens < kMaxCount && p.channels < kMaxCount / 8 && p.sequences < kMaxCount;
  visit_rows(p, [&](const auto& layout) {
    if (std::abs(layout.token_stride) * element_bytes(layout.dtype) > kMaxStride) countable = false;
  });
  return countable && std::abs(p.query_start_loc.sequence_stride) < kMaxStride;
}

/// Whether the kernel for token-major rows computes the problem.
bool has_strips(const BackwardProblem& p) {
  bool rows = true;
  visit_rows(p, [&](const auto& layout) {
    if (layout.channel_stride != 1 || layout.dtype != p.x.dtype) rows = false;
  });
  const bool weights = p.weight.dtype == p.x.dtype || p.weight.dtype == DType::kF32;
  return rows && weights && p.dilation == 1 && is_countable(p) && stride_alignment(p) >= 8 &&
         kernel_of(p).function != nullptr;
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
std::int64_t state_blocks(const BackwardProblem& p) {
  return p.grad_initial_state.present ? p.sequences * divide_up(p.channels, kSumThreads) : 0;
}

template <typename Layout>
BackwardRows rows_of(const Layout& layout, void* data) {
  if (!layout.present) return {};
  const std::int64_t bytes = element_bytes(layout.dtype);
  return {data, layout.sequence_stride * bytes, narrow(layout.token_stride * bytes)};
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

BackwardPartition backward_partition(std::int64_t tokens, std::int64_t channels) {
  // 1024 strips of 128 channels keep a large GPU busy: 8 warps a multiprocessor. With twice as
  // many, half as long, 4096 x 4096 takes 1 us longer (H200). Strips do not become shorter than 16
  // rows: each of them reads up to 3 * (width - 1) rows again.
  constexpr std::int64_t kStrips = 1024;
  const std::int64_t groups = divide_up(channels, 128);
  std::int64_t rows = kMaxStripRows;
  while (rows > kMinStripRows && groups * divide_up(tokens, rows) < kStrips) rows /= 2;
  BackwardPartition partition;
  partition.strip_rows = rows;
  partition.units = divide_up(tokens, rows * kUnitStrips);
  return partition;
}

std::int64_t partial_sum_bytes(const BackwardProblem& p) {
  if (!wants_sums(p)) return 0;
  return backward_partition(p.tokens, p.channels).units * (p.width + 1) * p.channels *
         static_cast<std::int64_t>(sizeof(float));
}

Status select_backward(const BackwardProblem& p, BackwardConfig& config) {
  config = {};
  config.partition = backward_partition(p.tokens, p.channels);
  if (Status status = divide_grid(p, 32, config.partition, config.general); !status.ok()) {
    return status;
  }
  config.general.function = backward_general_kernel();
  if (config.general.blocks > 0 && has_strips(p)) {
    const BackwardKernel kernel = kernel_of(p);
    if (Status status = divide_grid(p, kernel.columns, config.partition, config.strips);
        !status.ok()) {
      return status;
    }
    config.strips.function = kernel.function;
    config.strips.shared_bytes = kernel.strip_bytes * kUnitStrips;
    config.row_alignment = stride_alignment(p) >= 16 ? 16 : 8;
  }
  config.finish_blocks = sum_blocks(p) + state_blocks(p);
  if (config.finish_blocks > kMaxBlocks) {
    return {Code::kUnsupported, concat("grad_initial_state: needs ", config.finish_blocks,
                                       " blocks; a grid has at most ", kMaxBlocks)};
  }
  return {};
}

bool allows_strips(const BackwardConfig& config, const BackwardPointers& at,
                   bool& copies_16_bytes) {
  std::uintptr_t read = 0, written = 0;
  for (const void* address : {at.x, at.grad_out, at.input_gate, at.output_gate}) {
    read |= reinterpret_cast<std::uintptr_t>(address);
  }
  for (const void* address : {at.grad_x, at.grad_input_gate, at.grad_output_gate}) {
    written |= reinterpret_cast<std::uintptr_t>(address);
  }
  copies_16_bytes = config.row_alignment == 16 && read % 16 == 0;
  return config.strips.blocks > 0 && (read | written) % 8 == 0;
}

BackwardKernelParams make_backward_params(const BackwardProblem& p, const BackwardPointers& at,
                                          const BackwardConfig& config) {
  BackwardKernelParams params;
  params.channel_blocks = config.strips.channel_blocks;
  params.channels = narrow(p.channels);
  params.tokens = narrow(p.tokens);
  params.strip_rows = narrow(config.partition.strip_rows);
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
  params.has_states = p.initial_state.present || p.grad_final_state.present;
  // Blocks that let the next kernel start cost time, so only the last ones do: device/pdl.cuh.
  constexpr std::int64_t kLastBlocks = 1024;
  params.pdl_launch_from =
      static_cast<std::uint32_t>(std::max<std::int64_t>(config.strips.blocks - kLastBlocks, 0));
  return params;
}

BackwardSumParams make_sum_params(const BackwardProblem& p, const BackwardPointers& at,
                                  const BackwardConfig& config) {
  BackwardSumParams params;
  params.problem = p;
  params.pointers = at;
  params.width = narrow(p.width);
  params.channels = p.channels;
  params.partial_sums = static_cast<const float*>(at.workspace);
  if (p.grad_weight.present) {
    params.weight = {at.grad_weight, p.grad_weight.channel_stride, p.grad_weight.tap_stride,
                     p.grad_weight.dtype};
  }
  if (p.grad_bias.present) {
    params.bias = {at.grad_bias, p.grad_bias.channel_stride, 0, p.grad_bias.dtype};
  }
  params.accumulate = p.accumulate;
  params.channel_blocks =
      FastDivisor(static_cast<std::uint32_t>(divide_up(p.channels, kSumColumns)));
  params.state_channel_blocks =
      FastDivisor(static_cast<std::uint32_t>(divide_up(p.channels, kSumThreads)));
  params.sum_blocks = static_cast<std::uint32_t>(sum_blocks(p));
  params.units = config.partition.units;
  return params;
}

}  // namespace shortconv::cuda
