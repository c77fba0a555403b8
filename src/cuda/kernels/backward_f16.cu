// Instances of the kernel of backward.cuh for rows of f16.
#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward_instances.cuh"

namespace shortconv::cuda {

BackwardKernel backward_kernel_f16(const BackwardFeatures& features) {
  return select_backward_instance<F16>(features);
}

}  // namespace shortconv::cuda
