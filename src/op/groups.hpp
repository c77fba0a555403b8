// What follows the convolution in a grouped call, in fp32: the norm of a head and the gates of a
// delta rule. Each addition, multiplication, division and square root is rounded once, to nearest
// even; the exponentials and logarithms are those of the platform.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/device.hpp"
#include "op/epilogue.hpp"
#include "shortconv/groups.hpp"

namespace shortconv {

/// First column of a head.
SHORTCONV_HOST_DEVICE constexpr std::int64_t column_of(const HeadMap& map, std::int64_t head) {
  return map.offset + head / map.block_heads * map.block_stride +
         head % map.block_heads * map.head_stride;
}

/// Offset of a packed row, in elements; `sequence_tokens` is 0 without an axis of sequences.
template <typename Layout>
SHORTCONV_HOST_DEVICE inline std::int64_t packed_row_offset(std::int64_t sequence_tokens,
                                                            std::int64_t row,
                                                            const Layout& layout) {
  if (sequence_tokens == 0) return row * layout.token_stride;
  return row / sequence_tokens * layout.sequence_stride +
         row % sequence_tokens * layout.token_stride;
}

/// The balanced tree over `count` values: neighbors first, zeros up to a power of two. A sum waits
/// at the height of its subtree until its neighbor is complete; adding zeros changes nothing.
template <typename ValueAt>
SHORTCONV_HOST_DEVICE inline float tree_sum(std::int64_t count, ValueAt&& value_at) {
  float waiting[64];
  for (std::int64_t i = 0; i < count; ++i) {
    float sum = value_at(i);
    int height = 0;
    for (; (i >> height & 1) != 0; ++height) sum = rounded_sum(waiting[height], sum);
    waiting[height] = sum;
  }
  float sum = 0;
  bool is_first = true;
  for (int height = 0; (count >> height) != 0; ++height) {
    if ((count >> height & 1) == 0) continue;
    sum = is_first ? waiting[height] : rounded_sum(waiting[height], sum);
    is_first = false;
  }
  return sum;
}

/// 1 / sqrt(sum + eps)
SHORTCONV_HOST_DEVICE inline float inverse_norm(float sum, float eps) {
  const float with_eps = rounded_sum(sum, eps);
#ifdef __CUDA_ARCH__
  return __frcp_rn(__fsqrt_rn(with_eps));
#else
  return 1 / std::sqrt(with_eps);
#endif
}

/// An element of a head, before its rounding.
SHORTCONV_HOST_DEVICE inline float normalized(float element, float inverse, float scale) {
  const float unit = rounded_product(element, inverse);
  return scale == 1 ? unit : rounded_product(unit, scale);
}

SHORTCONV_HOST_DEVICE inline float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }

/// g, or exp(g).
SHORTCONV_HOST_DEVICE inline float decay_gate(DecayForm form, float a, float a_log, float dt_bias) {
  const float g = rounded_product(-expf(a_log), softplus(rounded_sum(a, dt_bias)));
  return form == DecayForm::kExp ? expf(g) : g;
}

/// 1 / (1 + exp(-b))
SHORTCONV_HOST_DEVICE inline float sigmoid(float b) {
  const float sum = rounded_sum(1.0f, expf(-b));
#ifdef __CUDA_ARCH__
  return __frcp_rn(sum);
#else
  return 1 / sum;
#endif
}

}  // namespace shortconv
