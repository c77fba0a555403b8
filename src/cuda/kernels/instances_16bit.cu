// Both 16-bit dtypes in one file: their kernels are similar, and one cubin compresses to two thirds
// of the size of two.
#include "cuda/kernels/instances.cuh"

namespace shortconv::cuda {

const KernelFunctions& kernels_bf16(int width, Activation activation, bool f32_weights) {
  return select_instances<BF16>(width, activation, f32_weights);
}

const KernelFunctions& kernels_f16(int width, Activation activation, bool f32_weights) {
  return select_instances<F16>(width, activation, f32_weights);
}

}  // namespace shortconv::cuda
