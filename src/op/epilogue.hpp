// Operations around the convolution, in fp32: the gated input before its rounding to the dtype of
// x, and the epilogue of act(a) before its rounding to the dtype of out. Each operation is rounded
// separately; none is fused with another.
#pragma once

#include "core/device.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

// GPU compilers fuse products with sums unless intrinsics are used.
SHORTCONV_HOST_DEVICE inline float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SHORTCONV_HOST_DEVICE inline float rounded_sum(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

/// The operand of the epilogue of a token: its input, or its output gate.
SHORTCONV_HOST_DEVICE inline float epilogue_operand(Epilogue epilogue, float input, float gate) {
  switch (epilogue) {
    case Epilogue::kNone:
      break;
    case Epilogue::kResidual:
      return input;
    case Epilogue::kOutputGate:
      return gate;
  }
  return 0.0f;
}

/// The scalar form; src/cpu/kernels-inl.hpp has the vector form. `operand` is ignored without an
/// epilogue.
SHORTCONV_HOST_DEVICE inline float finish(Epilogue epilogue, float activated, float operand) {
  switch (epilogue) {
    case Epilogue::kNone:
      break;
    case Epilogue::kResidual:
      return rounded_sum(activated, operand);
    case Epilogue::kOutputGate:
      return rounded_product(activated, operand);
  }
  return activated;
}

}  // namespace shortconv
