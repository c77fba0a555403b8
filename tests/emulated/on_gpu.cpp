// In place of tools/verify/on_gpu.cpp: the emulated device works in the buffers as they are. Their
// guard bands may not even be read, of which the address sanitizer takes care.
#include "verify/on_gpu.hpp"

#include "runtime.hpp"

#ifdef SHORTCONV_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace shortconv::tools::verify {
namespace {

/// Nobody may touch the guard bands as long as one of these lives.
class Guards {
 public:
  explicit Guards(const std::vector<const TensorBuffer*>& buffers) : buffers_(buffers) {
    for (const TensorBuffer* buffer : buffers_) {
      const std::byte* first = buffer->element(0);
      const std::byte* begin = buffer->bytes().data();
      const std::byte* end = begin + buffer->bytes().size();
      const auto band = static_cast<std::size_t>(first - begin);  // as long at the other end
      ASAN_POISON_MEMORY_REGION(begin, band);
      ASAN_POISON_MEMORY_REGION(end - band, band);
    }
  }
  ~Guards() {
    for (const TensorBuffer* buffer : buffers_) {
      ASAN_UNPOISON_MEMORY_REGION(buffer->bytes().data(), buffer->bytes().size());
    }
  }
  Guards(const Guards&) = delete;
  Guards& operator=(const Guards&) = delete;

 private:
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

}  // namespace shortconv::tools::verify
