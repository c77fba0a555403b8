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

struct BackwardKernels {
  BackwardFn block;
  BackwardRowFn row;
  int step;  // channels of a vector
  const char* target;
};

const BackwardKernels* select_backward(int width, int dilation, Activation activation);

}  // namespace shortconv::cpu
