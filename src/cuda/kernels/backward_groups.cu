// Kernels of backward calls with groups: instances of backward.cuh for one group, with and without
// a norm, of widths 2 to 4; copies and gates.
#include "cuda/host/backward_groups.hpp"
#include "cuda/kernels/backward_groups.cuh"
#include "cuda/kernels/backward_instances.cuh"

namespace shortconv::cuda {
namespace {

template <typename T, CompiledActivation kActivation, bool kHasBias>
BackwardKernel group_instance(int width, bool has_norm) {
  return backward_instance_of<kMaxGroupWidth>(width, [&](auto constant) {
    using Shape = BackwardShape<T, decltype(constant)::value, kActivation, kHasBias, false,
                                backward_group(sizeof(T), false)>;
    return has_norm ? backward_instance<PackedStrip<BackwardGroupShape<Shape, true>>>()
                    : backward_instance<PackedStrip<BackwardGroupShape<Shape, false>>>();
  });
}

template <typename T>
BackwardKernel group_instance(const BackwardFeatures& features, bool has_norm) {
  if (features.activation == Activation::kSilu && !features.has_bias) {
    return group_instance<T, CompiledActivation::kSilu, false>(features.width, has_norm);
  }
  return group_instance<T, CompiledActivation::kRuntime, true>(features.width, has_norm);
}

}  // namespace

BackwardKernel backward_group_kernel(DType dtype, const BackwardFeatures& features, bool has_norm) {
  switch (dtype) {
    case DType::kF32:
      return group_instance<F32>(features, has_norm);
    case DType::kF16:
      return group_instance<F16>(features, has_norm);
    case DType::kBF16:
      return group_instance<BF16>(features, has_norm);
    case DType::kF64:
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kBool:
      break;
  }
  return {};
}

KernelFunction copy_group_gradient_kernel() {
  return reinterpret_cast<KernelFunction>(&copy_group_gradient);
}
KernelFunction gate_gradients_kernel() { return reinterpret_cast<KernelFunction>(&gate_gradients); }

}  // namespace shortconv::cuda
