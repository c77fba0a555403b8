// What stands around the convolution, in fp32: the product that makes an input, before it is
// rounded to the type of x, and what becomes of act(a), before it is rounded to the type of out.
// Every operation is rounded on its own; none is fused with another.
#pragma once

#include "core/device.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

// Compilers for a GPU may fuse a product with the sum that takes it, unless told by name.
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

/// The scalar form; src/cpu/kernels-inl.hpp repeats it on vectors. `operand` is not looked at
/// without an epilogue.
SHORTCONV_HOST_DEVICE inline float finish(Epilogue epilogue, float activated, float operand) {
  switch (epilogue) {
    case Epilogue::kResidual:
      return rounded_sum(activated, operand);
    case Epilogue::kOutputGate:
      return rounded_product(activated, operand);
    case Epilogue::kNone:
      break;
  }
  return activated;
}

}  // namespace shortconv
