// What the tensors of a measured call hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "shortconv/tensor.hpp"

namespace shortconv::tools::bench {

/// About normal random elements to be repeated through a tensor: zeros would be compressed or
/// predicted somewhere.
[[nodiscard]] std::vector<std::byte> random_table(DType dtype);

/// Memory full of such elements that is first touched, page by page, by the threads that will work
/// on it, which decides where it lies on machines with several memory nodes.
class RandomBuffer {
 public:
  RandomBuffer() = default;
  RandomBuffer(DType dtype, std::int64_t elements, int threads);

  [[nodiscard]] void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace shortconv::tools::bench
