// Both 16-bit types in one file: their kernels are alike, and as one cubin they are compressed to
// two thirds of the space that two take.
#include "cuda/kernels.cuh"

namespace shortconv::cuda {

const Kernels& kernels_bf16(int width, Activation activation, bool f32_weights) {
  return select_kernels<BF16>(width, activation, f32_weights);
}

const Kernels& kernels_f16(int width, Activation activation, bool f32_weights) {
  return select_kernels<F16>(width, activation, f32_weights);
}

}  // namespace shortconv::cuda
