#include "core/dispatch.hpp"
#include "cuda/host/general.hpp"
#include "cuda/host/kernels.hpp"
#include "cuda/kernels/general.cuh"

namespace shortconv::cuda {

namespace {

/// use(Types{}), with the types that a kernel for this window is compiled for.
template <typename Use>
KernelFunction with_types(const Problem& p, Use&& use) {
  KernelFunction function = nullptr;
  const bool compiled = dispatch(kWidths, general_width(p), [&](auto width) {
    function = reinterpret_cast<KernelFunction>(use(RuntimeTypesOfWidth<decltype(width)::value>{}));
  });
  return compiled ? function : reinterpret_cast<KernelFunction>(use(RuntimeTypes{}));
}

}  // namespace

KernelFunction general_kernel(const Problem& p) {
  return with_types(p, [](auto types) { return &convolve_general<decltype(types)>; });
}

KernelFunction whole_sequences_kernel(const Problem& p) {
  const bool short_sequences = whole_sequences_channels(p) == kShortWholeChannels;
  return with_types(p, [&](auto types) {
    using Types = decltype(types);
    if constexpr (Types::kWidth != 0) {
      if (short_sequences) return &convolve_whole_sequences<Types, kShortWholeChannels>;
    }
    return &convolve_whole_sequences<Types, kWholeChannels>;
  });
}

KernelFunction replace_histories_kernel() {
  return reinterpret_cast<KernelFunction>(&replace_histories);
}

}  // namespace shortconv::cuda
