#include "core/backend.hpp"
#include "core/check.hpp"

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
    case BackendId::kCuda:
#ifdef SHORTCONV_HAS_CUDA
      return &kCudaBackend;
#endif
    case BackendId::kAuto:
      break;
  }
  return nullptr;
}

Status choose_backend(BackendId requested, DeviceType device, std::string_view argument,
                      const Backend*& backend) {
  const BackendId by_default = device == DeviceType::kCuda ? BackendId::kCuda : BackendId::kCpu;
  const BackendId id = requested == BackendId::kAuto ? by_default : requested;
  const Backend* found = find_backend(id);
  if (found == nullptr) {
    return {Code::kUnavailable, concat("backend: '", name(id), "' is not built into this library")};
  }
  if (found->device != device) {
    return {Code::kInvalidArgument, concat("backend: '", name(id), "' works on device type ",
                                           static_cast<std::int64_t>(found->device), ", but ",
                                           argument, " is on ", static_cast<std::int64_t>(device))};
  }
  backend = found;
  return {};
}

}  // namespace shortconv
