// Checked calls of the operations after the convolution.
#pragma once

#include <cstdint>

#include "shortconv/groups.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

struct L2NormCall {
  TensorLayout<Axis::kSequence, Axis::kToken, Axis::kHead, Axis::kChannel> x, out;
  const void* x_data = nullptr;
  void* out_data = nullptr;
  Device device;
  L2Norm norm;
  std::int64_t rows = 0;
  std::int64_t sequence_tokens = 0;  // 0: without an axis of sequences
  std::int64_t heads = 0, head_dim = 0;
};

struct GatesCall {
  GateProblem gates;
  GatePointers at;
  Device device;
  std::int64_t rows = 0;
  std::int64_t sequence_tokens = 0;  // 0: without an axis of sequences
};

}  // namespace shortconv
