// Weights and bias of the channels of one thread. Registers hold them in the dtype of the weights;
// two channels at a time are converted to fp32. As fp32 they would take a third of the registers of
// a tile's thread.
#pragma once

#include <cstdint>

#include "cuda/device/activation.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/epilogue.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

template <typename TWeight, int kWidth, int kChannels>
class Taps {
 public:
  __device__ void load(const Weights& from, int channel) {
    if (from.packed) {
      load_packed(static_cast<const TWeight*>(from.weight) + std::int64_t{channel} * kWidth);
    } else {
      const auto* weight = static_cast<const TWeight*>(from.weight) + channel * from.channel_stride;
      auto* elements = reinterpret_cast<TWeight*>(words_);
#pragma unroll
      for (int i = 0; i < kWidth * kChannels; ++i) {
        elements[i] = weight[i / kWidth * from.channel_stride + i % kWidth * from.tap_stride];
      }
    }
    clear_words(bias_);
    if (from.bias == nullptr) return;
    const auto* bias = static_cast<const TWeight*>(from.bias) + channel * from.bias_channel_stride;
    if (from.packed) {
      load_words(bias, bias_);
      return;
    }
    auto* elements = reinterpret_cast<TWeight*>(bias_);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) elements[c] = bias[c * from.bias_channel_stride];
  }

  /// Initial sums of channels 2 * pair and 2 * pair + 1.
  __device__ float2 bias(int pair) const { return unpack_pair<TWeight>(bias_, pair); }
  /// Weights of these channels for the input `kWidth - 1 - k` tokens ago.
  __device__ float2 tap(int k, int pair) const {
    return {element(2 * pair * kWidth + k), element((2 * pair + 1) * kWidth + k)};
  }

 private:
  static constexpr int kWords = kWordsOf<TWeight, kWidth * kChannels>;

  __device__ void load_packed(const TWeight* from) {
    constexpr int kVector = kWords % 4 == 0 ? 4 : kWords % 2 == 0 ? 2 : 1;  // words
#pragma unroll
    for (int i = 0; i < kWords; i += kVector) {
      load_words_evict_last(reinterpret_cast<const std::uint32_t*>(from) + i,
                            reinterpret_cast<std::uint32_t(&)[kVector]>(words_[i]));
    }
  }

  __device__ float element(int index) const {
    const float2 pair = unpack_pair<TWeight>(words_, index / 2);
    return index % 2 == 0 ? pair.x : pair.y;
  }

  std::uint32_t words_[kWords];  // [channel][tap], oldest first
  std::uint32_t bias_[kWordsOf<TWeight, kChannels>];
};

/// The results of kChannels channels of one token from its window, newest input last, of dtype
/// TInput. `operand` as for finish.
template <typename T, CompiledActivation kActivation, Variant kVariant, typename TInput = T,
          typename TWeight, int kWidth, int kChannels>
__device__ inline void convolve_window(
    const KernelParams& params, const Taps<TWeight, kWidth, kChannels>& taps,
    const std::uint32_t (&window)[kWidth][kWordsOf<TInput, kChannels>],
    const std::uint32_t (&operand)[kWordsOf<T, kChannels>],
    std::uint32_t (&result)[kWordsOf<T, kChannels>]) {
#pragma unroll
  for (int pair = 0; pair < kChannels / 2; ++pair) {
    float2 sum = taps.bias(pair);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float2 input = unpack_pair<TInput>(window[k], pair);
      sum.x = __fmaf_rn(taps.tap(k, pair).x, input.x, sum.x);
      sum.y = __fmaf_rn(taps.tap(k, pair).y, input.y, sum.y);
    }
    const float2 other = unpack_pair<T>(operand, pair);
    pack_pair<T>(result, pair, finish<kActivation, kVariant>(params, sum, other));
  }
}

}  // namespace shortconv::cuda
