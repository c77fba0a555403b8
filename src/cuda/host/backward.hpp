// BackwardProblem -> BackwardConfig: the launches of a backward call. Pure functions of the
// problem, tested without a GPU.
#pragma once

#include "core/backend.hpp"
#include "cuda/backward_params.hpp"
#include "cuda/host/kernels.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// What an instance of backward_strips computes.
struct BackwardFeatures {
  int width = 0;
  Activation activation = Activation::kNone;
  bool has_bias = false;           // or its gradient
  bool has_epilogue = false;       // or gates
  bool fits_packed_strips = true;  // no states, and one stride from each row to the next
  bool has_adjacent_channels = true;
};

/// An instance of backward_strips.
struct BackwardKernel {
  KernelFunction function = nullptr;
  std::int32_t columns = 0;      // channels of a block
  std::int32_t strip_bytes = 0;  // of shared memory
};

struct BackwardLaunch {
  KernelFunction function = nullptr;
  std::int64_t blocks = 0;  // 0: not possible, or there are no rows
  std::int32_t shared_bytes = 0, threads = kBackwardThreads;
  FastDivisor channel_blocks;
};

/// What a plan keeps. The addresses of a call decide between the kernels.
struct BackwardConfig {
  BackwardPartition partition;
  std::int32_t row_alignment = 0;  // of the strides between rows: 16 bytes or less
  std::int32_t run_alignment = 0;  // of the strides between runs of adjacent tokens
  BackwardLaunch row_strips;       // adjacent channels, aligned to 8 bytes
  BackwardLaunch channel_strips;   // any strides
  BackwardLaunch general;          // everything
  std::int64_t finish_blocks = 0;  // of the kernel after it; 0: it is not needed
  bool finish_overlaps = false;    // that kernel has code for PDL, so it may start early
};

/// Of the device on which partitions were measured; they do not depend on the one that runs.
inline constexpr std::int64_t kMultiprocessors = 132;

/// The partial sums of a shape: of tokens, channels and sequences. backward_partition.cpp.
[[nodiscard]] BackwardPartition backward_partition(const BackwardProblem& problem);

[[nodiscard]] constexpr bool wants_sums(const BackwardProblem& p) {
  return p.grad_weight.present || p.grad_bias.present;
}

/// Bytes of the partial sums.
[[nodiscard]] inline std::int64_t partial_sum_bytes(const BackwardProblem& p) {
  if (!wants_sums(p)) return 0;
  return backward_partition(p).units * (p.width + 1) * p.channels *
         static_cast<std::int64_t>(sizeof(float));
}

/// Everything, for a device whose blocks may have this much shared memory. Fails for grids that a
/// GPU cannot have.
[[nodiscard]] Status select_backward(const BackwardProblem& problem, std::int32_t shared_bytes,
                                     BackwardConfig& config);

// What calls with groups share with others.

/// Whether kernels for strips may compute the problem.
[[nodiscard]] bool allows_strips(const BackwardProblem& problem);
/// Whether one token stride leads from each row to the next, in all tensors.
[[nodiscard]] bool is_packed(const BackwardProblem& problem);
/// The largest power of two, up to 16, that divides the numbers whose bits these are.
[[nodiscard]] std::int32_t alignment_of(std::int64_t bits);
/// Bytes that divide all strides between rows of adjacent channels.
[[nodiscard]] std::int32_t row_alignment(const BackwardProblem& problem);
/// Sets the blocks of a launch whose blocks have `columns` channels of a unit.
[[nodiscard]] Status divide_grid(const BackwardProblem& problem, std::int64_t columns,
                                 const BackwardPartition& partition, BackwardLaunch& launch);
/// Blocks that add up the gradients of weight and bias.
[[nodiscard]] std::int64_t sum_blocks(const BackwardProblem& problem);
/// Of blocks that let the next kernel of the stream start only the last ones do, because it costs
/// them time: device/pdl.cuh.
[[nodiscard]] std::uint32_t pdl_launch_from(std::int64_t blocks);
/// Shared memory that a block may have.
[[nodiscard]] Status shared_bytes_of(int device, std::int32_t& bytes);

/// The launch of strips for these addresses; null: only `general` is possible. copy_bytes:
/// BackwardKernelParams.
[[nodiscard]] const BackwardLaunch* choose_strips(const BackwardConfig& config,
                                                  const BackwardPointers& pointers,
                                                  std::int32_t& copy_bytes);

[[nodiscard]] BackwardKernelParams make_backward_params(const BackwardProblem& problem,
                                                        const BackwardPointers& pointers,
                                                        const BackwardConfig& config,
                                                        const BackwardLaunch& strips);
/// Without segments.
[[nodiscard]] BackwardSumParams make_sum_params(const BackwardProblem& problem,
                                                const BackwardPointers& pointers);
/// Adds the partial sums of the channels of a problem, from `first_channel` of the gradients on.
void add_segment(const BackwardProblem& problem, std::int64_t first_channel, std::int64_t units,
                 const void* partial_sums, BackwardSumParams& params);

/// The instance for widths of 2 to kMaxBackwardWidth or kMaxChannelStripWidth, by the type of x;
/// without a function for others.
BackwardKernel backward_kernel_f32(const BackwardFeatures& features);
BackwardKernel backward_kernel_f16(const BackwardFeatures& features);
BackwardKernel backward_kernel_bf16(const BackwardFeatures& features);
KernelFunction backward_general_kernel();  // takes BackwardGeneralParams
KernelFunction finish_backward_kernel();   // takes BackwardSumParams, as the next
KernelFunction finish_grouped_backward_kernel();

/// backward.cpp.
extern const OperationKernels<BackwardOperation> kBackward;

}  // namespace shortconv::cuda
