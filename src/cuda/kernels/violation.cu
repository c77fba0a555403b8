#include "cuda/host/kernels.hpp"
#include "cuda/kernels/violation.cuh"

namespace shortconv::cuda {

KernelFunction clear_report_kernel() { return reinterpret_cast<KernelFunction>(&clear_report); }
KernelFunction count_violations_kernel() {
  return reinterpret_cast<KernelFunction>(&count_violations);
}

}  // namespace shortconv::cuda
