// Backward calls with groups, besides their convolutions (backward.cuh): the gradients of groups
// that are copied, and those of gates.
//
// Threads: a thread copies a vector of up to 16 bytes of 8 rows. For gates a warp has a strip of
// rows, a lane one head of a part of them, and a block 8 strips, whose sums it adds up in fp64.
//
// Bytes moved: each gradient once in and once out; a and b once. Ceiling: a copy of the same bytes.
// All rows of a thread are loaded before the first is stored.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/head_columns.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/token.cuh"
#include "op/groups.hpp"

namespace shortconv::cuda {

/// Which rows are in sequences. The gradients of padding are 0.
class SequenceRows {
 public:
  __device__ SequenceRows(const BackwardProblem& p, const BackwardPointers& at) : p_(p), at_(at) {
    if (!p.query_start_loc.present) return;
    begin_ = sequence_begin(p, at, 0);
    end_ = sequence_begin(p, at, p.sequences);
  }

  __device__ bool contain(std::int64_t row) const {
    if (p_.seq_idx.present) return seq_idx_of_row(p_, at_, row) >= 0;
    return !p_.query_start_loc.present || (row >= begin_ && row < end_);
  }

 private:
  const BackwardProblem& p_;
  const BackwardPointers& at_;
  std::int64_t begin_ = 0, end_ = 0;
};

template <typename Vector>
__device__ inline void copy_gradient_rows(const CopyGradientParams& params, std::uint32_t unit,
                                          std::uint32_t vector) {
  constexpr int kBytes = sizeof(Vector);
  const std::uint32_t head = params.head_vectors.divide(vector);
  const auto d = static_cast<int>(vector - head * params.head_vectors.divisor()) * kBytes;
  const std::int64_t first = std::int64_t{unit} * kCopyGradientRows;
  const char* from = static_cast<const char*>(params.grad_out.data) +
                     first * params.grad_out.stride_bytes +
                     static_cast<std::int64_t>(head) * params.grad_head_stride_bytes + d;
  char* to = static_cast<char*>(params.grad_x.data) + first * params.grad_x.stride_bytes +
             column_of(params.columns, head) + d;
  const SequenceRows sequences(params.problem, params.pointers);
  Vector rows[kCopyGradientRows];
#pragma unroll
  for (int i = 0; i < kCopyGradientRows; ++i) {
    rows[i] = {};
    if (first + i >= params.problem.tokens) continue;
    if (!sequences.contain(first + i)) continue;
    rows[i] = *reinterpret_cast<const Vector*>(nth_row(from, params.grad_out.stride_bytes, i));
  }
#pragma unroll
  for (int i = 0; i < kCopyGradientRows; ++i) {
    if (first + i >= params.problem.tokens) continue;
    *reinterpret_cast<Vector*>(nth_row(to, params.grad_x.stride_bytes, i)) = rows[i];
  }
}

__global__ void __launch_bounds__(kCopyGradientThreads)
    copy_group_gradient(const __grid_constant__ CopyGradientParams params) {
  pdl_overlap();
  if (blockIdx.x >= params.pdl_launch_from) pdl_launch_dependents();
  const std::uint32_t unit = params.blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * params.blocks.divisor();
  const std::uint32_t vector = block * kCopyGradientThreads + threadIdx.x;
  if (vector < static_cast<std::uint32_t>(params.vectors)) {
    switch (params.vector_bytes) {
      case 16:
        copy_gradient_rows<uint4>(params, unit, vector);
        break;
      case 8:
        copy_gradient_rows<uint2>(params, unit, vector);
        break;
      case 4:
        copy_gradient_rows<std::uint32_t>(params, unit, vector);
        break;
      default:
        copy_gradient_rows<std::uint16_t>(params, unit, vector);
    }
  }
  pdl_wait();
}

/// What the gates of one row and head are computed from, and their gradients.
struct GateRow {
  bool is_inside = false;  // a sequence
  float a = 0, b = 0, grad_g = 0, grad_beta = 0;
};
struct GateGradients {
  float a = 0, b = 0, a_log = 0;
};

/// The derivatives of g = -exp(a_log) * softplus(a + dt_bias) and of beta = factor * sigmoid(b).
/// `scale` is -exp(a_log).
__device__ inline GateGradients differentiate_gates(const GateGradientParams& params,
                                                    const GateRow& row, float scale,
                                                    float dt_bias) {
  const float sum = rounded_sum(row.a, dt_bias);
  const float power = expf(sum);
  const bool is_linear = sum > 20;
  const float g = rounded_product(scale, is_linear ? sum : log1pf(power));
  const float slope = is_linear ? 1.0f : __fdividef(power, 1 + power);
  const float grad_g = params.exponential ? row.grad_g * expf(g) : row.grad_g;
  const float beta = sigmoid(row.b);
  return {.a = grad_g * scale * slope,
          .b = row.grad_beta * params.beta_factor * beta * (1 - beta),
          .a_log = grad_g * g};
}

/// Rows of the gates of one head, and its sums over them.
class GateStrip {
 public:
  __device__ GateStrip(const GateGradientParams& params, int head)
      : params_(params),
        sequences_(params.problem, params.pointers),
        a_(head_of(params.a, head)),
        b_(head_of(params.b, head)),
        grad_g_(head_of(params.grad_g, head)),
        grad_beta_(head_of(params.grad_beta, head)),
        grad_a_(head_of(params.grad_a, head)),
        grad_b_(head_of(params.grad_b, head)),
        scale_(-expf(static_cast<const float*>(params.a_log)[head * params.a_log_stride])),
        dt_bias_(load_f32(params.dt_bias_dtype, params.dt_bias, head * params.dt_bias_stride)) {}

  /// Rows first, first + step, ... below `end`. The next row is loaded before one is computed; the
  /// loop is not unrolled, because loading its code takes longer than running it.
  __device__ void process(int first, int step, int end) {
    if (first >= end) return;
    GateRow row = load(first);
#pragma unroll 1
    for (int number = first; number < end; number += step) {
      const GateRow next = load(min(number + step, end - 1));
      GateGradients grads;
      if (row.is_inside) grads = differentiate_gates(params_, row, scale_, dt_bias_);
      a_log_sum_ += grads.a_log;
      dt_bias_sum_ += grads.a;
      store(params_.grad_a, grad_a_, number, grads.a);
      store(params_.grad_b, grad_b_, number, grads.b);
      row = next;
    }
  }

  [[nodiscard]] __device__ float a_log_sum() const { return a_log_sum_; }
  [[nodiscard]] __device__ float dt_bias_sum() const { return dt_bias_sum_; }

 private:
  __device__ static char* head_of(const GateTensor& tensor, int head) {
    if (tensor.data == nullptr) return nullptr;
    return static_cast<char*>(tensor.data) + column_of(tensor.columns, head);
  }
  /// Of a row, in the column at `data`.
  __device__ char* element(const GateTensor& tensor, char* data, int row) const {
    if (!params_.problem.query_start_loc.present) {
      const std::uint32_t sequence =
          params_.sequence_tokens.divide(static_cast<std::uint32_t>(row));
      data += sequence * tensor.sequence_stride_bytes;
      row -= static_cast<int>(sequence * params_.sequence_tokens.divisor());
    }
    return rows_after(data, tensor.stride_bytes, row);
  }

  __device__ GateRow load(int row) const {
    return {.is_inside = sequences_.contain(row),
            .a = load_f32(params_.a.dtype, element(params_.a, a_, row), 0),
            .b = load_f32(params_.b.dtype, element(params_.b, b_, row), 0),
            .grad_g = load_f32(DType::kF32, element(params_.grad_g, grad_g_, row), 0),
            .grad_beta = load_f32(DType::kF32, element(params_.grad_beta, grad_beta_, row), 0)};
  }
  __device__ void store(const GateTensor& tensor, char* data, int row, float value) const {
    if (tensor.data != nullptr) store_f32(tensor.dtype, element(tensor, data, row), 0, value);
  }

  const GateGradientParams& params_;
  const SequenceRows sequences_;
  char *const a_, *const b_, *const grad_g_, *const grad_beta_, *const grad_a_, *const grad_b_;
  const float scale_, dt_bias_;
  float a_log_sum_ = 0, dt_bias_sum_ = 0;
};

__global__ void __launch_bounds__(kBackwardThreads, 4)
    gate_gradients(const __grid_constant__ GateGradientParams params) {
  __shared__ float sums[kUnitStrips][2][32];
  pdl_overlap();
  if (blockIdx.x >= params.pdl_launch_from) pdl_launch_dependents();
  const std::uint32_t unit = params.head_blocks.divide(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int lanes = params.head_lanes;
  const int first_head = static_cast<int>(blockIdx.x - unit * params.head_blocks.divisor()) * lanes;
  const int head = first_head + (lane & (lanes - 1));
  sums[warp][0][lane] = sums[warp][1][lane] = 0;
  if (head < params.heads) {
    GateStrip strip(params, head);
    const int first = (static_cast<int>(unit) * kUnitStrips + warp) * params.strip_rows;
    const int end = min(first + params.strip_rows, static_cast<int>(params.problem.tokens));
    const int rows = 32 / lanes;  // of a warp at a time
    strip.process(first + lane / lanes, rows, end);
    sums[warp][0][lane] = strip.a_log_sum();
    sums[warp][1][lane] = strip.dt_bias_sum();
  }
  __syncthreads();
  if (params.partial_sums != nullptr && warp < 2 && lane < lanes && head < params.heads) {
    double sum = 0;
    for (int strip = 0; strip < kUnitStrips; ++strip) {
      for (int of_row = lane; of_row < 32; of_row += lanes) {
        sum += static_cast<double>(sums[strip][warp][of_row]);
      }
    }
    params.partial_sums[(2 * std::int64_t{unit} + warp) * params.heads + head] =
        static_cast<float>(sum);
  }
  pdl_wait();
}

}  // namespace shortconv::cuda
