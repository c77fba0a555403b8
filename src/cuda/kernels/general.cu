#include "cuda/host/kernels.hpp"
#include "cuda/kernels/general.cuh"

namespace shortconv::cuda {

KernelFunction general_kernel() { return reinterpret_cast<KernelFunction>(&convolve_general); }

KernelFunction replace_histories_kernel() {
  return reinterpret_cast<KernelFunction>(&replace_histories);
}

}  // namespace shortconv::cuda
