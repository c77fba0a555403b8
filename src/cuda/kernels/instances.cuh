// Instantiates the rows of kKernelTable for one element type.
#pragma once

#include <type_traits>
#include <utility>

#include "core/dispatch.hpp"
#include "cuda/host/kernels.hpp"
#include "cuda/kernel_table.hpp"
#include "cuda/kernels/block_list.cuh"
#include "cuda/kernels/channels_first.cuh"
#include "cuda/kernels/decode.cuh"
#include "cuda/kernels/drafts.cuh"
#include "cuda/kernels/seq_idx_tile.cuh"
#include "cuda/kernels/tile.cuh"
#include "cuda/kernels/trees.cuh"

namespace shortconv::cuda {

template <typename Function>
KernelFunction address_of(Function* function) {
  return reinterpret_cast<KernelFunction>(function);
}

template <typename Traits, Kernel kKernel>
KernelFunction function_of() {
  using T = typename Traits::Input;
  if constexpr (kKernel == Kernel::kTiles) {
    return address_of(&convolve_tiles<Traits>);
  } else if constexpr (kKernel == Kernel::kShortSequences) {
    return address_of(&convolve_short_sequences<Traits>);
  } else if constexpr (kKernel == Kernel::kSmallTiles) {
    return address_of(&convolve_small_tiles<Traits>);
  } else if constexpr (kKernel == Kernel::kSeqIdxTiles) {
    return address_of(&convolve_seq_idx_tiles<Traits>);
  } else if constexpr (kKernel == Kernel::kDecode) {
    return address_of(&decode_tokens<Traits, 16 / sizeof(T)>);
  } else if constexpr (kKernel == Kernel::kSmallDecode) {
    return address_of(&decode_tokens<Traits, kSmallDecodeGroup>);
  } else if constexpr (kKernel == Kernel::kDrafts) {
    return address_of(&convolve_drafts<Traits>);
  } else if constexpr (kKernel == Kernel::kTrees) {
    return address_of(&convolve_trees<Traits>);
  } else if constexpr (kKernel == Kernel::kChannelsFirst) {
    return address_of(&convolve_channels_first<T, Traits::kWidth, Traits::kActivation>);
  } else {
    static_assert(kKernel == Kernel::kBlockList, "kernel without a function");
    return address_of(&convolve_block_list<T, Traits::kWidth>);
  }
}

template <typename T, typename TWeight, int kWidth, Activation kActivation, std::size_t kRow>
KernelFunction instance() {
  constexpr const KernelRow& kInstance = kKernelTable[kRow];
  if constexpr (!is_compiled(kInstance, kDTypeOf<T>, kDTypeOf<TWeight>, kWidth)) {
    return nullptr;
  } else {
    using TState = std::conditional_t<kInstance.has_f32_state(), F32, T>;
    constexpr CompiledActivation kCompiled =
        kInstance.runtime_activation ? CompiledActivation::kRuntime : compiled(kActivation);
    using Traits = KernelTraits<T, TWeight, TState, kWidth, kCompiled, kInstance.variant>;
    return function_of<Traits, kInstance.kernel>();
  }
}

// Internal linkage: variable templates would otherwise be exported as unique symbols.
template <typename T, typename TWeight, int kWidth, Activation kActivation>
static const KernelFunctions kInstances = []<std::size_t... kRows>(std::index_sequence<kRows...>) {
  return KernelFunctions{instance<T, TWeight, kWidth, kActivation, kRows>()...};
}(std::make_index_sequence<kKernelRows>());

template <typename T, typename TWeight>
const KernelFunctions& select_instances(int width, Activation activation) {
  const KernelFunctions* functions = nullptr;
  (void)dispatch(kWidths, width, [&](auto constant) {
    constexpr int kWidth = constant.value;
    switch (activation) {
      case Activation::kNone:
        functions = &kInstances<T, TWeight, kWidth, Activation::kNone>;
        return;
      case Activation::kSilu:
        functions = &kInstances<T, TWeight, kWidth, Activation::kSilu>;
        return;
    }
  });
  return *functions;
}

template <typename T>
const KernelFunctions& select_instances(int width, Activation activation, bool f32_weights) {
  return f32_weights ? select_instances<T, F32>(width, activation)
                     : select_instances<T, T>(width, activation);
}

}  // namespace shortconv::cuda
