#pragma once

#include <cstddef>

namespace shortconv::tools {

/// memcpy with one contiguous share per thread. The yardstick of every bandwidth the tools print.
/// The buffers must not overlap.
void parallel_copy(void* dst, const void* src, std::size_t bytes, int threads);

}  // namespace shortconv::tools
