// The memory of the random calls that the tests on the host make too.
#pragma once

#include <vector>

#include "../common/call_memory.hpp"
#include "fixture.cuh"

namespace shortconv::gpu_tests {

/// Memory that host and device share.
class SharedMemory {
 public:
  explicit SharedMemory(cudaStream_t stream)
      : memory_{.allocate =
                    [this](std::size_t bytes) {
                      void* data = nullptr;
                      check(cudaMallocManaged(&data, bytes));
                      blocks_.push_back(data);
                      return data;
                    },
                .run_and_wait =
                    [stream](const ForwardArgs& args) {
                      check(cudaDeviceSynchronize());
                      const Status status = forward(args, stream);
                      check(cudaDeviceSynchronize());
                      return status;
                    },
                .device = kGpu} {}
  ~SharedMemory() {
    for (void* block : blocks_) (void)cudaFree(block);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  [[nodiscard]] const test::CallMemory& memory() const { return memory_; }

 private:
  std::vector<void*> blocks_;
  test::CallMemory memory_;
};

}  // namespace shortconv::gpu_tests
