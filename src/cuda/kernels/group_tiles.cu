#include "core/dispatch.hpp"
#include "cuda/group_params.hpp"
#include "cuda/kernels/decode.cuh"
#include "cuda/kernels/group_tiles.cuh"

namespace shortconv::cuda {
namespace {

template <typename T, Activation kActivation>
KernelFunction function_of(GroupKernel kernel, int width) {
  KernelFunction function = nullptr;
  (void)dispatch(kGroupTileWidths, width, [&](auto constant) {
    using Traits = KernelTraits<T, T, T, constant.value, compiled(kActivation), Variant::kGroups>;
    switch (kernel) {
      case GroupKernel::kTiles:
        function = reinterpret_cast<KernelFunction>(&convolve_groups<Traits, false>);
        return;
      case GroupKernel::kFewTiles:
        function = reinterpret_cast<KernelFunction>(&convolve_groups<Traits, true>);
        return;
      case GroupKernel::kDecode:
        function = reinterpret_cast<KernelFunction>(&decode_tokens<Traits, kSmallDecodeGroup>);
        return;
    }
  });
  return function;
}

template <typename T>
KernelFunction function_of(GroupKernel kernel, int width, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return function_of<T, Activation::kNone>(kernel, width);
    case Activation::kSilu:
      return function_of<T, Activation::kSilu>(kernel, width);
  }
  return nullptr;
}

}  // namespace

KernelFunction group_tiles_kernel(GroupKernel kernel, DType dtype, int width,
                                  Activation activation) {
  if (dtype == DType::kBF16) return function_of<BF16>(kernel, width, activation);
  return dtype == DType::kF16 ? function_of<F16>(kernel, width, activation) : nullptr;
}

}  // namespace shortconv::cuda
