// Instances of the kernel of backward.cuh for rows of bf16.
#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward_instances.cuh"

namespace shortconv::cuda {

BackwardKernel backward_kernel_bf16(const BackwardFeatures& features) {
  return select_backward_instance<BF16>(features);
}

}  // namespace shortconv::cuda
