#pragma once

#include "shortconv/tensor.hpp"
#ifdef SHORTCONV_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace shortconv::python {

/// Makes a tensor's GPU the current one and puts the former one back. The core works on the current
/// device and refuses others; frameworks expect the tensor to decide.
class DeviceGuard {
 public:
#ifdef SHORTCONV_HAS_CUDA
  explicit DeviceGuard(Device device) {
    if (device.type != DeviceType::kCuda || cudaGetDevice(&former_) != cudaSuccess) return;
    // Where this fails the core says which devices are meant.
    changed_ = former_ != device.index && cudaSetDevice(device.index) == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(former_);
  }
#else
  explicit DeviceGuard(Device) {}
#endif
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

#ifdef SHORTCONV_HAS_CUDA
 private:
  int former_ = 0;
  bool changed_ = false;
#endif
};

}  // namespace shortconv::python
