#include "cuda/kernels/groups.cuh"

namespace shortconv::cuda {

KernelFunction convolve_group_kernel() { return reinterpret_cast<KernelFunction>(&convolve_group); }
KernelFunction copy_group_kernel() { return reinterpret_cast<KernelFunction>(&copy_group); }
KernelFunction normalize_groups_kernel() {
  return reinterpret_cast<KernelFunction>(&normalize_groups);
}
KernelFunction store_gates_kernel() { return reinterpret_cast<KernelFunction>(&store_gates); }
KernelFunction l2_norm_kernel() { return reinterpret_cast<KernelFunction>(&l2_norm_heads); }
KernelFunction delta_gates_kernel() { return reinterpret_cast<KernelFunction>(&delta_gates); }

}  // namespace shortconv::cuda
