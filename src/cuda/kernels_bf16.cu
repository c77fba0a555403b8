#include "cuda/kernels.cuh"

namespace shortconv::cuda {

const Kernels& kernels_bf16(int width, Activation activation, bool f32_weights) {
  return select_kernels<BF16>(width, activation, f32_weights);
}

}  // namespace shortconv::cuda
