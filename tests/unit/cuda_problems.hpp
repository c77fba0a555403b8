// Problems that tests of the CUDA backend's selection begin from.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/select.hpp"

namespace shortconv::cuda {

/// A packed bf16 batch, token-major, states channel-innermost, everything aligned.
inline Problem packed_batch(std::int64_t tokens, std::int64_t channels, std::int64_t sequences) {
  Problem p;
  p.device = {DeviceType::kCuda, 0};
  p.x_dtype = p.out_dtype = p.weight_dtype = p.state_dtype = DType::kBF16;
  p.has_state = p.has_query_start_loc = true;
  p.width = 4;
  p.tokens = tokens;
  p.channels = channels;
  p.sequences = sequences;
  p.slots = sequences;
  p.state_columns = 3;
  p.x_token = p.out_token = channels;
  p.x_channel = p.out_channel = 1;
  p.weight_channel = 4;
  p.weight_tap = 1;
  p.state_slot = 3 * channels;
  p.state_column = channels;
  p.state_channel = 1;
  return p;
}

inline Problem decode_batch(std::int64_t channels, std::int64_t sequences) {
  Problem p = packed_batch(sequences, channels, sequences);
  p.op = Op::kDecode;
  p.has_query_start_loc = false;
  p.sequence_tokens = 1;
  p.x_sequence = p.out_sequence = channels;
  p.initial_state = InitialState::kAll;
  return p;
}

inline Problem gated(Problem p) {
  p.has_input_gate = true;
  p.epilogue = Epilogue::kOutputGate;
  p.input_gate_sequence = p.output_gate_sequence = p.x_sequence;
  p.input_gate_token = p.output_gate_token = p.x_token;
  p.input_gate_channel = p.output_gate_channel = 1;
  return p;
}

inline Choice chosen(const Problem& p) {
  Choice choice;
  const Status status = select(p, choice);
  EXPECT_TRUE(status.ok()) << status.message();
  return choice;
}

inline Kernel kernel_of(const Problem& p) { return chosen(p).aligned.kernel; }

}  // namespace shortconv::cuda
