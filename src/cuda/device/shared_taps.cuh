// The taps of a block's channels in shared memory, for widths without an instance.
#pragma once

#include <cstdint>

#include "cuda/device/raw_elements.cuh"
#include "cuda/tuning.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::cuda {

/// As fp32. In memory the taps of a channel are usually adjacent: threads load adjacent elements of
/// the weights, whichever channel they are of, instead of each its own channel.
template <int kChannels>
struct SharedTaps {
  static constexpr int kStride = shared_tap_stride(kChannels);  // between taps
  float* values;

  /// Shared memory in words of 4 bytes.
  __device__ static int words(int width) { return width * kStride; }

  /// All threads of a block call it, for its channels from `first` on, and synchronize before they
  /// use the taps.
  __device__ void load(const Problem& p, const TensorPointers& at, std::int64_t first) const {
    constexpr int kBatch = 8;
    const auto& layout = p.weight;
    const auto bytes = static_cast<int>(element_bytes(layout.dtype));
    const auto count = static_cast<int>(min(p.channels - first, std::int64_t{kChannels}));
    // Elements in the order of memory: `inner` adjacent ones, then the next ones of `outer`.
    const bool by_tap = layout.channel_stride < layout.tap_stride;
    const int inner = by_tap ? count : p.width, outer = by_tap ? p.width : count;
    const std::int64_t inner_bytes = (by_tap ? layout.channel_stride : layout.tap_stride) * bytes;
    const std::int64_t outer_bytes = (by_tap ? layout.tap_stride : layout.channel_stride) * bytes;
    const int inner_words = by_tap ? 1 : kStride;
    const int outer_words = by_tap ? kStride : 1;
    const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int outer_step = threads / inner, inner_step = threads % inner;
    int o = thread / inner, i = thread % inner;
    const char* from = static_cast<const char*>(at.weight) + first * layout.channel_stride * bytes +
                       o * outer_bytes + i * inner_bytes;
    float* to = values + o * outer_words + i * inner_words;
    const std::int64_t step_bytes = outer_step * outer_bytes + inner_step * inner_bytes;
    const int step_words = outer_step * outer_words + inner_step * inner_words;
    const std::int64_t carry_bytes = outer_bytes - inner * inner_bytes;
    const int carry_words = outer_words - inner * inner_words;
    while (o < outer) {
      RawElements<kBatch> raw;
      float* to_of[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        to_of[k] = o < outer ? to : nullptr;
        raw.bits[k] = 0;
        if (o < outer) raw.load_one(k, from, bytes);
        o += outer_step, i += inner_step, from += step_bytes, to += step_words;
        if (i >= inner) i -= inner, ++o, from += carry_bytes, to += carry_words;
      }
      float taps[kBatch];
      raw.convert(layout.dtype, taps);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (to_of[k] != nullptr) *to_of[k] = taps[k];
      }
    }
  }
  __device__ float at(int tap, int channel) const { return values[tap * kStride + channel]; }
};

}  // namespace shortconv::cuda
