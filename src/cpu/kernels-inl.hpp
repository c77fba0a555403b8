// SIMD kernels: the convolution of a block of tokens x channels. foreach_target of Highway compiles
// this file once per instruction set.
//
// Token-major: a strip of 8 tokens is processed step by step over the channels. A step is two
// vectors of adjacent channels; its taps and the window of the last `width` inputs stay in
// registers, so a strip loads each of its inputs once, and the width - 1 tokens before it (from
// cache). A second pass activates the sums. Channels-first: a vector holds consecutive tokens of
// one channel, and the earlier inputs are loads from shifted addresses.
//
// Threads: a call runs on one thread; worker.hpp divides the tokens and channels among threads.
// Bytes moved: x once, out once; taps and halo come from cache. The ceiling is a copy of x to out.
//
// Every product is added with a fused multiply-add, bias first, then the oldest tap. The result
// depends neither on the instruction set nor on the division of a sequence into blocks.

#if defined(SHORTCONV_CPU_KERNELS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SHORTCONV_CPU_KERNELS_INL
#undef SHORTCONV_CPU_KERNELS_INL
#else
#define SHORTCONV_CPU_KERNELS_INL
#endif

#include <hwy/cache_control.h>

#include <algorithm>

#include "core/dispatch.hpp"
#include "cpu/elements-inl.hpp"
#include "cpu/kernels.hpp"
#include "cpu/runs-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu {
namespace HWY_NAMESPACE {

inline constexpr std::int64_t kStripTokens = 8;

/// Inputs: x, or x * gate; a null gate is absent. kGated: false if it is absent in all of a call.
template <class Element, bool kGated = true>
HWY_INLINE Pair input_at(const typename Element::Type* x, const typename Element::Type* gate) {
  return !kGated || gate == nullptr ? Element::load(x) : product<Element>(x, gate);
}

template <Activation kActivation>
HWY_INLINE Pair activate(Pair sum) {
  switch (kActivation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      return silu(sum);
  }
  return sum;
}

/// finish of op/epilogue.hpp; `operand` points to the operands of these elements.
template <class Element>
HWY_INLINE Pair finish(Epilogue epilogue, Pair value, const typename Element::Type* operand) {
  if (epilogue == Epilogue::kNone) return value;
  const Pair other = Element::load(operand);
  switch (epilogue) {
    case Epilogue::kNone:
    case Epilogue::kOutputGate:
      break;
    case Epilogue::kResidual:
      return {hn::Add(value.a, other.a), hn::Add(value.b, other.b)};
  }
  return {hn::Mul(value.a, other.a), hn::Mul(value.b, other.b)};
}

/// Copies a step, bits unchanged.
template <typename Type>
HWY_INLINE void copy_step(const Type* from, Type* to) {
  const hn::ScalableTag<Type> d;
  const std::size_t step = 2 * hn::Lanes(F32());
  for (std::size_t i = 0; i < step; i += hn::Lanes(d))
    hn::StoreU(hn::LoadU(d, from + i), d, to + i);
}

/// The rows of Block::state and of the inputs that they receive.
template <typename Type, int kWidth>
struct FinalState {
  const Type* inputs[kWidth - 1];
  Type* columns[kWidth - 1];
};

template <typename Type, int kWidth>
HWY_INLINE FinalState<Type, kWidth> final_state(const Block& block) {
  FinalState<Type, kWidth> state;
  for (int k = 0; k < kWidth - 1; ++k) {
    const std::int64_t token = block.tokens - (kWidth - 1) + k;
    state.inputs[k] = token < 0 ? static_cast<const Type*>(block.history[kWidth - 1 + token])
                                : static_cast<const Type*>(block.x) + token * block.x_token_stride;
    state.columns[k] = static_cast<Type*>(block.state[k]);
  }
  return state;
}

template <typename Type, int kWidth>
HWY_INLINE void write_step(const FinalState<Type, kWidth>& state, std::int64_t channel) {
  for (int k = 0; k < kWidth - 1; ++k) {  // ascending: see Block::state
    copy_step(state.inputs[k] + channel, state.columns[k] + channel);
  }
}

/// Up to kStripTokens tokens of a block, from `first` on.
template <typename Type, int kWidth>
struct Strip {
  std::int64_t first, tokens;
  const Type* before[kWidth - 1];  // rows of the window of the first token, oldest first
  bool after_history;              // true if these are inputs, to which no gate applies
};

template <typename Type, int kWidth>
HWY_INLINE Strip<Type, kWidth> strip_at(const Block& block, std::int64_t first) {
  Strip<Type, kWidth> strip;
  strip.first = first;
  strip.tokens = std::min(kStripTokens, block.tokens - first);
  strip.after_history = first == 0 && block.history != nullptr;
  const auto* x = static_cast<const Type*>(block.x) + first * block.x_token_stride;
  for (int k = 0; k < kWidth - 1; ++k) {
    strip.before[k] = strip.after_history ? static_cast<const Type*>(block.history[k])
                                          : x + (k + 1 - kWidth) * block.x_token_stride;
  }
  return strip;
}

/// Writes the sums of the step at `channel`. kGated: x may have a gate.
template <class Element, int kWidth, bool kGated>
HWY_INLINE void sum_step(const Block& block, const Strip<typename Element::Type, kWidth>& strip,
                         std::int64_t channel, float* sums) {
  using Type = typename Element::Type;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const std::int64_t x_token = block.x_token_stride, gate_token = block.input_gate.token_stride;
  const Type* x = static_cast<const Type*>(block.x) + strip.first * x_token + channel;
  const Type* gate = nullptr;
  if (kGated && block.input_gate.data != nullptr) {
    gate = static_cast<const Type*>(block.input_gate.data) + strip.first * gate_token + channel;
  }
  const Pair bias = load_pair(block.bias + channel);
  Pair taps[kWidth];
  Pair window[kWidth];
  for (int k = 0; k < kWidth; ++k) {
    taps[k] = load_pair(block.taps + k * block.tap_pitch + channel);
  }
  for (int k = 0; k + 1 < kWidth; ++k) {
    const bool gated = kGated && gate != nullptr && !strip.after_history;
    window[k] = input_at<Element, kGated>(strip.before[k] + channel,
                                          gated ? gate + (k + 1 - kWidth) * gate_token : nullptr);
  }
  for (std::int64_t token = 0; token < strip.tokens; ++token) {
    window[kWidth - 1] =
        input_at<Element, kGated>(x, gate == nullptr ? nullptr : gate + token * gate_token);
    hwy::Prefetch(x + kStripTokens * x_token);  // the same channels of the next strip
    Pair sum = bias;
    for (int k = 0; k < kWidth; ++k) {
      sum.a = fused(taps[k].a, window[k].a, sum.a);
      sum.b = fused(taps[k].b, window[k].b, sum.b);
    }
    store_pair(sum, sums + token * step);
    for (int k = 0; k + 1 < kWidth; ++k) window[k] = window[k + 1];
    x += x_token;
  }
}

/// Sum -> result, for a step of a token.
template <class Element, Activation kActivation, bool kPlain>
HWY_INLINE void finish_sum(const Block& block, Pair sum, std::int64_t token, std::int64_t channel) {
  using Type = typename Element::Type;
  Pair result = activate<kActivation>(sum);
  if constexpr (!kPlain) {
    const Rows operands = operand_of(block);
    const auto* row = static_cast<const Type*>(operands.data) + token * operands.token_stride;
    result = finish<Element>(block.epilogue, result, row + channel);
  }
  Type* out = static_cast<Type*>(block.out) + token * block.out_token_stride + channel;
  if (block.stream) {
    Element::stream(result, out);
  } else {
    Element::store(result, out);
  }
}

/// No gate and no epilogue: kPlain below. Run-time tests per vector cost plain calls up to 13%.
inline bool is_plain(const Block& block) {
  return block.epilogue == Epilogue::kNone && block.input_gate.data == nullptr;
}

template <class Element, int kWidth, Activation kActivation, bool kPlain>
void convolve_strips(const Block& shared) {
  using Type = typename Element::Type;
  const Block block = shared;  // no store of a result can change it
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  HWY_ALIGN float sums[kStripTokens * kMaxStep];
  for (std::int64_t first = 0; first < block.tokens; first += kStripTokens) {
    const auto strip = strip_at<Type, kWidth>(block, first);
    const bool writes_state = block.state != nullptr && first + strip.tokens == block.tokens;
    FinalState<Type, kWidth> state;
    if (writes_state) state = final_state<Type, kWidth>(block);
    for (std::int64_t channel = 0; channel < block.channels; channel += step) {
      sum_step<Element, kWidth, !kPlain>(block, strip, channel, sums);
      if (writes_state) write_step(state, channel);
      // A separate loop for the activation: its constants stay in registers that taps and window
      // no longer occupy, and the tokens are independent. 3% of an 8192 x 8192 call.
      for (std::int64_t token = 0; token < strip.tokens; ++token) {
        finish_sum<Element, kActivation, kPlain>(block, load_pair(sums + token * step),
                                                 first + token, channel);
      }
    }
  }
}

/// One token after a history, without gate and epilogue: a decode. Its sums stay in registers: 40
/// cycles a step instead of 50, from the L1 cache. kWeight: taps are loaded from Block::weight.
template <class Element, int kWidth, Activation kActivation, bool kWeight>
void convolve_token(const Block& shared) {
  using Type = typename Element::Type;
  const Block block = shared;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const auto strip = strip_at<Type, kWidth>(block, 0);
  const auto* x = static_cast<const Type*>(block.x);
  FinalState<Type, kWidth> state;
  if (block.state != nullptr) state = final_state<Type, kWidth>(block);
  for (std::int64_t channel = 0; channel < block.channels; channel += step) {
    Pair sum = load_pair(block.bias + channel);
    Pair taps[kWidth];
    if constexpr (kWeight) {
      load_taps<Element>(static_cast<const Type*>(block.weight) + channel * kWidth, taps);
    } else {
      for (int k = 0; k < kWidth; ++k) {
        taps[k] = load_pair(block.taps + k * block.tap_pitch + channel);
      }
    }
    for (int k = 0; k < kWidth; ++k) {
      const Pair input = Element::load((k < kWidth - 1 ? strip.before[k] : x) + channel);
      sum.a = fused(taps[k].a, input.a, sum.a);
      sum.b = fused(taps[k].b, input.b, sum.b);
    }
    if (block.state != nullptr) write_step(state, channel);
    finish_sum<Element, kActivation, true>(block, sum, 0, channel);
  }
}

template <class Element, int kWidth, Activation kActivation>
void convolve_token_major(const Block& block) {
  if (is_plain(block) && block.tokens == 1) {
    if constexpr (kHasArrangeWeight<kWidth>) {
      if (block.weight != nullptr) return convolve_token<Element, kWidth, kActivation, true>(block);
    }
    convolve_token<Element, kWidth, kActivation, false>(block);
  } else if (is_plain(block)) {
    convolve_strips<Element, kWidth, kActivation, true>(block);
  } else {
    convolve_strips<Element, kWidth, kActivation, false>(block);
  }
}

/// The general path: any width and dilation. Each token loads its window from cache.
template <class Element, Activation kActivation>
void convolve_token_major_any_width(const Block& block) {
  using Type = typename Element::Type;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const std::int64_t history = std::int64_t{block.width - 1} * block.dilation;
  const Rows operands = operand_of(block);
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    const auto* x = static_cast<const Type*>(block.x);
    const auto* operand = static_cast<const Type*>(operands.data) + token * operands.token_stride;
    const auto* gates = static_cast<const Type*>(block.input_gate.data);
    auto* out = static_cast<Type*>(block.out) + token * block.out_token_stride;
    for (std::int64_t channel = 0; channel < block.channels; channel += step) {
      Pair sum = load_pair(block.bias + channel);
      for (int k = 0; k < block.width; ++k) {
        const Pair tap = load_pair(block.taps + k * block.tap_pitch + channel);
        const std::int64_t from = token + std::int64_t{k + 1 - block.width} * block.dilation;
        const bool in_history = from < 0 && block.history != nullptr;
        const Type* row = in_history ? static_cast<const Type*>(block.history[history + from])
                                     : x + from * block.x_token_stride;
        const Type* gate = gates == nullptr || in_history
                               ? nullptr
                               : gates + from * block.input_gate.token_stride + channel;
        const Pair value = input_at<Element>(row + channel, gate);
        sum.a = fused(tap.a, value.a, sum.a);
        sum.b = fused(tap.b, value.b, sum.b);
      }
      const Pair activated = activate<kActivation>(sum);
      Element::store(finish<Element>(block.epilogue, activated, operand + channel), out + channel);
    }
  }
}

/// Width 0: any width and dilation. kPlain: no gate and no epilogue.
template <class Element, int kWidth, Activation kActivation, bool kPlain>
void convolve_runs(const Block& shared) {
  using Type = typename Element::Type;
  const Block block = shared;  // no store of a result can change it
  const F32 d;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(d));
  const int width = kWidth > 0 ? kWidth : block.width;
  const int dilation = kWidth > 0 ? 1 : block.dilation;
  const Rows operands = operand_of(block);
  for (std::int64_t channel = 0; channel < block.channels; ++channel) {
    const auto* x = static_cast<const Type*>(block.x) + channel * block.x_channel_stride;
    auto* out = static_cast<Type*>(block.out) + channel * block.out_channel_stride;
    const Type* gates = nullptr;
    if (!kPlain && block.input_gate.data != nullptr) {
      gates = static_cast<const Type*>(block.input_gate.data) +
              channel * block.input_gate.channel_stride;
    }
    const VecF bias = hn::Set(d, block.bias[channel]);
    for (std::int64_t next = 0; next < block.tokens; next += step) {
      // The last step may repeat tokens of the previous one: the same inputs give the same bits.
      const std::int64_t token = std::min(next, block.tokens - step);
      // The same tokens of the next channel, which is on another page: 34 ms instead of 43 (8192 x
      // 8192 bf16, one thread).
      hwy::Prefetch(x + block.x_channel_stride + token);
      Pair sum{bias, bias};
      for (int k = 0; k < width; ++k) {
        const VecF tap = hn::Set(d, block.taps[k * block.tap_pitch + channel]);
        const std::int64_t at = token + std::int64_t{k + 1 - width} * dilation;
        const Pair value =
            input_at<Element, !kPlain>(x + at, gates == nullptr ? nullptr : gates + at);
        sum.a = fused(tap, value.a, sum.a);
        sum.b = fused(tap, value.b, sum.b);
      }
      Pair result = activate<kActivation>(sum);
      if constexpr (!kPlain) {
        const auto* operand =
            static_cast<const Type*>(operands.data) + channel * operands.channel_stride;
        result = finish<Element>(block.epilogue, result, operand + token);
      }
      Element::store(result, out + token);
    }
  }
}

template <class Element, int kWidth, Activation kActivation>
void convolve_channels_first(const Block& block) {
  if (is_plain(block)) {
    convolve_runs<Element, kWidth, kActivation, true>(block);
  } else {
    convolve_runs<Element, kWidth, kActivation, false>(block);
  }
}

template <class Element, int kWidth, Activation kActivation>
constexpr ConvolveFn token_major_kernel() {
  if constexpr (kWidth == 0) {
    return &convolve_token_major_any_width<Element, kActivation>;
  } else {
    return &convolve_token_major<Element, kWidth, kActivation>;
  }
}

template <class Element, int kWidth>
constexpr ArrangeWeightFn arrange_weight_kernel() {
  if constexpr (kHasArrangeWeight<kWidth>) {
    return &arrange_weight<Element, kWidth>;
  } else {
    return nullptr;
  }
}

/// One table per kernel; plans refer to its address.
template <class Element, int kWidth, Activation kActivation>
const Kernels* table() {
  static const Kernels kernels{
      .token_major = token_major_kernel<Element, kWidth, kActivation>(),
      .channels_first = &convolve_channels_first<Element, kWidth, kActivation>,
      .multiply = &multiply_run<Element>,
      .load = &load_run<Element>,
      .store = &store_run<Element>,
      .arrange = &arrange_run<Element>,
      .restore = &restore_run<Element>,
      .arrange_weight = arrange_weight_kernel<Element, kWidth>(),
      .split = &split_rows<typename Element::Bits>,
      .join = &join_rows<typename Element::Bits>,
      .step = static_cast<int>(2 * hn::Lanes(F32())),
      .target = hwy::TargetName(HWY_TARGET),
  };
  return &kernels;
}

template <class Element, int kWidth>
const Kernels* table(Activation activation) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      return table<Element, kWidth, Activation::kSilu>();
  }
  return table<Element, kWidth, Activation::kNone>();
}

template <class Element>
const Kernels* select(int width, Activation activation) {
  const Kernels* kernels = nullptr;
  const bool specialized = dispatch(
      kWidths, width, [&](auto constant) { kernels = table<Element, constant.value>(activation); });
  return specialized ? kernels : table<Element, 0>(activation);
}

}  // namespace HWY_NAMESPACE
}  // namespace shortconv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
