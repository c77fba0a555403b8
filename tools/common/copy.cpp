#include "common/copy.hpp"

#include <omp.h>

#include <algorithm>
#include <cstring>

namespace shortconv::tools {

void parallel_copy(void* dst, const void* src, std::size_t bytes, int threads) {
  constexpr std::size_t kLine = 64;  // shares start on cache lines, so no two threads write one
  const int requested = threads > 0 ? threads : omp_get_max_threads();
#pragma omp parallel num_threads(requested)
  {
    // OpenMP may give fewer threads than asked for, so the share follows from what came.
    const auto team = static_cast<std::size_t>(omp_get_num_threads());
    const auto rank = static_cast<std::size_t>(omp_get_thread_num());
    const std::size_t lines = (bytes + kLine - 1) / kLine;
    const std::size_t share = (lines + team - 1) / team * kLine;
    const std::size_t first = std::min(bytes, rank * share);
    const std::size_t last = std::min(bytes, first + share);
    std::memcpy(static_cast<std::byte*>(dst) + first, static_cast<const std::byte*>(src) + first,
                last - first);
  }
}

}  // namespace shortconv::tools
