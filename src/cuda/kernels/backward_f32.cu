// Instances of the kernel of backward.cuh for rows of fp32.
#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward_instances.cuh"

namespace shortconv::cuda {

BackwardKernel backward_kernel_f32(const BackwardFeatures& features) {
  return select_backward_instance<F32>(features);
}

}  // namespace shortconv::cuda
