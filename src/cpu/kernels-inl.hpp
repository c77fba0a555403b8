// The convolution on vectors, compiled once per instruction set by Highway's foreach_target.
//
// Rows: a strip of 8 tokens is walked channel step by channel step. A step is two vectors of
// adjacent channels; their taps and the window of the last `width` inputs stay in registers, so
// each input is loaded once per strip plus the width-1 tokens before it (from cache). Columns:
// tokens are adjacent, a vector holds consecutive tokens of one channel and the earlier inputs are
// the same memory read at shifted addresses.
//
// Bytes moved: x once, out once; taps and the halo come from cache. The ceiling is a copy of x to
// out.
//
// Every product is added by a fused multiply-add, bias first and oldest tap next, so the result
// depends neither on the instruction set nor on where a sequence was cut.

#if defined(SHORTCONV_CPU_KERNELS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SHORTCONV_CPU_KERNELS_INL
#undef SHORTCONV_CPU_KERNELS_INL
#else
#define SHORTCONV_CPU_KERNELS_INL
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

// Whether the instruction set has fused multiply-add and fp16 conversion. Per target, so it cannot
// be a constant.
#undef SHORTCONV_NATIVE_FMA_F16
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR || (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2)
#define SHORTCONV_NATIVE_FMA_F16 0
#else
#define SHORTCONV_NATIVE_FMA_F16 1
#endif

#include <algorithm>
#include <cmath>

#include "core/dispatch.hpp"
#include "core/element.hpp"
#include "cpu/kernels.hpp"
#include "op/silu.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::ScalableTag<std::uint32_t>;
using U16 = hn::ScalableTag<std::uint16_t>;
using Half16 = hn::Rebind<std::uint16_t, F32>;  // as many lanes as F32, 16 bits each
using VecF = hn::Vec<F32>;
using VecU = hn::Vec<U32>;

inline constexpr std::int64_t kStripTokens = 8;
inline constexpr std::int64_t kMaxStep = 2 * HWY_MAX_BYTES / sizeof(float);

/// Two vectors of one step. Which element sits in which lane is the element type's own choice.
struct Pair {
  VecF a;
  VecF b;
};

HWY_INLINE VecF fused(VecF x, VecF y, VecF z) {
#if SHORTCONV_NATIVE_FMA_F16
  return hn::MulAdd(x, y, z);
#else  // no fused instruction: exact, if slow, one lane at a time
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

/// silu of op/silu.hpp on two vectors side by side, operation by operation.
HWY_INLINE Pair silu(Pair sum) {
  using C = SiluConstants;
  const F32 d;
  const U32 du;
  const VecF values[2] = {sum.a, sum.b};
  VecF scale[2], g[2], p[2];
  for (int i = 0; i < 2; ++i) g[i] = hn::Max(values[i], hn::Set(d, C::kLowest));
  for (int i = 0; i < 2; ++i) g[i] = hn::Min(g[i], hn::Set(d, C::kHighest));
  for (int i = 0; i < 2; ++i) {
    scale[i] = fused(g[i], hn::Set(d, C::kMinusLog2e), hn::Set(d, C::kRound));
  }
  for (int i = 0; i < 2; ++i) p[i] = hn::Sub(scale[i], hn::Set(d, C::kRound));
  for (int i = 0; i < 2; ++i) g[i] = fused(p[i], hn::Set(d, C::kLn2), g[i]);
  for (int i = 0; i < 2; ++i) {
    scale[i] = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, scale[i])));
  }
  for (int i = 0; i < 2; ++i) p[i] = fused(g[i], hn::Set(d, C::kC5), hn::Set(d, C::kC4));
  for (int i = 0; i < 2; ++i) p[i] = fused(g[i], p[i], hn::Set(d, C::kC3));
  for (int i = 0; i < 2; ++i) p[i] = fused(g[i], p[i], hn::Set(d, C::kC2));
  for (int i = 0; i < 2; ++i) p[i] = fused(g[i], p[i], hn::Set(d, -1.0f));
  for (int i = 0; i < 2; ++i) p[i] = fused(g[i], p[i], hn::Set(d, 1.0f));
  for (int i = 0; i < 2; ++i) p[i] = fused(p[i], scale[i], hn::Set(d, 1.0f));
  return {hn::Div(values[0], p[0]), hn::Div(values[1], p[1])};
}

/// An element type: how a step of it becomes two fp32 vectors and back. `load_as` reads fp32 into
/// the same lanes.
struct ElementF32 {
  using Type = float;
  using Bits = std::uint32_t;
  static HWY_INLINE Pair load(const Type* from) {
    const F32 d;
    return {hn::LoadU(d, from), hn::LoadU(d, from + hn::Lanes(d))};
  }
  static HWY_INLINE Pair load_as(const float* from) { return load(from); }
  static HWY_INLINE void store_as(Pair value, float* to) { store(value, to); }
  static HWY_INLINE void store(Pair value, Type* to) {
    const F32 d;
    hn::StoreU(value.a, d, to);
    hn::StoreU(value.b, d, to + hn::Lanes(d));
  }
  static HWY_INLINE void stream(Pair value, Type* to) {
    const F32 d;
    hn::Stream(value.a, d, to);
    hn::Stream(value.b, d, to + hn::Lanes(d));
  }
  static HWY_INLINE void store_any(Pair value, Type* to) { store(value, to); }
  static HWY_INLINE Pair rounded(Pair value) { return value; }
  static float to_f32(Type value) { return value; }
  static Type from_f32(float value) { return value; }
};

#if SHORTCONV_NATIVE_FMA_F16

/// Even elements in one vector, odd ones in the other: a bf16 is the upper half of an fp32, so a
/// shift and a mask convert without moving anything across lanes.
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
  // The upper 16 bits of the result are the bf16, to nearest even. A NaN stays one unless it has
  // the upper 17 bits of its payload set: convolve_rows cannot meet such a one, see Block::taps.
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
  /// For values of any origin.
  static HWY_INLINE VecF canonical(VecF value) {
    // hn::NaN has all payload bits set in some versions of Highway.
    const VecF quiet = hn::BitCast(F32(), hn::Set(U32(), 0x7fc00000u));
    return hn::IfThenElse(hn::IsNaN(value), quiet, value);
  }
  static HWY_INLINE void store_any(Pair value, Type* to) {
    store({canonical(value.a), canonical(value.b)}, to);
  }
  static float to_f32(Type value) { return f32_from_bf16(value); }
  static Type from_f32(float value) { return bf16_from_f32(value); }
};

struct ElementF16 {
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
  static HWY_INLINE Pair load_as(const float* from) { return ElementF32::load(from); }
  static HWY_INLINE void store_as(Pair value, float* to) { ElementF32::store(value, to); }
  static HWY_INLINE void store(Pair value, Type* to) {
    narrow(value.a, to);
    narrow(value.b, to + hn::Lanes(F32()));
  }
  static HWY_INLINE void stream(Pair value, Type* to) { store(value, to); }
  static HWY_INLINE void store_any(Pair value, Type* to) { store(value, to); }
  static HWY_INLINE Pair rounded(Pair value) {
    const F32 d;
    return {hn::PromoteTo(d, hn::DemoteTo(Half(), value.a)),
            hn::PromoteTo(d, hn::DemoteTo(Half(), value.b))};
  }
  static float to_f32(Type value) { return f32_from_f16(value); }
  static Type from_f32(float value) { return f16_from_f32(value); }
};

#else

/// Any 16-bit type where there are no instructions for it: element by element.
template <float (*kToF32)(std::uint16_t), std::uint16_t (*kFromF32)(float)>
struct ElementByElement {
  using Type = std::uint16_t;
  using Bits = std::uint16_t;
  static HWY_INLINE Pair load(const Type* from) {
    float lanes[kMaxStep];
    for (std::size_t i = 0; i < 2 * hn::Lanes(F32()); ++i) lanes[i] = kToF32(from[i]);
    return ElementF32::load(lanes);
  }
  static HWY_INLINE Pair load_as(const float* from) { return ElementF32::load(from); }
  static HWY_INLINE void store_as(Pair value, float* to) { ElementF32::store(value, to); }
  static HWY_INLINE void store(Pair value, Type* to) {
    float lanes[kMaxStep];
    ElementF32::store(value, lanes);
    for (std::size_t i = 0; i < 2 * hn::Lanes(F32()); ++i) to[i] = kFromF32(lanes[i]);
  }
  static HWY_INLINE void stream(Pair value, Type* to) { store(value, to); }
  static HWY_INLINE void store_any(Pair value, Type* to) { store(value, to); }
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

template <class Element>
HWY_INLINE Pair product(const typename Element::Type* x, const typename Element::Type* gate) {
  const Pair a = Element::load(x), b = Element::load(gate);
  return Element::rounded({hn::Mul(a.a, b.a), hn::Mul(a.b, b.b)});
}

/// Inputs: x, or its products with a gate, which may be absent.
template <class Element>
HWY_INLINE Pair input_at(const typename Element::Type* x, const typename Element::Type* gate) {
  return gate == nullptr ? Element::load(x) : product<Element>(x, gate);
}

template <Activation kActivation>
HWY_INLINE Pair activate(Pair sum) {
  return kActivation == Activation::kSilu ? silu(sum) : sum;
}

/// finish of op/epilogue.hpp; `operand` is where that of these elements lies.
template <class Element>
HWY_INLINE Pair finish(Epilogue epilogue, Pair value, const typename Element::Type* operand) {
  if (epilogue == Epilogue::kNone) return value;
  const Pair other = Element::load(operand);
  if (epilogue == Epilogue::kResidual) {
    return {hn::Add(value.a, other.a), hn::Add(value.b, other.b)};
  }
  return {hn::Mul(value.a, other.a), hn::Mul(value.b, other.b)};
}

/// kPlain: no gate and no epilogue. To ask for each vector cost plain calls up to 7%.
template <class Element, int kWidth, Activation kActivation, bool kPlain>
void convolve_strips(const Block& block) {
  using Type = typename Element::Type;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const std::int64_t x_token = block.x_token, out_token = block.out_token;
  const bool stream = block.stream;
  const Epilogue epilogue = kPlain ? Epilogue::kNone : block.epilogue;
  const Rows operands = operand_of(block);
  const auto* gates = kPlain ? nullptr : static_cast<const Type*>(block.input_gate.first);
  const std::int64_t gate_token = block.input_gate.token;
  HWY_ALIGN float sums[kStripTokens * kMaxStep];
  for (std::int64_t first = 0; first < block.tokens; first += kStripTokens) {
    const std::int64_t tokens = std::min(kStripTokens, block.tokens - first);
    const auto* x = static_cast<const Type*>(block.x) + first * x_token;
    auto* out = static_cast<Type*>(block.out) + first * out_token;
    for (std::int64_t channel = 0; channel < block.channels; channel += step) {
      const Type* input = x + channel;
      const Type* gate = gates == nullptr ? nullptr : gates + first * gate_token + channel;
      const Pair bias = ElementF32::load(block.bias + channel);
      Pair taps[kWidth];
      Pair window[kWidth];
      for (int k = 0; k < kWidth; ++k) {
        taps[k] = ElementF32::load(block.taps + k * block.tap_pitch + channel);
      }
      for (int k = 0; k + 1 < kWidth; ++k) {
        window[k] = input_at<Element>(input + (k + 1 - kWidth) * x_token,
                                      gate + (k + 1 - kWidth) * gate_token);
      }
      for (std::int64_t token = 0; token < tokens; ++token) {
        window[kWidth - 1] = input_at<Element>(input, gate);
        hwy::Prefetch(input + kStripTokens * x_token);  // the same channels of the next strip
        Pair sum = bias;
        for (int k = 0; k < kWidth; ++k) {
          sum.a = fused(taps[k].a, window[k].a, sum.a);
          sum.b = fused(taps[k].b, window[k].b, sum.b);
        }
        ElementF32::store(sum, sums + token * step);
        for (int k = 0; k + 1 < kWidth; ++k) window[k] = window[k + 1];
        input += x_token;
        gate += gate_token;
      }
      // The activation in a loop of its own: with taps and window out of the way its constants stay
      // in registers, and the tokens are independent of each other. 3% of an 8192 x 8192 call.
      Type* output = out + channel;
      const Type* operand =
          static_cast<const Type*>(operands.first) + first * operands.token + channel;
      for (std::int64_t token = 0; token < tokens; ++token) {
        const Pair activated = activate<kActivation>(ElementF32::load(sums + token * step));
        const Pair result = finish<Element>(epilogue, activated, operand);
        if (stream) {
          Element::stream(result, output);
        } else {
          Element::store(result, output);
        }
        output += out_token;
        operand += operands.token;
      }
    }
  }
}

template <class Element, int kWidth, Activation kActivation>
void convolve_rows(const Block& block) {
  const bool plain = block.epilogue == Epilogue::kNone && block.input_gate.first == nullptr;
  if (plain) {
    convolve_strips<Element, kWidth, kActivation, true>(block);
  } else {
    convolve_strips<Element, kWidth, kActivation, false>(block);
  }
}

/// The general path: any width and dilation, the window read again from cache for each token.
template <class Element, Activation kActivation>
void convolve_rows_any_width(const Block& block) {
  using Type = typename Element::Type;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const Rows operands = operand_of(block);
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    const auto* x = static_cast<const Type*>(block.x);
    const auto* operand = static_cast<const Type*>(operands.first) + token * operands.token;
    const auto* gates = static_cast<const Type*>(block.input_gate.first);
    auto* out = static_cast<Type*>(block.out) + token * block.out_token;
    for (std::int64_t channel = 0; channel < block.channels; channel += step) {
      Pair sum = ElementF32::load(block.bias + channel);
      for (int k = 0; k < block.width; ++k) {
        const Pair tap = ElementF32::load(block.taps + k * block.tap_pitch + channel);
        const std::int64_t from = token + std::int64_t{k + 1 - block.width} * block.dilation;
        const Type* gate =
            gates == nullptr ? nullptr : gates + from * block.input_gate.token + channel;
        const Pair value = input_at<Element>(x + from * block.x_token + channel, gate);
        sum.a = fused(tap.a, value.a, sum.a);
        sum.b = fused(tap.b, value.b, sum.b);
      }
      const Pair activated = activate<kActivation>(sum);
      Element::store(finish<Element>(block.epilogue, activated, operand + channel), out + channel);
    }
  }
}

/// Width 0 is the general path here too.
template <class Element, int kWidth, Activation kActivation>
void convolve_columns(const Block& block) {
  using Type = typename Element::Type;
  const F32 d;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(d));
  const int width = kWidth > 0 ? kWidth : block.width;
  const int dilation = kWidth > 0 ? 1 : block.dilation;
  const Rows operands = operand_of(block);
  for (std::int64_t channel = 0; channel < block.channels; ++channel) {
    const auto* x = static_cast<const Type*>(block.x) + channel * block.x_channel;
    auto* out = static_cast<Type*>(block.out) + channel * block.out_channel;
    const auto* operand = static_cast<const Type*>(operands.first) + channel * operands.channel;
    const auto* gates = static_cast<const Type*>(block.input_gate.first);
    if (gates != nullptr) gates += channel * block.input_gate.channel;
    const VecF bias = hn::Set(d, block.bias[channel]);
    for (std::int64_t next = 0; next < block.tokens; next += step) {
      // The last step may repeat some tokens of the one before: the same inputs give the same bits.
      const std::int64_t token = std::min(next, block.tokens - step);
      Pair sum{bias, bias};
      for (int k = 0; k < width; ++k) {
        const VecF tap = hn::Set(d, block.taps[k * block.tap_pitch + channel]);
        const std::int64_t at = token + std::int64_t{k + 1 - width} * dilation;
        const Pair value = input_at<Element>(x + at, gates == nullptr ? nullptr : gates + at);
        sum.a = fused(tap, value.a, sum.a);
        sum.b = fused(tap, value.b, sum.b);
      }
      const Pair activated = activate<kActivation>(sum);
      Element::store(finish<Element>(block.epilogue, activated, operand + token), out + token);
    }
  }
}

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
  for (; i + step <= count; i += step) Element::store_any(Element::load_as(from + i), target + i);
  for (; i < count; ++i) target[i] = Element::from_f32(from[i]);
}

/// fp32 in the order of its channels -> in the order of Element's lanes; `count` is whole steps.
template <class Element>
void arrange_run(const float* from, float* to, std::int64_t count) {
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  for (std::int64_t i = 0; i < count; i += step) {
    ElementF32::store(Element::load_as(from + i), to + i);
  }
}

/// [count, rows] -> [rows, count], elements as they are. Up to four rows move as vectors.
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

/// The reverse, from rows anywhere.
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

template <class Element, int kWidth, Activation kActivation>
constexpr ConvolveFn rows_kernel() {
  if constexpr (kWidth == 0) {
    return &convolve_rows_any_width<Element, kActivation>;
  } else {
    return &convolve_rows<Element, kWidth, kActivation>;
  }
}

/// One table per kernel, made once: planning hands out its address.
template <class Element, int kWidth, Activation kActivation>
const Kernels* table() {
  static const Kernels kernels{
      .rows = rows_kernel<Element, kWidth, kActivation>(),
      .columns = &convolve_columns<Element, kWidth, kActivation>,
      .multiply = &multiply_run<Element>,
      .load = &load_run<Element>,
      .store = &store_run<Element>,
      .arrange = &arrange_run<Element>,
      .split = &split_rows<typename Element::Bits>,
      .join = &join_rows<typename Element::Bits>,
      .step = static_cast<int>(2 * hn::Lanes(F32())),
      .target = hwy::TargetName(HWY_TARGET),
  };
  return &kernels;
}

template <class Element, int kWidth>
const Kernels* table(Activation activation) {
  return activation == Activation::kSilu ? table<Element, kWidth, Activation::kSilu>()
                                         : table<Element, kWidth, Activation::kNone>();
}

template <class Element>
const Kernels* select(int width, Activation activation) {
  const Kernels* kernels = nullptr;
  const bool specialised = dispatch(
      kWidths, width, [&](auto constant) { kernels = table<Element, constant.value>(activation); });
  return specialised ? kernels : table<Element, 0>(activation);
}

}  // namespace HWY_NAMESPACE
}  // namespace shortconv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
