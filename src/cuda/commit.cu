// The kernel of commit.cuh for each size of unit.
#include "cuda/commit.cuh"

namespace shortconv::cuda {

Entry commit_kernel(std::int64_t unit_bytes) {
  switch (unit_bytes) {
    case 2:
      return reinterpret_cast<Entry>(&commit_windows<std::uint16_t>);
    case 4:
      return reinterpret_cast<Entry>(&commit_windows<std::uint32_t>);
    case 8:
      return reinterpret_cast<Entry>(&commit_windows<std::uint64_t>);
    default:
      return reinterpret_cast<Entry>(&commit_windows<uint4>);
  }
}

}  // namespace shortconv::cuda
