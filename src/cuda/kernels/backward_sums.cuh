// The last kernel of a backward call: adds up the partial sums of the gradients of weight, bias and
// gates, and passes the gradients of states of empty sequences through.
//
// Threads: a block adds up one row, a tap or the bias, of 128 channels. Its 8 warps take the units
// in 8 runs, in order, in fp64; then 128 threads add the runs, in order, and round once. Blocks
// after those take a sequence and 256 channels each or, in calls with groups, both sums of 4 heads
// of gates.
//
// Bytes moved: the partial sums once, about 0.5% of those of the call. The launch overlaps the end
// of the first kernel, so its latency is what counts: a thread has 16 loads in flight.
#pragma once

#include <cstdint>

#include "core/history.hpp"
#include "cuda/backward_params.hpp"
#include "cuda/device/memory.cuh"
#include "cuda/device/token.cuh"

namespace shortconv::cuda {

inline constexpr int kSumRuns = kSumThreads / 32;
inline constexpr int kLaneColumns = kSumColumns / 32;  // of a lane, 32 apart

__device__ inline void store_gradient_sum(DType dtype, void* to, std::int64_t index, double sum,
                                          bool accumulate) {
  if (dtype == DType::kF32) {
    auto* element = static_cast<float*>(to) + index;
    *element = static_cast<float>(accumulate ? sum + static_cast<double>(*element) : sum);
  } else {
    store_f32(dtype, to, index, round_to_odd(sum));
  }
}

/// Units [begin, end) of the lane's columns, in order. Columns beyond the last one are 0.
__device__ inline void sum_units(const float* from, std::int64_t stride, std::int64_t columns,
                                 std::int64_t begin, std::int64_t end,
                                 double (&sums)[kLaneColumns]) {
  constexpr int kInFlight = 4;
  for (std::int64_t unit = begin; unit < end; unit += kInFlight) {
    float values[kInFlight][kLaneColumns];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        values[i][c] =
            unit + i < end && 32 * c < columns ? from[(unit + i) * stride + 32 * c] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) sums[c] += static_cast<double>(values[i][c]);
    }
  }
}

__device__ inline void store_weight_gradient(const BackwardSumParams& params, int row,
                                             std::int64_t channel, double sum) {
  const bool is_bias = row == params.width;
  const BackwardSum& to = is_bias ? params.bias : params.weight;
  if (to.data == nullptr) return;
  store_gradient_sum(to.dtype, to.data,
                     channel * to.channel_stride + (is_bias ? 0 : row * to.tap_stride), sum,
                     params.accumulate);
}

/// `block`: of the segment.
__device__ inline void add_partial_sums(const BackwardSumParams& params, const SumSegment& segment,
                                        std::uint32_t block,
                                        double (&runs)[kSumRuns][kSumColumns]) {
  const std::int64_t channels = segment.channels;
  const std::uint32_t row = segment.channel_blocks.divide(block);
  const std::int64_t first =
      std::int64_t{block - row * segment.channel_blocks.divisor()} * kSumColumns;
  const int lane = static_cast<int>(threadIdx.x % 32), run = static_cast<int>(threadIdx.x / 32);
  double sums[kLaneColumns] = {};
  sum_units(segment.partial_sums + row * channels + first + lane, (params.width + 1) * channels,
            channels - first - lane, segment.units * run / kSumRuns,
            segment.units * (run + 1) / kSumRuns, sums);
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) runs[run][32 * c + lane] = sums[c];
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= kSumColumns || first + column >= channels) return;
  double sum = 0;
  for (int i = 0; i < kSumRuns; ++i) sum += runs[i][column];
  store_weight_gradient(params, static_cast<int>(row), segment.first_channel + first + column, sum);
}

/// The gradient of the initial state of a sequence without tokens is that of its final state. If
/// seq_idx marks the first row of a sequence as padding, nothing reads the initial state, and its
/// gradient is 0.
__device__ inline void pass_state_gradient(const BackwardSumParams& params, std::uint32_t block) {
  const BackwardProblem& p = params.problem;
  const BackwardPointers& at = params.pointers;
  const std::uint32_t sequence = params.state_channel_blocks.divide(block);
  const std::int64_t channel =
      std::int64_t{block - sequence * params.state_channel_blocks.divisor()} * kSumThreads +
      threadIdx.x;
  if (channel >= p.channels) return;
  const std::int64_t begin = sequence_begin(p, at, sequence);
  const bool is_empty = sequence_begin(p, at, std::int64_t{sequence} + 1) <= begin;
  const bool is_padding = !is_empty && p.seq_idx.present && seq_idx_of_row(p, at, begin) < 0;
  if (!is_empty && !is_padding) return;
  const auto& to = p.grad_initial_state;
  const auto& from = p.grad_final_state;
  for (std::int64_t column = 0; column < history_of(p); ++column) {
    const float gradient =
        from.present ? load_f32(from.dtype, at.grad_final_state,
                                sequence * from.sequence_stride + column * from.column_stride +
                                    channel * from.channel_stride)
                     : 0.0f;
    store_f32(
        to.dtype, at.grad_initial_state,
        sequence * to.sequence_stride + column * to.column_stride + channel * to.channel_stride,
        gradient);
  }
}

/// The two sums of kGateSumHeads heads of gates: a thread adds up a run of units, in order, and one
/// of each head the runs.
__device__ inline void add_gate_sums(const GateSumParams& params, std::uint32_t block,
                                     double (&sums)[kSumRuns][kSumColumns]) {
  constexpr int kColumns = 2 * kGateSumHeads, kRuns = kSumThreads / kColumns, kInFlight = 8;
  const int column = static_cast<int>(threadIdx.x % kColumns);
  const int run = static_cast<int>(threadIdx.x / kColumns);
  const int number = column / kGateSumHeads;  // of the sum: a_log, dt_bias
  const std::int64_t head = std::int64_t{block} * kGateSumHeads + column % kGateSumHeads;
  auto& runs = reinterpret_cast<double(&)[kRuns][kColumns]>(sums);
  double sum = 0;
  if (head < params.heads) {
    const std::int64_t end = params.units * (run + 1) / kRuns;
    for (std::int64_t unit = params.units * run / kRuns; unit < end; unit += kInFlight) {
      float values[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        values[i] = unit + i < end
                        ? params.partial_sums[(2 * (unit + i) + number) * params.heads + head]
                        : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) sum += static_cast<double>(values[i]);
    }
  }
  runs[run][column] = sum;
  __syncthreads();
  const BackwardSum& to = number == 0 ? params.a_log : params.dt_bias;
  if (run > 0 || head >= params.heads || to.data == nullptr) return;
  sum = 0;
  for (int i = 0; i < kRuns; ++i) sum += runs[i][column];
  store_gradient_sum(to.dtype, to.data, head * to.channel_stride, sum, false);
}

__global__ void __launch_bounds__(kSumThreads)
    finish_backward(const __grid_constant__ BackwardSumParams params) {
  __shared__ double runs[kSumRuns][kSumColumns];
  pdl_wait();
  if (blockIdx.x < params.sum_blocks) {
    add_partial_sums(params, params.segments[0], blockIdx.x, runs);
  } else {
    pass_state_gradient(params, blockIdx.x - params.sum_blocks);
  }
}

/// Of a call with groups: with a segment for each, and gates.
__global__ void __launch_bounds__(kSumThreads)
    finish_grouped_backward(const __grid_constant__ BackwardSumParams params) {
  __shared__ double runs[kSumRuns][kSumColumns];
  pdl_wait();
  if (blockIdx.x >= params.sum_blocks) {
    return add_gate_sums(params.gates, blockIdx.x - params.sum_blocks, runs);
  }
  int number = 0;
  while (number + 1 < params.segment_count &&
         blockIdx.x >= params.segments[number + 1].first_block) {
    ++number;
  }
  const SumSegment segment = params.segments[number];
  add_partial_sums(params, segment, blockIdx.x - segment.first_block, runs);
}

}  // namespace shortconv::cuda
