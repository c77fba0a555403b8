#include "core/backend.hpp"

namespace shortconv {

extern const Backend kReferenceBackend;
extern const Backend kCpuBackend;
#ifdef SHORTCONV_HAS_CUDA
extern const Backend kCudaBackend;
#endif

const Backend* find_backend(BackendId id) {
  switch (id) {
    case BackendId::kReference:
      return &kReferenceBackend;
    case BackendId::kCpu:
      return &kCpuBackend;
#ifdef SHORTCONV_HAS_CUDA
    case BackendId::kCuda:
      return &kCudaBackend;
#endif
    default:
      return nullptr;
  }
}

BackendId default_backend(DeviceType device) {
  return device == DeviceType::kCuda ? BackendId::kCuda : BackendId::kCpu;
}

}  // namespace shortconv
