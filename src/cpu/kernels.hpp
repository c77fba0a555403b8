// What the instruction-set dependent part of the CPU backend offers to the rest: plain functions on
// contiguous runs of channels or tokens, chosen once per plan for the widest instruction set of
// this machine.
#pragma once

#include <cstdint>

#include "shortconv/problem.hpp"

namespace shortconv::cpu {

/// Elements like those of x, its strides aside.
struct Rows {
  const void* first = nullptr;  // first token, first channel
  std::int64_t token = 0, channel = 0;
};

/// Tokens by channels of one sequence. The history before the first one lies in memory too.
struct Block {
  const void* x;  // first token, first channel
  void* out;
  std::int64_t x_token, x_channel;  // strides in elements
  std::int64_t out_token, out_channel;
  // Oldest first. Taps and bias hold no NaN but the standard one, so that a NaN in the result is
  // either that or one of x's: the rounding to bf16 relies on the lower half of it being zero.
  // For rows they are in the order of Kernels::arrange, for columns in that of the channels.
  const float* taps;  // [width][tap_pitch]
  const float* bias;  // [channels]
  std::int64_t tap_pitch;
  std::int64_t tokens, channels;
  int width;
  int dilation;  // of the kernels that take any width
  Epilogue epilogue;
  Rows input_gate = {};   // the inputs are products with it; without `first` they are x
  Rows output_gate = {};  // of that epilogue
  bool stream = false;    // rows: past the caches; out and its pitch are multiples of 64 bytes
};

/// What the epilogue takes.
inline Rows operand_of(const Block& block) {
  if (block.epilogue == Epilogue::kOutputGate) return block.output_gate;
  return {block.x, block.x_token, block.x_channel};
}

using ConvolveFn = void (*)(const Block&);
using MultiplyFn = void (*)(const void* a, const void* b, void* to, std::int64_t count);
using LoadFn = void (*)(const void* from, float* to, std::int64_t count);
using StoreFn = void (*)(const float* from, void* to, std::int64_t count);
using ArrangeFn = void (*)(const float* from, float* to, std::int64_t count);
using SplitFn = void (*)(const void* from, int rows, std::int64_t count, void* to,
                         std::int64_t to_pitch);
using JoinFn = void (*)(const void* const* from, int rows, std::int64_t count, void* to);

struct Kernels {
  ConvolveFn rows;      // channel strides 1; channels a multiple of step
  ConvolveFn columns;   // token strides 1; tokens at least step
  MultiplyFn multiply;  // elements by elements, to nearest even
  LoadFn load;          // elements -> fp32
  StoreFn store;        // fp32 -> elements, to nearest even
  ArrangeFn arrange;    // fp32 in the order of channels -> in the order of lanes; whole steps
  SplitFn split;        // [count, rows] -> [rows, count], bits as they are
  JoinFn join;          // rows -> [count, rows]
  int step;             // elements of two vectors
  const char* target;
};

/// One per element type, each in its own file so that they compile side by side.
const Kernels* select_f32(int width, Activation activation);
const Kernels* select_f16(int width, Activation activation);
const Kernels* select_bf16(int width, Activation activation);

/// `dtype` is one of kDTypes.
const Kernels* select(DType dtype, int width, Activation activation);

}  // namespace shortconv::cpu
