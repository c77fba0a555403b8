// SIMD functions on contiguous runs: conversions, transposes, the order of taps. foreach_target of
// Highway compiles this file once per instruction set.
//
// Each element is read once and written once, in cache: the runs are the channels of a row or the
// taps of a block of channels.

#if defined(SHORTCONV_CPU_RUNS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SHORTCONV_CPU_RUNS_INL
#undef SHORTCONV_CPU_RUNS_INL
#else
#define SHORTCONV_CPU_RUNS_INL
#endif

#include "cpu/elements-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu {
namespace HWY_NAMESPACE {

template <class Element>
void multiply_run(const void* a, const void* b, void* to, std::int64_t count) {
  using Type = typename Element::Type;
  const auto *first = static_cast<const Type*>(a), *second = static_cast<const Type*>(b);
  auto* target = static_cast<Type*>(to);
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  std::int64_t i = 0;
  for (; i + step <= count; i += step) {
    Element::store(product<Element>(first + i, second + i), target + i);
  }
  for (; i < count; ++i) {
    target[i] = Element::from_f32(Element::to_f32(first[i]) * Element::to_f32(second[i]));
  }
}

template <class Element>
void load_run(const void* from, float* to, std::int64_t count) {
  const auto* source = static_cast<const typename Element::Type*>(from);
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  std::int64_t i = 0;
  for (; i + step <= count; i += step) {
    Element::store_as(Element::load(source + i), to + i);
  }
  for (; i < count; ++i) to[i] = Element::to_f32(source[i]);
}

template <class Element>
void store_run(const float* from, void* to, std::int64_t count) {
  auto* target = static_cast<typename Element::Type*>(to);
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  std::int64_t i = 0;
  for (; i + step <= count; i += step)
    Element::store(Element::storable(Element::load_as(from + i)), target + i);
  for (; i < count; ++i) target[i] = Element::from_f32(from[i]);
}

/// fp32 in channel order -> in the lane order of Element; `count` is whole steps.
template <class Element>
void arrange_run(const float* from, float* to, std::int64_t count) {
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  for (std::int64_t i = 0; i < count; i += step) {
    store_pair(Element::load_as(from + i), to + i);
  }
}

/// The inverse.
template <class Element>
void restore_run(const float* from, float* to, std::int64_t count) {
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  for (std::int64_t i = 0; i < count; i += step) Element::store_as(load_pair(from + i), to + i);
}

/// True if there are functions that take weights as they are, which separate the taps in registers.
template <int kWidth>
inline constexpr bool kHasArrangeWeight = kWidth >= 2 && kWidth <= 4;

/// Block::taps of a step from [channels, width], in the lane order of Element.
template <class Element, int kWidth>
HWY_INLINE void load_taps(const typename Element::Type* from, Pair (&taps)[kWidth]) {
  static_assert(kHasArrangeWeight<kWidth>);
  if constexpr (kWidth == 4 && requires { Element::load_taps(from, taps); }) {
    return Element::load_taps(from, taps);
  }
  const hn::ScalableTag<typename Element::Type> d;
  const std::size_t lanes = hn::Lanes(d), step = 2 * hn::Lanes(F32());
  HWY_ALIGN typename Element::Type rows[kWidth][kMaxStep];
  for (std::size_t i = 0; i < step; i += lanes, from += kWidth * lanes) {
    hn::Vec<decltype(d)> v[4];
    if constexpr (kWidth == 2) {
      hn::LoadInterleaved2(d, from, v[0], v[1]);
    } else if constexpr (kWidth == 3) {
      hn::LoadInterleaved3(d, from, v[0], v[1], v[2]);
    } else {
      hn::LoadInterleaved4(d, from, v[0], v[1], v[2], v[3]);
    }
    for (int k = 0; k < kWidth; ++k) hn::Store(v[k], d, rows[k] + i);
  }
  for (int k = 0; k < kWidth; ++k) {
    taps[k] = Element::without_payloads(Element::load(rows[k]));
  }
}

/// [channels, width] -> Block::taps; whole steps.
template <class Element, int kWidth>
void arrange_weight(const void* weight, float* taps, std::int64_t pitch, std::int64_t channels) {
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const auto* from = static_cast<const typename Element::Type*>(weight);
  for (std::int64_t channel = 0; channel < channels; channel += step) {
    Pair step_taps[kWidth];
    load_taps<Element>(from + channel * kWidth, step_taps);
    for (int k = 0; k < kWidth; ++k) store_pair(step_taps[k], taps + k * pitch + channel);
  }
}

/// [count, rows] -> [rows, count], bits unchanged. Vectors for two to four rows.
template <typename Type>
void split_rows(const void* from, int rows, std::int64_t count, void* to, std::int64_t to_pitch) {
  const hn::ScalableTag<Type> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto* source = static_cast<const Type*>(from);
  auto* target = static_cast<Type*>(to);
  std::int64_t i = 0;
  if (rows >= 2 && rows <= 4) {
    for (; i + lanes <= count; i += lanes) {
      hn::Vec<decltype(d)> v0, v1, v2, v3;
      if (rows == 2) {
        hn::LoadInterleaved2(d, source + 2 * i, v0, v1);
      } else if (rows == 3) {
        hn::LoadInterleaved3(d, source + 3 * i, v0, v1, v2);
      } else {
        hn::LoadInterleaved4(d, source + 4 * i, v0, v1, v2, v3);
        hn::StoreU(v3, d, target + 3 * to_pitch + i);
      }
      hn::StoreU(v0, d, target + i);
      hn::StoreU(v1, d, target + to_pitch + i);
      if (rows > 2) hn::StoreU(v2, d, target + 2 * to_pitch + i);
    }
  }
  for (; i < count; ++i) {
    for (int row = 0; row < rows; ++row) target[row * to_pitch + i] = source[i * rows + row];
  }
}

/// rows -> [count, rows], bits unchanged. Vectors for two to four rows.
template <typename Type>
void join_rows(const void* const* from, int rows, std::int64_t count, void* to) {
  const hn::ScalableTag<Type> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto row = [&](int k) { return static_cast<const Type*>(from[k]); };
  auto* target = static_cast<Type*>(to);
  std::int64_t i = 0;
  if (rows >= 2 && rows <= 4) {
    const Type *r0 = row(0), *r1 = row(1), *r2 = row(rows > 2 ? 2 : 0), *r3 = row(rows > 3 ? 3 : 0);
    for (; i + lanes <= count; i += lanes) {
      const auto v0 = hn::LoadU(d, r0 + i), v1 = hn::LoadU(d, r1 + i);
      if (rows == 2) {
        hn::StoreInterleaved2(v0, v1, d, target + 2 * i);
      } else if (rows == 3) {
        hn::StoreInterleaved3(v0, v1, hn::LoadU(d, r2 + i), d, target + 3 * i);
      } else {
        hn::StoreInterleaved4(v0, v1, hn::LoadU(d, r2 + i), hn::LoadU(d, r3 + i), d,
                              target + 4 * i);
      }
    }
  }
  for (; i < count; ++i) {
    for (int k = 0; k < rows; ++k) target[i * rows + k] = row(k)[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shortconv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
