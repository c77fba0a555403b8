#include "cuda/host/launch.hpp"

#include <array>
#include <atomic>

#include "core/check.hpp"

namespace shortconv::cuda {
namespace {

// Kernels that are loaded, and those with code for PDL, one bit per device. Only a cache: after a
// lost entry or a collision of two kernels, the attributes are queried again.
constexpr std::size_t kLoadedSlots = 1024;
struct Loaded {
  std::atomic<KernelFunction> function{nullptr};
  std::atomic<std::uint64_t> devices{0};
  std::atomic<std::uint64_t> pdl_devices{0};
};
std::array<Loaded, kLoadedSlots> loaded;

// The first architecture with PDL. Code compiled for an older one does not wait on any device.
constexpr int kPdlArchitecture = 90;

}  // namespace

Status cuda_status(std::string_view what, cudaError_t error) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // cleared: the error is returned, not left for the caller to find
  return {Code::kUnavailable, concat(what, ": ", cudaGetErrorString(error))};
}

Status require_current(Device device, std::string_view argument) {
  int current = -1;
  if (Status status = cuda_status("device", cudaGetDevice(&current)); !status.ok()) return status;
  if (current == device.index) return {};
  return {Code::kInvalidArgument,
          concat("device: ", argument, " is on cuda:", std::int64_t{device.index},
                 ", but the current device is cuda:", std::int64_t{current})};
}

Status properties_of(int device, DeviceProperties& properties) {
  static std::array<std::atomic<std::int64_t>, 64> known{};
  const bool cached = device >= 0 && device < static_cast<int>(known.size());
  std::atomic<std::int64_t>* slot = cached ? &known[static_cast<std::size_t>(device)] : nullptr;
  std::int64_t packed = cached ? slot->load(std::memory_order_relaxed) : 0;
  if (packed == 0) {
    int multiprocessors = 0, major = 0, minor = 0;
    const auto get = [&](cudaDeviceAttr attribute, int& value) {
      return cuda_status("device", cudaDeviceGetAttribute(&value, attribute, device));
    };
    if (Status status = get(cudaDevAttrMultiProcessorCount, multiprocessors); !status.ok()) {
      return status;
    }
    if (Status status = get(cudaDevAttrComputeCapabilityMajor, major); !status.ok()) return status;
    if (Status status = get(cudaDevAttrComputeCapabilityMinor, minor); !status.ok()) return status;
    packed = std::int64_t{multiprocessors} << 32 | (10 * major + minor);
    if (cached) slot->store(packed, std::memory_order_relaxed);
  }
  properties = {.multiprocessors = static_cast<int>(packed >> 32),
                .architecture = static_cast<int>(packed & 0xffff)};
  return {};
}

Status load(KernelFunction function, int device, bool* has_pdl, std::int32_t shared_bytes,
            bool runs_beside_others) {
  Loaded& slot = loaded[(reinterpret_cast<std::uintptr_t>(function) >> 4) % kLoadedSlots];
  const std::uint64_t bit = std::uint64_t{1} << (device % 64);
  const bool known = slot.function.load(std::memory_order_acquire) == function;
  if (known && (slot.devices.load(std::memory_order_acquire) & bit) != 0) {
    if (has_pdl != nullptr) {
      *has_pdl = (slot.pdl_devices.load(std::memory_order_relaxed) & bit) != 0;
    }
    return {};
  }
  cudaFuncAttributes attributes;
  if (Status status = cuda_status("device", cudaFuncGetAttributes(&attributes, function));
      !status.ok()) {
    return status;
  }
  constexpr std::int32_t kWithoutAttribute = 48 * 1024;
  if (shared_bytes > kWithoutAttribute) {
    if (Status status = cuda_status(
            "device", cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           shared_bytes));
        !status.ok()) {
      return status;
    }
  }
  if (runs_beside_others) {
    if (Status status = cuda_status(
            "device", cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                           cudaSharedmemCarveoutMaxShared));
        !status.ok()) {
      return status;
    }
  }
  const bool compiled_with_pdl = attributes.ptxVersion >= kPdlArchitecture;
  if (has_pdl != nullptr) *has_pdl = compiled_with_pdl;
  KernelFunction none = nullptr;
  if (known || slot.function.compare_exchange_strong(none, function, std::memory_order_acq_rel)) {
    if (compiled_with_pdl) slot.pdl_devices.fetch_or(bit, std::memory_order_relaxed);
    slot.devices.fetch_or(bit, std::memory_order_release);
  }
  return {};
}

Status launch_kernel(const Launch& launch, void** arguments, void* stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.blocks));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(launch.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = launch.programmatic ? 1 : 0;
  return cuda_status("launch", cudaLaunchKernelExC(&config, launch.function, arguments));
}

Status refuse_unaligned(std::string_view argument) {
  if (argument.empty()) return {};
  return {Code::kInvalidArgument,
          concat(argument, ": address is not a multiple of the size of its elements")};
}

}  // namespace shortconv::cuda
