#include "cuda/kernels/instances.cuh"

namespace shortconv::cuda {

const KernelFunctions& kernels_f32(int width, Activation activation, bool f32_weights) {
  return select_instances<F32>(width, activation, f32_weights);
}

}  // namespace shortconv::cuda
