#include "cuda/host/kernels.hpp"
#include "cuda/kernels/general_verify.cuh"
#include "cuda/kernels/sized_types.cuh"

namespace shortconv::cuda {

KernelFunction general_verify_kernel(const Problem& p) {
  return with_sized_types(p, [&](auto types) {
    using Types = decltype(types);
    return p.parents.present ? &verify_general<Types, true> : &verify_general<Types, false>;
  });
}

}  // namespace shortconv::cuda
