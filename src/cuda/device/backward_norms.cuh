// Norms of heads in a strip of rows of a backward call.
//
// The results y of two rows are computed again before the gradients of the first of them, so that
// the lanes of a head add up the sums of both rows together: after the first step every other lane
// has the sums of one row, and computes its factors.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/activation.cuh"
#include "cuda/device/backward_rows.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"

namespace shortconv::cuda {

/// Adds up the values of two rows over the lanes of a head: lanes with an even number return the
/// sum of the first row, the others that of the second.
__device__ inline float sum_over_head(const float (&rows)[2], int head_lanes) {
  const bool is_odd = (threadIdx.x & 1) != 0;
  const float sent = is_odd ? rows[0] : rows[1], own = is_odd ? rows[1] : rows[0];
  float sum = __fadd_rn(own, __shfl_xor_sync(kFullWarp, sent, 1));
#pragma unroll
  for (int distance = 2; distance < 32; distance *= 2) {
    const float other = __shfl_xor_sync(kFullWarp, sum, distance);
    if (distance < head_lanes) sum = __fadd_rn(sum, other);
  }
  return sum;
}

/// Rows whose results are normalized: y, rounded as the forward call stored it, the slopes of the
/// activation, and the factors with which the gradient of a normalized result becomes that of y:
///   n * scale * (grad - y * n^2 * sum(grad * y)), n = 1 / sqrt(sum(y^2) + eps)
template <typename Shape>
class NormalizedRows {
 public:
  using T = typename Shape::T;
  using Values = typename Shape::Values;
  static constexpr int kGroup = Shape::kGroup;
  /// A batch has a multiple of these. With 4 the registers of width 4 do not suffice: a front of
  /// 8192 tokens takes 150 us instead of 135 (H200).
  static constexpr int kRows = 2;

  __device__ void set(int row, const Values& results, const Values& slopes,
                      const Values& grad_out) {
    pack_words<T>(results, y_[row]);
    Values y;
    unpack_words<T>(y_[row], y);
    squares_[row] = products_[row] = 0;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      slopes_[row][c] = slopes[c];
      squares_[row] = __fmaf_rn(y[c], y[c], squares_[row]);
      products_[row] = __fmaf_rn(grad_out[c], y[c], products_[row]);
    }
  }

  /// After all rows have been set.
  __device__ void find_factors(const BackwardGroup& group) {
    const float squares = sum_over_head(squares_, group.head_lanes);
    const float products = sum_over_head(products_, group.head_lanes);
    const float inverse = rsqrtf(__fadd_rn(squares, group.norm.eps));
    factor_ = __fmul_rn(inverse, group.norm.scale);
    back_ = __fmul_rn(__fmul_rn(inverse, inverse), -products);
  }

  /// The gradients of the sums of a row.
  __device__ void differentiate(int row, const Values& grad_out, Values& grad) const {
    const int lane = (static_cast<int>(threadIdx.x) & ~1) | row;
    const float factor = __shfl_sync(kFullWarp, factor_, lane);
    const float back = __shfl_sync(kFullWarp, back_, lane);
    Values y;
    unpack_words<T>(y_[row], y);
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      grad[c] = __fmul_rn(__fmul_rn(factor, slopes_[row][c]), __fmaf_rn(y[c], back, grad_out[c]));
    }
  }

 private:
  std::uint32_t y_[kRows][kWordsOf<T, kGroup>];
  Values slopes_[kRows];
  float squares_[kRows], products_[kRows];
  float factor_, back_;
};

}  // namespace shortconv::cuda
