#include "cuda/host/backward.hpp"
#include "cuda/kernels/backward_general.cuh"
#include "cuda/kernels/backward_sums.cuh"

namespace shortconv::cuda {

KernelFunction backward_general_kernel() {
  return reinterpret_cast<KernelFunction>(&backward_general);
}

KernelFunction finish_backward_kernel() {
  return reinterpret_cast<KernelFunction>(&finish_backward);
}
KernelFunction finish_grouped_backward_kernel() {
  return reinterpret_cast<KernelFunction>(&finish_grouped_backward);
}

}  // namespace shortconv::cuda
