// Problems that tests of the CUDA backend's selection begin from.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/host/select.hpp"

namespace shortconv::cuda {

/// A packed bf16 batch, token-major, states channel-innermost, everything aligned.
inline Problem packed_batch(std::int64_t tokens, std::int64_t channels, std::int64_t sequences) {
  Problem p;
  p.device = {DeviceType::kCuda, 0};
  p.x.dtype = p.out.dtype = p.weight.dtype = p.state.dtype = DType::kBF16;
  p.x.present = p.out.present = p.weight.present = true;
  p.state.present = p.query_start_loc.present = true;
  p.width = 4;
  p.tokens = tokens;
  p.channels = channels;
  p.sequences = sequences;
  p.slots = sequences;
  p.state_columns = 3;
  p.x.token_stride = p.out.token_stride = channels;
  p.x.channel_stride = p.out.channel_stride = 1;
  p.weight.channel_stride = 4;
  p.weight.tap_stride = 1;
  p.state.slot_stride = 3 * channels;
  p.state.column_stride = channels;
  p.state.channel_stride = 1;
  return p;
}

inline Problem decode_batch(std::int64_t channels, std::int64_t sequences) {
  Problem p = packed_batch(sequences, channels, sequences);
  p.op = Op::kDecode;
  p.query_start_loc.present = false;
  p.sequence_tokens = 1;
  p.x.sequence_stride = p.out.sequence_stride = channels;
  p.initial_state = InitialState::kAll;
  return p;
}

inline Problem gated(Problem p) {
  p.input_gate.present = p.output_gate.present = true;
  p.epilogue = Epilogue::kOutputGate;
  p.input_gate.sequence_stride = p.output_gate.sequence_stride = p.x.sequence_stride;
  p.input_gate.token_stride = p.output_gate.token_stride = p.x.token_stride;
  p.input_gate.channel_stride = p.output_gate.channel_stride = 1;
  return p;
}

inline constexpr DeviceProperties kH200{.multiprocessors = 132, .architecture = 90};

inline KernelConfig chosen(const Problem& p) {
  KernelConfig config;
  const Status status = select(p, kH200, policy_for(kH200), config);
  EXPECT_TRUE(status.ok()) << status.message();
  return config;
}

inline Kernel kernel_of(const Problem& p) { return chosen(p).aligned.kernel(); }

/// Not for general kernels.
inline const KernelRow& row_of(const Problem& p) { return kKernelTable[chosen(p).aligned.row]; }

/// kBase for the general kernel.
inline Variant variant_of(const Problem& p) {
  const std::size_t row = chosen(p).aligned.row;
  return row >= kKernelRows ? Variant::kBase : kKernelTable[row].variant;
}

/// Blocks of tiles that the device holds at once.
inline constexpr std::int64_t kWave = kHopperPolicy.wave_blocks * kH200.multiprocessors;

}  // namespace shortconv::cuda
