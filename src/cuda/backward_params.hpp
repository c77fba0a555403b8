// Parameters of the backward kernels, and how they divide the tokens.
#pragma once

#include <cstdint>

#include "cuda/backward_tuning.hpp"
#include "cuda/kernel_params.hpp"
#include "cuda/launch_params.hpp"
#include "op/sequence.hpp"
#include "shortconv/groups.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// A tensor with a row for each token. The kernel for token-major rows has no use for the stride of
/// channels.
struct BackwardRows {
  void* data = nullptr;  // null: absent
  std::int64_t sequence_stride_bytes = 0;
  std::int64_t channel_stride_bytes = 0;
  std::int32_t stride_bytes = 0;  // from one row to the next
};

/// A tensor [sequences, history, channels] of any floating dtype, strides in elements.
struct BackwardStates {
  void* data = nullptr;  // null: absent
  std::int64_t sequence_stride = 0, column_stride = 0, channel_stride = 0;
  DType dtype = DType::kF32;
};

/// How the rows are divided into partial sums: by the shape alone, so that the gradients of weights
/// have the same bits on every device, for any strides and in every kernel. A strip is summed up in
/// the order of its rows in fp32; the strips of a unit, and then the units, in fp64. The last units
/// may have shorter strips, so that the multiprocessors finish at nearly the same time.
struct BackwardPartition {
  std::int64_t units = 0;       // of kUnitStrips strips each
  std::int64_t long_units = 0;  // the first ones, of strips of long_rows
  std::int32_t long_rows = 0, short_rows = 0;

  [[nodiscard]] constexpr std::int32_t strip_rows(std::int64_t unit) const {
    return unit < long_units ? long_rows : short_rows;
  }
  [[nodiscard]] constexpr std::int64_t first_row(std::int64_t unit, int strip) const {
    const std::int64_t longs = unit < long_units ? unit : long_units;
    return (longs * long_rows + (unit - longs) * short_rows) * kUnitStrips +
           std::int64_t{strip} * strip_rows(unit);
  }

  friend bool operator==(const BackwardPartition&, const BackwardPartition&) = default;
};

/// The channels of a group, from 0 on, where the kernel is for groups.
struct BackwardGroup {
  FastDivisor head_dim;               // above 1
  HeadColumns columns;                // of x and grad_x
  std::int32_t grad_head_stride = 0;  // of grad_out, in elements
  std::int32_t head_lanes = 0;        // threads that have the channels of a head
  L2Norm norm;
};

/// Parameters of the kernels for strips. Of a call with groups, the channels are those of one.
struct BackwardKernelParams {
  FastDivisor channel_blocks;  // adjacent channels: block = unit * channel_blocks + channel block
  FastDivisor units;           // other strides: block = channel block * units + unit
  std::int32_t channels = 0, tokens = 0;
  BackwardPartition partition;
  BackwardRows x, grad_out, grad_x;
  FastDivisor sequence_tokens;  // dense batches
  bool is_dense = false;        // sequences of sequence_tokens rows, with seq_idx too
  bool is_packed = true;        // a row follows the one before at the row stride, in all tensors
  /// Adjacent channels: 16 or 8, to which rows are aligned. Other strides: 16 or 4, to which runs
  /// of adjacent tokens are aligned, or 0, single elements.
  std::int32_t copy_bytes = 16;
  bool has_states = false;
  bool has_f32_weights = false;                // else of the type of x
  std::uint32_t pdl_launch_from = 0xffffffff;  // first block that lets the next kernel start
  Weights weights;
  float* partial_sums = nullptr;  // [units, width + 1, channels]; null: not wanted
  const void* query_start_loc = nullptr;
  std::int32_t query_start_loc_stride_bytes = 0, sequences = 0;
  const void* seq_idx = nullptr;
  std::int64_t seq_idx_sequence_stride = 0, seq_idx_token_stride = 0;
  DType seq_idx_dtype = DType::kI32;
  Activation activation = Activation::kNone;
  bool residual = false;
  BackwardRows input_gate, output_gate, grad_input_gate, grad_output_gate;
  BackwardStates initial_state, grad_final_state, grad_initial_state;
  BackwardGroup group;
};

/// Parameters of the general kernel, in 64 bits.
struct BackwardGeneralParams {
  BackwardProblem problem;
  BackwardPointers pointers;
  FastDivisor channel_blocks;  // block = unit * channel_blocks + channel block
  BackwardPartition partition;
};

/// The gradient of a group that is copied, to its columns of grad_x.
struct CopyGradientParams {
  BackwardProblem problem;  // which rows have a sequence
  BackwardPointers pointers;
  FastDivisor blocks;        // of a row: block = unit * blocks + block of a row
  FastDivisor head_vectors;  // vectors of a head
  HeadColumns columns;       // of grad_x, in bytes
  std::int32_t vectors = 0;  // of a row
  std::int32_t vector_bytes = 16;
  std::int32_t grad_head_stride_bytes = 0;
  BackwardRows grad_out, grad_x;
  std::uint32_t pdl_launch_from = 0;
};
inline constexpr int kCopyGradientThreads = 256;
inline constexpr int kCopyGradientRows = 8;  // of a thread; not tuned

/// A tensor [tokens, heads] of the gates.
struct GateTensor {
  void* data = nullptr;  // of the first head; null: absent
  HeadColumns columns;   // of the heads, in bytes
  std::int64_t sequence_stride_bytes = 0;
  std::int32_t stride_bytes = 0;  // from one token to the next
  DType dtype = DType::kF32;
};

/// The gradients of gates.
struct GateGradientParams {
  BackwardProblem problem;  // which rows have a sequence
  BackwardPointers pointers;
  std::int32_t heads = 0;
  std::int32_t head_lanes = 32;  // of a warp, a power of two; other lanes have other rows
  FastDivisor head_blocks;       // of head_lanes: block = unit * head_blocks + block of heads
  FastDivisor sequence_tokens;   // dense batches
  std::int32_t strip_rows = 0;
  bool exponential = false;  // DecayForm::kExp
  float beta_factor = 1;
  GateTensor a, b, grad_g, grad_beta, grad_a, grad_b;
  const void* a_log = nullptr;
  const void* dt_bias = nullptr;
  std::int64_t a_log_stride = 0, dt_bias_stride = 0;
  DType dt_bias_dtype = DType::kF32;
  float* partial_sums = nullptr;  // [units, 2, heads]: of a_log and of dt_bias; null: not wanted
  std::uint32_t pdl_launch_from = 0;
};
inline constexpr int kGateRows = 4;  // of a thread in short calls; not tuned

inline constexpr int kSumThreads = 256;
inline constexpr int kGateSumHeads = 4;  // of a block
inline constexpr int kSumColumns = 128;  // channels of a block

/// The gradient of the weights or of the bias; strides in elements.
struct BackwardSum {
  void* data = nullptr;  // null: not wanted
  std::int64_t channel_stride = 0, tap_stride = 0;
  DType dtype = DType::kF32;
};

/// The partial sums of a group of channels, or of all.
struct SumSegment {
  const float* partial_sums = nullptr;  // [units, width + 1, channels]
  std::int64_t units = 0, channels = 0;
  std::int64_t first_channel = 0;  // of the gradients
  std::uint32_t first_block = 0;
  FastDivisor channel_blocks;  // block = first_block + row * channel_blocks + channel block
};

/// The last sums of the gradients of gates.
struct GateSumParams {
  std::int64_t heads = 0, units = 0;
  const float* partial_sums = nullptr;  // [units, 2, heads]
  BackwardSum a_log, dt_bias;
};

/// Parameters of the kernel after them: those of every call first, as in KernelParams.
struct BackwardSumParams {
  std::uint32_t sum_blocks = 0;
  std::int32_t width = 0;
  std::int32_t segment_count = 0;
  SumSegment segments[kMaxGroups];
  BackwardSum weight, bias;
  bool accumulate = false;
  FastDivisor state_channel_blocks;  // after sum_blocks: sequence * these + channel block
  BackwardProblem problem;
  BackwardPointers pointers;
  GateSumParams gates;
};

}  // namespace shortconv::cuda
