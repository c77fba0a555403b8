// Vectors and element types of the SIMD kernels. foreach_target of Highway compiles this file once
// per instruction set.

#if defined(SHORTCONV_CPU_ELEMENTS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SHORTCONV_CPU_ELEMENTS_INL
#undef SHORTCONV_CPU_ELEMENTS_INL
#else
#define SHORTCONV_CPU_ELEMENTS_INL
#endif

#include <hwy/highway.h>

// 1 if the instruction set has fused multiply-add and fp16 conversion. It differs between targets,
// so it cannot be a constant.
#undef SHORTCONV_NATIVE_FMA_F16
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR || (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2)
#define SHORTCONV_NATIVE_FMA_F16 0
#else
#define SHORTCONV_NATIVE_FMA_F16 1
#endif

#include <cmath>
#include <cstdint>

#include "core/element.hpp"
#include "op/silu.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::ScalableTag<std::uint32_t>;
using U16 = hn::ScalableTag<std::uint16_t>;
using Half16 = hn::Rebind<std::uint16_t, F32>;  // lanes of F32, 16 bits each
using VecF = hn::Vec<F32>;
using VecU = hn::Vec<U32>;

inline constexpr std::int64_t kMaxStep = 2 * HWY_MAX_BYTES / sizeof(float);

/// Two vectors of one step. The element type determines the order of the lanes. GCC compiles
/// implicit constructors without the instruction set of the others, and Highway's do not inline
/// into those.
struct Pair {
  VecF a;
  VecF b;
  HWY_INLINE Pair() {}
  HWY_INLINE Pair(VecF first, VecF second) : a(first), b(second) {}
};

HWY_INLINE Pair load_pair(const float* from) {
  const F32 d;
  return {hn::LoadU(d, from), hn::LoadU(d, from + hn::Lanes(d))};
}

HWY_INLINE void store_pair(Pair value, float* to) {
  const F32 d;
  hn::StoreU(value.a, d, to);
  hn::StoreU(value.b, d, to + hn::Lanes(d));
}

HWY_INLINE VecF fused(VecF x, VecF y, VecF z) {
#if SHORTCONV_NATIVE_FMA_F16
  return hn::MulAdd(x, y, z);
#else  // no fused instruction: exact and slow, one lane at a time
  const F32 d;
  HWY_ALIGN float lanes[3][HWY_MAX_BYTES / sizeof(float)];
  hn::Store(x, d, lanes[0]);
  hn::Store(y, d, lanes[1]);
  hn::Store(z, d, lanes[2]);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) {
    lanes[0][i] = std::fma(lanes[0][i], lanes[1][i], lanes[2][i]);
  }
  return hn::Load(d, lanes[0]);
#endif
}

/// e^-a of op/silu.hpp as the product p * scale, operation by operation. Several vectors at once,
/// so that their chains of operations overlap.
template <int kVectors>
HWY_INLINE void exp_of_minus(const VecF (&a)[kVectors], VecF (&p)[kVectors],
                             VecF (&scale)[kVectors]) {
  using C = SiluConstants;
  const F32 d;
  const U32 du;
  constexpr int n = kVectors;
  VecF g[n];
  for (int i = 0; i < n; ++i) g[i] = hn::Max(a[i], hn::Set(d, C::kLowest));
  for (int i = 0; i < n; ++i) g[i] = hn::Min(g[i], hn::Set(d, C::kHighest));
  for (int i = 0; i < n; ++i) {
    scale[i] = fused(g[i], hn::Set(d, C::kMinusLog2e), hn::Set(d, C::kRound));
  }
  for (int i = 0; i < n; ++i) p[i] = hn::Sub(scale[i], hn::Set(d, C::kRound));
  for (int i = 0; i < n; ++i) g[i] = fused(p[i], hn::Set(d, C::kLn2), g[i]);
  for (int i = 0; i < n; ++i) {
    scale[i] = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, scale[i])));
  }
  for (int i = 0; i < n; ++i) p[i] = fused(g[i], hn::Set(d, C::kC5), hn::Set(d, C::kC4));
  for (int i = 0; i < n; ++i) p[i] = fused(g[i], p[i], hn::Set(d, C::kC3));
  for (int i = 0; i < n; ++i) p[i] = fused(g[i], p[i], hn::Set(d, C::kC2));
  for (int i = 0; i < n; ++i) p[i] = fused(g[i], p[i], hn::Set(d, -1.0f));
  for (int i = 0; i < n; ++i) p[i] = fused(g[i], p[i], hn::Set(d, 1.0f));
}

/// silu of op/silu.hpp on two vectors.
HWY_INLINE Pair silu(Pair sum) {
  const VecF one = hn::Set(F32(), 1.0f);
  const VecF values[2] = {sum.a, sum.b};
  VecF p[2], scale[2];
  exp_of_minus(values, p, scale);
  for (int i = 0; i < 2; ++i) p[i] = fused(p[i], scale[i], one);
  return {hn::Div(values[0], p[0]), hn::Div(values[1], p[1])};
}

/// NaN -> the standard one. hn::NaN has all payload bits set in some versions of Highway.
HWY_INLINE VecF canonical(VecF value) {
  const VecF quiet = hn::BitCast(F32(), hn::Set(U32(), 0x7fc00000u));
  return hn::IfThenElse(hn::IsNaN(value), quiet, value);
}

/// An element type: conversion of one step to two fp32 vectors and back. `load_as` and `store_as`
/// are for fp32 in memory, with the lanes in the order of the type; the defaults keep channel
/// order.
template <class Element>
struct ElementDefaults {
  static HWY_INLINE Pair load_as(const float* from) { return load_pair(from); }
  static HWY_INLINE void store_as(Pair value, float* to) { store_pair(value, to); }
  template <typename Type>
  static HWY_INLINE void stream(Pair value, Type* to) {
    Element::store(value, to);
  }
  /// Values of this type such that a NaN has a lower half of zeros.
  static HWY_INLINE Pair without_payloads(Pair value) {
    return {canonical(value.a), canonical(value.b)};
  }
  /// Values that may be any NaN such that they may be stored.
  static HWY_INLINE Pair storable(Pair value) { return value; }
};

struct ElementF32 : ElementDefaults<ElementF32> {
  using Type = float;
  using Bits = std::uint32_t;
  static HWY_INLINE Pair load(const Type* from) { return load_pair(from); }
  static HWY_INLINE void store(Pair value, Type* to) { store_pair(value, to); }
  static HWY_INLINE void stream(Pair value, Type* to) {
    const F32 d;
    hn::Stream(value.a, d, to);
    hn::Stream(value.b, d, to + hn::Lanes(d));
  }
  static HWY_INLINE Pair rounded(Pair value) { return value; }
  static float to_f32(Type value) { return value; }
  static Type from_f32(float value) { return value; }
};

#if SHORTCONV_NATIVE_FMA_F16

/// Even elements in one vector, odd ones in the other: a bf16 is the upper half of an fp32, so a
/// shift and a mask convert without a shuffle.
struct ElementBF16 {
  using Type = std::uint16_t;
  using Bits = std::uint16_t;
  static HWY_INLINE Pair load(const Type* from) {
    const F32 d;
    const U32 du;
    const VecU both = hn::BitCast(du, hn::LoadU(U16(), from));
    return {hn::BitCast(d, hn::ShiftLeft<16>(both)),
            hn::BitCast(d, hn::And(both, hn::Set(du, 0xffff0000u)))};
  }
  static HWY_INLINE Pair load_as(const float* from) {
    Pair value;
    hn::LoadInterleaved2(F32(), from, value.a, value.b);
    return value;
  }
  static HWY_INLINE void store_as(Pair value, float* to) {
    hn::StoreInterleaved2(value.a, value.b, F32(), to);
  }
  // The upper 16 bits of the result are the bf16, to nearest even. A NaN stays a NaN unless the
  // upper 17 bits of its payload are set, which the convolution cannot produce: see Block::taps.
  static HWY_INLINE VecU upper_half(VecF value) {
    const U32 du;
    const VecU bits = hn::BitCast(du, value);
    const auto odd = hn::TestBit(bits, hn::Set(du, 0x10000u));
    return hn::Add(bits, hn::IfThenElse(odd, hn::Set(du, 0x8000u), hn::Set(du, 0x7fffu)));
  }
  static HWY_INLINE Pair rounded(Pair value) {
    const F32 d;
    const VecU mask = hn::Set(U32(), 0xffff0000u);
    return {hn::BitCast(d, hn::And(upper_half(value.a), mask)),
            hn::BitCast(d, hn::And(upper_half(value.b), mask))};
  }
  static HWY_INLINE hn::Vec<U16> packed(Pair value) {
    const VecU even = hn::ShiftRight<16>(upper_half(value.a));
    return hn::BitCast(U16(), hn::OrAnd(even, upper_half(value.b), hn::Set(U32(), 0xffff0000u)));
  }
  static HWY_INLINE void store(Pair value, Type* to) { hn::StoreU(packed(value), U16(), to); }
  static HWY_INLINE void stream(Pair value, Type* to) { hn::Stream(packed(value), U16(), to); }
  static HWY_INLINE Pair without_payloads(Pair value) { return value; }
  static HWY_INLINE Pair storable(Pair value) { return {canonical(value.a), canonical(value.b)}; }
  /// Four taps of a step from [channels, 4]. The taps of a channel are 64 bits, so half as many
  /// instructions separate them as separate four elements.
  static HWY_INLINE void load_taps(const Type* from, Pair (&taps)[4]) {
    const U32 d;
    const hn::Repartition<std::uint64_t, U32> d64;
    const auto quarter = [&](std::size_t i) HWY_ATTR {
      return hn::BitCast(d64, hn::LoadU(U16(), from + i * hn::Lanes(U16())));
    };
    const auto v0 = quarter(0), v1 = quarter(1), v2 = quarter(2), v3 = quarter(3);
    const VecU even[2] = {hn::BitCast(d, hn::ConcatEven(d64, v1, v0)),
                          hn::BitCast(d, hn::ConcatEven(d64, v3, v2))};
    const VecU odd[2] = {hn::BitCast(d, hn::ConcatOdd(d64, v1, v0)),
                         hn::BitCast(d, hn::ConcatOdd(d64, v3, v2))};
    const auto separate = [&](VecU a, VecU b, Pair& lower, Pair& upper) HWY_ATTR {
      const VecU mask = hn::Set(d, 0xffff0000u);
      lower = {hn::BitCast(F32(), hn::ShiftLeft<16>(a)), hn::BitCast(F32(), hn::ShiftLeft<16>(b))};
      upper = {hn::BitCast(F32(), hn::And(a, mask)), hn::BitCast(F32(), hn::And(b, mask))};
    };
    separate(hn::ConcatEven(d, even[1], even[0]), hn::ConcatEven(d, odd[1], odd[0]), taps[0],
             taps[1]);
    separate(hn::ConcatOdd(d, even[1], even[0]), hn::ConcatOdd(d, odd[1], odd[0]), taps[2],
             taps[3]);
  }
  static float to_f32(Type value) { return f32_from_bf16(value); }
  static Type from_f32(float value) { return bf16_from_f32(value); }
};

struct ElementF16 : ElementDefaults<ElementF16> {
  using Type = std::uint16_t;
  using Bits = std::uint16_t;
  using Half = hn::Rebind<hwy::float16_t, F32>;
  static HWY_INLINE VecF widen(const Type* from) {
    return hn::PromoteTo(F32(), hn::BitCast(Half(), hn::LoadU(Half16(), from)));
  }
  static HWY_INLINE void narrow(VecF value, Type* to) {
    hn::StoreU(hn::BitCast(Half16(), hn::DemoteTo(Half(), value)), Half16(), to);
  }
  static HWY_INLINE Pair load(const Type* from) {
    return {widen(from), widen(from + hn::Lanes(F32()))};
  }
  static HWY_INLINE void store(Pair value, Type* to) {
    narrow(value.a, to);
    narrow(value.b, to + hn::Lanes(F32()));
  }
  static HWY_INLINE Pair rounded(Pair value) {
    const F32 d;
    return {hn::PromoteTo(d, hn::DemoteTo(Half(), value.a)),
            hn::PromoteTo(d, hn::DemoteTo(Half(), value.b))};
  }
  static float to_f32(Type value) { return f32_from_f16(value); }
  static Type from_f32(float value) { return f16_from_f32(value); }
};

#else

/// 16-bit types on targets without conversion instructions: element by element.
template <float (*kToF32)(std::uint16_t), std::uint16_t (*kFromF32)(float)>
struct ElementByElement : ElementDefaults<ElementByElement<kToF32, kFromF32> > {
  using Type = std::uint16_t;
  using Bits = std::uint16_t;
  static HWY_INLINE Pair load(const Type* from) {
    float lanes[kMaxStep];
    for (std::size_t i = 0; i < 2 * hn::Lanes(F32()); ++i) lanes[i] = kToF32(from[i]);
    return load_pair(lanes);
  }
  static HWY_INLINE void store(Pair value, Type* to) {
    float lanes[kMaxStep];
    store_pair(value, lanes);
    for (std::size_t i = 0; i < 2 * hn::Lanes(F32()); ++i) to[i] = kFromF32(lanes[i]);
  }
  static HWY_INLINE Pair rounded(Pair value) {
    Type elements[kMaxStep];
    store(value, elements);
    return load(elements);
  }
  static float to_f32(Type value) { return kToF32(value); }
  static Type from_f32(float value) { return kFromF32(value); }
};
using ElementBF16 = ElementByElement<f32_from_bf16, bf16_from_f32>;
using ElementF16 = ElementByElement<f32_from_f16, f16_from_f32>;

#endif

/// Products, rounded to the element type.
template <class Element>
HWY_INLINE Pair product(const typename Element::Type* x, const typename Element::Type* gate) {
  const Pair a = Element::load(x), b = Element::load(gate);
  return Element::rounded({hn::Mul(a.a, b.a), hn::Mul(a.b, b.b)});
}

}  // namespace HWY_NAMESPACE
}  // namespace shortconv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
