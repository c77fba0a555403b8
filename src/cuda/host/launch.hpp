// What the operations of the CUDA backend share: errors, attributes of devices, loading and
// launching of kernels, and checks of addresses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "cuda/host/kernels.hpp"
#include "cuda/host/policy.hpp"
#include "cuda/launch_params.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/status.hpp"

namespace shortconv::cuda {

[[nodiscard]] Status cuda_status(std::string_view what, cudaError_t error);

/// The runtime uses the current device. A plan for another device is refused.
[[nodiscard]] Status require_current(Device device, std::string_view argument);

/// Cached: they are constant for a device.
[[nodiscard]] Status properties_of(int device, DeviceProperties& properties);

/// Loads the code of a kernel, so that its first launch can be inside a stream capture. Launches of
/// more than 48 KiB of shared memory need `shared_bytes` here. `runs_beside_others`: kernels with
/// much shared memory. A multiprocessor runs kernels at the same time only if they divide its
/// level-1 cache in the same way, so this one takes the largest part too.
[[nodiscard]] Status load(KernelFunction function, int device, bool* has_pdl = nullptr,
                          std::int32_t shared_bytes = 0, bool runs_beside_others = false);

struct Launch {
  KernelFunction function = nullptr;
  std::int64_t blocks = 0;
  std::int32_t threads = 0;
  std::int32_t shared_bytes = 0;
  bool programmatic = false;  // may start while the kernel before it ends
};
[[nodiscard]] Status launch_kernel(const Launch& launch, void** arguments, void* stream);

/// A GPU has no unaligned loads: an unaligned element would destroy the CUDA context. The mask
/// avoids some twenty divisions per call.
[[nodiscard]] inline bool aligned(const void* address, DType dtype) {
  const auto bytes = static_cast<std::uintptr_t>(element_bytes(dtype));
  return (reinterpret_cast<std::uintptr_t>(address) & (bytes - 1)) == 0;
}

[[nodiscard]] Status refuse_unaligned(std::string_view argument);

template <typename Problem, typename Pointers>
Status check_alignment(const Problem& problem, const Pointers& pointers) {
  std::string_view unaligned;
  visit_tensors(
      [&](const Argument& row, const auto& layout, const auto& pointer) {
        if (!aligned(pointer, layout.dtype)) unaligned = row.name;
      },
      problem, pointers);
  return refuse_unaligned(unaligned);
}

}  // namespace shortconv::cuda
