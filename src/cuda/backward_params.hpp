// Parameters of the backward kernels, and how they divide the tokens.
#pragma once

#include <cstdint>

#include "cuda/backward_tuning.hpp"
#include "cuda/kernel_params.hpp"
#include "cuda/launch_params.hpp"
#include "op/sequence.hpp"
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

/// Parameters of the kernels for strips.
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
};

/// Parameters of the general kernel, in 64 bits.
struct BackwardGeneralParams {
  BackwardProblem problem;
  BackwardPointers pointers;
  FastDivisor channel_blocks;  // block = unit * channel_blocks + channel block
  BackwardPartition partition;
};

inline constexpr int kSumThreads = 256;
inline constexpr int kSumColumns = 128;  // channels of a block

/// The gradient of the weights or of the bias; strides in elements.
struct BackwardSum {
  void* data = nullptr;  // null: not wanted
  std::int64_t channel_stride = 0, tap_stride = 0;
  DType dtype = DType::kF32;
};

/// Parameters of the kernel after them: those of every call first, as in KernelParams.
struct BackwardSumParams {
  FastDivisor channel_blocks;  // block = row * channel_blocks + channel block
  std::uint32_t sum_blocks = 0;
  std::int32_t width = 0;
  std::int64_t channels = 0, units = 0;
  const float* partial_sums = nullptr;  // [units, width + 1, channels]
  BackwardSum weight, bias;
  bool accumulate = false;
  FastDivisor state_channel_blocks;  // after sum_blocks: sequence * these + channel block
  BackwardProblem problem;
  BackwardPointers pointers;
};

}  // namespace shortconv::cuda
