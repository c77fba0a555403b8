// The types that the general kernels for decode and verify are compiled for.
#pragma once

#include "core/dispatch.hpp"
#include "cuda/device/token.cuh"
#include "cuda/host/general.hpp"
#include "cuda/host/kernels.hpp"
#include "cuda/host/memory_layout.hpp"

namespace shortconv::cuda {

/// use(Types{}) with the sizes and the width of a call, or with RuntimeTypes.
template <typename Use>
KernelFunction with_sized_types(const Problem& p, Use&& use) {
  if (!has_sized_types(p)) return reinterpret_cast<KernelFunction>(use(RuntimeTypes{}));
  KernelFunction function = nullptr;
  const auto with_width = [&]<int kWidth>(std::integral_constant<int, kWidth>) {
    if (element_bytes(p.x.dtype) == 4) {
      function = reinterpret_cast<KernelFunction>(use(SizedTypes<4, 4, kWidth>{}));
    } else if (has_f32_states(p)) {
      function = reinterpret_cast<KernelFunction>(use(SizedTypes<2, 4, kWidth>{}));
    } else {
      function = reinterpret_cast<KernelFunction>(use(SizedTypes<2, 2, kWidth>{}));
    }
  };
  const bool compiled = dispatch(kWidths, sized_width(p), [&](auto width) { with_width(width); });
  if (!compiled) with_width(std::integral_constant<int, 0>{});
  return function;
}

}  // namespace shortconv::cuda
