// Instances of the kernel of backward.cuh for rows of 16 bits.
#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward_instances.cuh"

namespace shortconv::cuda {

BackwardKernel backward_kernel_f16(int width, Activation activation, bool has_epilogue) {
  return select_backward_instance<F16>(width, activation, has_epilogue);
}

BackwardKernel backward_kernel_bf16(int width, Activation activation, bool has_epilogue) {
  return select_backward_instance<BF16>(width, activation, has_epilogue);
}

}  // namespace shortconv::cuda
