#include "cuda/kernels/prepare.cuh"

namespace shortconv::cuda {

KernelFunction block_snapshots_kernel() {
  return reinterpret_cast<KernelFunction>(&list_block_snapshots);
}
KernelFunction tree_parents_kernel() {
  return reinterpret_cast<KernelFunction>(&follow_tree_links);
}

}  // namespace shortconv::cuda
