#include "bench/random_buffer.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "common/random.hpp"
#include "core/element.hpp"
#include "core/thread_count.hpp"
#include "core/thread_pool.hpp"

namespace shortconv::tools::bench {
namespace {

constexpr std::align_val_t kAlignment{4096};
constexpr std::int64_t kTableElements = 65521;  // prime: the pattern does not repeat with any pitch

}  // namespace

std::vector<std::byte> random_table(DType dtype) {
  const std::int64_t bytes = element_bytes(dtype);
  std::vector<std::byte> table(static_cast<std::size_t>(kTableElements * bytes));
  for (std::int64_t i = 0; i < kTableElements; ++i) {
    store_element(dtype, &table[static_cast<std::size_t>(i * bytes)],
                  normal_from(mix(static_cast<std::uint64_t>(i))));
  }
  return table;
}

void RandomBuffer::Free::operator()(std::byte* data) const { ::operator delete(data, kAlignment); }

RandomBuffer::RandomBuffer(DType dtype, std::int64_t elements, int threads) {
  const auto bytes = static_cast<std::size_t>(elements * element_bytes(dtype));
  data_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
  const std::vector<std::byte> table = random_table(dtype);
  const std::size_t copies = (bytes + table.size() - 1) / table.size();
  for_each_item(threads > 0 ? threads : available_threads(), static_cast<std::int64_t>(copies),
                [&](std::int64_t copy) {
                  const std::size_t at = static_cast<std::size_t>(copy) * table.size();
                  std::memcpy(data_.get() + at, table.data(), std::min(table.size(), bytes - at));
                });
}

}  // namespace shortconv::tools::bench
