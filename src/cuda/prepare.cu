#include "cuda/prepare.cuh"

namespace shortconv::cuda {

Entry block_snapshots_kernel() { return reinterpret_cast<Entry>(&list_block_snapshots); }
Entry tree_parents_kernel() { return reinterpret_cast<Entry>(&follow_tree_links); }

}  // namespace shortconv::cuda
