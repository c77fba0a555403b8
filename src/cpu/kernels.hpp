// Interface of the SIMD kernels: functions on contiguous runs of channels or tokens. A plan selects
// them once, for the widest instruction set of the machine.
#pragma once

#include <cstdint>

#include "shortconv/problem.hpp"

namespace shortconv::cpu {

/// Tokens x channels with the dtype of x; strides in elements.
struct Rows {
  const void* data = nullptr;  // first token, first channel; null: absent
  std::int64_t token_stride = 0, channel_stride = 0;
};

/// Tokens x channels of one sequence. The history precedes the first token in memory, unless
/// `history` names its rows.
struct Block {
  const void* x;  // first token, first channel
  void* out;
  std::int64_t x_token_stride, x_channel_stride;
  std::int64_t out_token_stride, out_channel_stride;
  // Oldest first. A NaN among taps and bias has a lower half of zeros, and so has one of x: the
  // rounding to bf16 relies on that for results.
  // Token-major kernels take them in the order of Kernels::arrange, the others in channel order.
  const float* taps;  // [width][tap_pitch]
  const float* bias;  // [channels]
  std::int64_t tap_pitch;
  std::int64_t tokens, channels;
  int width;
  int dilation;  // kernels for any width only
  Epilogue epilogue;
  Rows input_gate = {};   // inputs are x * input_gate; absent: x
  Rows output_gate = {};  // Epilogue::kOutputGate only
  bool stream = false;    // token-major: non-temporal stores; out and its pitch are multiples of
                          // 64 bytes
  // One token, plain, with Kernels::arrange_weight: [channels, width] in the dtype of x, in place
  // of taps that no other token shares; null: taps.
  const void* weight = nullptr;
  // Token-major: the rows of the history, oldest first, from the first channel on; null: in memory
  // before x.
  const void* const* history = nullptr;
  // Token-major kernels of one width, without an input gate: [width - 1] rows, oldest first, that
  // receive the last inputs, bits unchanged; null: none. They may be rows of the history, if that
  // has each one later than the state.
  void* const* state = nullptr;
};

/// Second operand of the epilogue.
inline Rows operand_of(const Block& block) {
  switch (block.epilogue) {
    case Epilogue::kNone:
    case Epilogue::kResidual:
      break;
    case Epilogue::kOutputGate:
      return block.output_gate;
  }
  return {block.x, block.x_token_stride, block.x_channel_stride};
}

using ConvolveFn = void (*)(const Block&);
using MultiplyFn = void (*)(const void* a, const void* b, void* to, std::int64_t count);
using LoadFn = void (*)(const void* from, float* to, std::int64_t count);
using StoreFn = void (*)(const float* from, void* to, std::int64_t count);
using ArrangeFn = void (*)(const float* from, float* to, std::int64_t count);
using ArrangeWeightFn = void (*)(const void* weight, float* taps, std::int64_t pitch,
                                 std::int64_t channels);
using SplitFn = void (*)(const void* from, int rows, std::int64_t count, void* to,
                         std::int64_t to_pitch);
using JoinFn = void (*)(const void* const* from, int rows, std::int64_t count, void* to);

struct Kernels {
  ConvolveFn token_major;     // channel strides 1; channels a multiple of step
  ConvolveFn channels_first;  // token strides 1; tokens at least step
  MultiplyFn multiply;        // elementwise, to nearest even
  LoadFn load;                // elements -> fp32
  StoreFn store;              // fp32 -> elements, to nearest even
  ArrangeFn arrange;          // fp32 in channel order -> in lane order; whole steps
  ArrangeFn restore;          // the inverse
  // [channels, width] -> Block::taps in lane order; whole steps; null: not for this width.
  ArrangeWeightFn arrange_weight;
  SplitFn split;  // [count, rows] -> [rows, count], bits unchanged
  JoinFn join;    // rows -> [count, rows]
  int step;       // elements of two vectors
  const char* target;
};

/// One per element type, each in a separate file to compile in parallel.
const Kernels* select_f32(int width, Activation activation);
const Kernels* select_f16(int width, Activation activation);
const Kernels* select_bf16(int width, Activation activation);

/// `dtype` is one of kDTypes.
const Kernels* select(DType dtype, int width, Activation activation);

}  // namespace shortconv::cpu
