#include "cuda/host/kernels.hpp"
#include "cuda/kernels/general_decode.cuh"
#include "cuda/kernels/sized_types.cuh"

namespace shortconv::cuda {

KernelFunction general_decode_kernel(const Problem& p) {
  return with_sized_types(p, [](auto types) { return &decode_general<decltype(types)>; });
}

}  // namespace shortconv::cuda
