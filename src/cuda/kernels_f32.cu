#include "cuda/kernels.cuh"

namespace shortconv::cuda {

const Kernels& kernels_f32(int width, Activation activation, bool f32_weights) {
  return select_kernels<F32>(width, activation, f32_weights);
}

}  // namespace shortconv::cuda
