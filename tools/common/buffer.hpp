#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace shortconv::tools {

/// Zeroed memory, aligned as allocations on a GPU are, so that a copy of it there has the alignment
/// of the original. Zeroing also touches every page, so that no measurement pays for the first
/// access.
class Buffer {
 public:
  static constexpr std::int64_t kAlignment = 256;

  Buffer() = default;
  explicit Buffer(std::int64_t bytes)
      : data_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), kAlign))),
        bytes_(bytes) {
    std::memset(data_.get(), 0, static_cast<std::size_t>(bytes));
  }

  [[nodiscard]] std::byte* data() const { return data_.get(); }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

 private:
  static constexpr std::align_val_t kAlign{kAlignment};
  struct Free {
    void operator()(std::byte* data) const { ::operator delete(data, kAlign); }
  };

  std::unique_ptr<std::byte, Free> data_;
  std::int64_t bytes_ = 0;
};

}  // namespace shortconv::tools
