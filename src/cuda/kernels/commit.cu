// Instances of the kernel of commit.cuh, by size of unit.
#include "cuda/kernels/commit.cuh"

namespace shortconv::cuda {

KernelFunction commit_kernel(std::int64_t unit_bytes) {
  switch (unit_bytes) {
    case 2:
      return reinterpret_cast<KernelFunction>(&commit_states<std::uint16_t>);
    case 4:
      return reinterpret_cast<KernelFunction>(&commit_states<std::uint32_t>);
    case 8:
      return reinterpret_cast<KernelFunction>(&commit_states<std::uint64_t>);
    default:
      return reinterpret_cast<KernelFunction>(&commit_states<uint4>);
  }
}

}  // namespace shortconv::cuda
