// Replaces tools/verify/on_gpu.cpp: the emulated device uses the buffers in place. The address
// sanitizer finds accesses to their guard bands, reads included.
#include "verify/on_gpu.hpp"

#include <span>

#include "runtime.hpp"

#ifdef SHORTCONV_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace shortconv::tools::verify {
namespace {

/// Poisons the guard bands during its lifetime. Those of index tensors are inverted from -1 to 0,
/// which is a row or slot that exists.
class Guards {
 public:
  explicit Guards(const std::vector<const TensorBuffer*>& buffers) : buffers_(buffers) {
    for_each_band([](std::span<std::byte> band, bool index) {
      if (index) invert(band);
      ASAN_POISON_MEMORY_REGION(band.data(), band.size());
    });
  }
  ~Guards() {
    for_each_band([](std::span<std::byte> band, bool index) {
      ASAN_UNPOISON_MEMORY_REGION(band.data(), band.size());
      if (index) invert(band);
    });
  }
  Guards(const Guards&) = delete;
  Guards& operator=(const Guards&) = delete;

 private:
  template <typename Use>
  void for_each_band(Use&& use) const {
    for (const TensorBuffer* buffer : buffers_) {
      const std::span<std::byte> bytes = buffer->bytes();
      const auto band = static_cast<std::size_t>(buffer->element(0) - bytes.data());
      const DType dtype = buffer->spec().dtype;
      const bool index = dtype == DType::kI32 || dtype == DType::kI64;
      use(bytes.first(band), index);
      use(bytes.last(band), index);
    }
  }
  /// Inverting twice preserves a difference that a kernel has written.
  static void invert(std::span<std::byte> band) {
    for (std::byte& byte : band) byte = ~byte;
  }

  const std::vector<const TensorBuffer*>& buffers_;
};

}  // namespace

Status forward_on_gpu(ForwardArgs arguments, const CaseBuffers& buffers) {
  const auto tensors = buffers.tensors();
  const Guards guards(tensors);
  return forward(emulated::on_device(arguments));
}

Status commit_on_gpu(CommitArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  const Guards guards(buffers);
  return commit(emulated::on_device(arguments));
}

Status backward_on_gpu(BackwardArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  const Guards guards(buffers);
  return backward(emulated::on_device(arguments));
}

Status grouped_on_gpu(GroupedArgs arguments, std::span<ChannelGroup> groups,
                      const std::vector<const TensorBuffer*>& buffers) {
  const Guards guards(buffers);
  arguments.forward = emulated::on_device(arguments.forward);
  for (ChannelGroup& group : groups) group.out.device = emulated::kDevice;
  if (arguments.gates) arguments.gates = emulated::on_device(*arguments.gates);
  return forward_groups(arguments);
}

Status grouped_backward_on_gpu(GroupedBackwardArgs arguments, std::span<ChannelGroup> groups,
                               const std::vector<const TensorBuffer*>& buffers) {
  const Guards guards(buffers);
  arguments.backward = emulated::on_device(arguments.backward);
  for (ChannelGroup& group : groups) group.out.device = emulated::kDevice;
  if (arguments.gates) arguments.gates = emulated::on_device(*arguments.gates);
  return backward_groups(arguments);
}

Status norm_on_gpu(L2NormArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  const Guards guards(buffers);
  arguments.x.device = arguments.out.device = emulated::kDevice;
  return l2_norm(arguments);
}

Status gates_on_gpu(GateArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  const Guards guards(buffers);
  return delta_gates(emulated::on_device(arguments));
}

}  // namespace shortconv::tools::verify
