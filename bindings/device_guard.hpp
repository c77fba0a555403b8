#pragma once

#include "shortconv/tensor.hpp"
#ifdef SHORTCONV_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace shortconv::python {

/// Selects the GPU of a tensor and restores the previous one. The core uses the current device and
/// refuses others; frameworks use the device of the tensor.
class DeviceGuard {
 public:
#ifdef SHORTCONV_HAS_CUDA
  explicit DeviceGuard(Device device) {
    if (device.type != DeviceType::kCuda || cudaGetDevice(&previous_) != cudaSuccess) return;
    // If this fails, the core reports both devices.
    changed_ = previous_ != device.index && cudaSetDevice(device.index) == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(previous_);
  }
#else
  explicit DeviceGuard(Device) {}
#endif
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

#ifdef SHORTCONV_HAS_CUDA
 private:
  int previous_ = 0;
  bool changed_ = false;
#endif
};

}  // namespace shortconv::python
