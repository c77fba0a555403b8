// Interface of the SIMD kernels of a backward call. They work on fp32 rows in the buffers of a
// thread.
#pragma once

#include <cstdint>

#include "shortconv/problem.hpp"

namespace shortconv::cpu {

/// Up to some tokens of one sequence x a block of channels; rows are `pitch` floats apart, channels
/// a multiple of BackwardKernels::step.
struct BackwardBlock {
  const float* inputs;    // [history + tokens], oldest first
  const float* grad_out;  // [tokens], times the output gate
  float* sum_grads;       // [history + tokens] of the sums a: the last `tokens` rows are written
  float* input_grads;     // [tokens], written: gradients of the inputs `history` tokens earlier
  float* values;          // [tokens], written: act(a); null: not needed
  const float* taps;      // [width], oldest first
  const float* bias;      // one row
  float* totals;          // [width + 1], added to: gradients of the taps, then of the bias
  std::int64_t pitch, tokens, channels;
  int width, dilation;
};

using BackwardFn = void (*)(const BackwardBlock& block);

/// One row of input gradients: to = init + the sum over i < count of taps[i] * grads[-i * dilation]
/// in this order, rows counted. A null init is 0.
struct BackwardRow {
  const float* taps;
  const float* grads;
  const float* init;
  float* to;
  std::int64_t count, pitch, channels;
  int dilation;
};

using BackwardRowFn = void (*)(const BackwardRow& row);

/// Up to kStripTokens tokens of one sequence, whose windows and the inputs `history` tokens earlier
/// are rows of adjacent channels. fp32 rows are in the lane order of the dtype, with `pitch`.
struct BackwardStrip {
  const void* x;         // the first token
  const void* grad_out;  // the same
  void* grad_x;          // `history` tokens earlier; null: not wanted
  std::int64_t x_stride, grad_out_stride, grad_x_stride;  // from token to token, in elements
  float* sum_grads;   // [history] rows, of the tokens before; replaced by those of the last tokens
  const float* taps;  // [width], oldest first. NaN as in Block
  const float* bias;  // one row
  float* totals;      // [width + 1], added to: gradients of the taps, then of the bias
  std::int64_t pitch, tokens, channels;  // whole steps
};

inline constexpr std::int64_t kStripTokens = 8;

using BackwardStripFn = void (*)(const BackwardStrip& strip);

struct BackwardKernels {
  BackwardFn block;
  BackwardRowFn row;
  /// Adds totals to sums and clears them.
  void (*add_totals)(float* totals, double* sums, std::int64_t count);
  int step;  // channels of a vector
  const char* target;
};

const BackwardKernels* select_backward(int width, int dilation, Activation activation);

/// For x, grad_out and grad_x of one dtype; null: none for this width. Steps are those of Kernels.
BackwardStripFn select_backward_strip(DType dtype, int width, Activation activation);

}  // namespace shortconv::cpu
