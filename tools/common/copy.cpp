#include "common/copy.hpp"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.hpp"

namespace shortconv::tools {

void parallel_copy(void* dst, const void* src, std::size_t bytes, int threads) {
  constexpr std::size_t kLine = 64;  // shares start on cache lines, so no two threads write one
  const std::size_t lines = (bytes + kLine - 1) / kLine;
  const auto shares = static_cast<std::size_t>(std::max(threads, 1));
  const std::size_t share = (lines + shares - 1) / shares * kLine;
  for_each_item(threads, static_cast<std::int64_t>(shares), [&](std::int64_t rank) {
    const std::size_t first = std::min(bytes, static_cast<std::size_t>(rank) * share);
    const std::size_t last = std::min(bytes, first + share);
    std::memcpy(static_cast<std::byte*>(dst) + first, static_cast<const std::byte*>(src) + first,
                last - first);
  });
}

}  // namespace shortconv::tools
