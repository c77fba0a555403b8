#pragma once

#include <cstddef>

namespace shortconv::tools {

/// memcpy with one contiguous share per OpenMP thread; 0 threads = as many as OpenMP offers. The
/// yardstick of every bandwidth the tools print. The buffers must not overlap.
void parallel_copy(void* dst, const void* src, std::size_t bytes, int threads);

}  // namespace shortconv::tools
