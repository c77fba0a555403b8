// SIMD kernels of a backward call, compiled once per instruction set by Highway.
//
// The kernel processes one vector of channels at a time, in three passes over the tokens of a
// block: the sums, their gradients, then the gradients of inputs and taps. The operands of a pass
// fit into the 16 registers of AVX2. The second pass computes two tokens at once to hide the
// latency of the exponential and the division. Results of one pass stay in the L1 cache for the
// next.
//
// Threads: a call runs on one thread; backward.cpp divides the channels among threads.
// Bytes moved: the rows of the buffers, in the L2 cache. The ceiling is a copy of x, grad_out and
// grad_x, which is not reached: docs/performance.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward_kernels.cpp"
#include "cpu/backward_kernels.hpp"

#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // first: it includes this file once per target

#include "core/dispatch.hpp"
#include "cpu/elements-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu::HWY_NAMESPACE {

/// act(a) and its derivative.
struct Slope {
  VecF value;
  VecF slope;
  HWY_INLINE Slope() : value(hn::Zero(F32())), slope(value) {}
  HWY_INLINE Slope(VecF v, VecF s) : value(v), slope(s) {}
};

/// With s = 1 / (1 + e^-a): s * (1 + a * (1 - s)). For positive a, 1 - s is computed as e^-a * s:
/// the difference would cancel, and the product with a would enlarge its error.
template <int kVectors>
HWY_INLINE void silu_slope(const VecF (&a)[kVectors], Slope (&slopes)[kVectors]) {
  const F32 d;
  const VecF one = hn::Set(d, 1.0f);
  VecF p[kVectors], scale[kVectors];
  exp_of_minus(a, p, scale);
  for (int i = 0; i < kVectors; ++i) {
    const VecF denominator = fused(p[i], scale[i], one);
    const VecF s = hn::Div(one, denominator);
    const VecF rest = hn::IfThenElse(hn::Gt(a[i], hn::Zero(d)), hn::Mul(hn::Mul(p[i], scale[i]), s),
                                     hn::Sub(one, s));
    slopes[i] = {hn::Mul(a[i], s), hn::Mul(s, fused(a[i], rest, one))};
  }
}

template <Activation kActivation, int kVectors>
HWY_INLINE void activate(const VecF (&a)[kVectors], Slope (&slopes)[kVectors]) {
  switch (kActivation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      silu_slope(a, slopes);
      return;
  }
  for (int i = 0; i < kVectors; ++i) slopes[i] = {a[i], hn::Set(F32(), 1.0f)};
}

template <Activation kActivation>
HWY_INLINE Slope activate(VecF a) {
  const VecF one[1] = {a};
  Slope slopes[1];
  activate<kActivation>(one, slopes);
  return slopes[0];
}

/// Writes the sums of all tokens to the rows of sum_grads.
template <int kWidth>
HWY_INLINE void sum_inputs(const BackwardBlock& block, std::int64_t channel) {
  const F32 d;
  VecF taps[kWidth], inputs[kWidth];
  for (int k = 0; k < kWidth; ++k) taps[k] = hn::LoadU(d, block.taps + k * block.pitch + channel);
  const VecF bias = hn::LoadU(d, block.bias + channel);
  const float* from = block.inputs + channel;
  float* to = block.sum_grads + (kWidth - 1) * block.pitch + channel;
  for (int k = 0; k < kWidth - 1; ++k, from += block.pitch) inputs[k] = hn::LoadU(d, from);
  for (std::int64_t left = block.tokens; left > 0; --left) {
    inputs[kWidth - 1] = hn::LoadU(d, from);
    VecF a = bias;
    for (int k = 0; k < kWidth; ++k) a = fused(taps[k], inputs[k], a);
    hn::StoreU(a, d, to);
    for (int k = 0; k < kWidth - 1; ++k) inputs[k] = inputs[k + 1];
    from += block.pitch, to += block.pitch;
  }
}

/// Replaces the sums of kTokens tokens by their gradients.
template <int kTokens, Activation kActivation>
HWY_INLINE void differentiate(const BackwardBlock& block, int history, std::int64_t token,
                              std::int64_t channel) {
  const F32 d;
  const std::int64_t row = token * block.pitch + channel;
  float* grads = block.sum_grads + history * block.pitch + row;
  VecF a[kTokens];
  Slope slopes[kTokens];
  for (int i = 0; i < kTokens; ++i) a[i] = hn::LoadU(d, grads + i * block.pitch);
  activate<kActivation>(a, slopes);
  for (int i = 0; i < kTokens; ++i) {
    const std::int64_t at = row + i * block.pitch;
    if (block.values != nullptr) hn::StoreU(slopes[i].value, d, block.values + at);
    hn::StoreU(hn::Mul(hn::LoadU(d, block.grad_out + at), slopes[i].slope), d,
               grads + i * block.pitch);
  }
}

/// One vector of channels.
struct GradientRows {
  const float* inputs;     // [width - 1 + tokens]
  const float* sum_grads;  // [width - 1 + tokens]
  float* input_grads;      // [tokens]; may be `inputs`
  std::int64_t row_pitch;  // of these
  const float* taps;
  float* totals;
  std::int64_t pitch;  // of these
  std::int64_t tokens;
};

/// Computes the gradients of the inputs and adds those of the taps and of the bias to the totals.
template <int kWidth>
HWY_INLINE void add_gradients(const GradientRows& rows) {
  constexpr int kHistory = kWidth - 1;
  const F32 d;
  const std::int64_t pitch = rows.row_pitch;
  VecF taps[kWidth], grads[kWidth], totals[kWidth + 1];
  for (int k = 0; k < kWidth; ++k) taps[k] = hn::LoadU(d, rows.taps + k * rows.pitch);
  for (int k = 0; k <= kWidth; ++k) totals[k] = hn::LoadU(d, rows.totals + k * rows.pitch);
  const float* next = rows.sum_grads;
  for (int k = 0; k < kHistory; ++k, next += pitch) grads[k] = hn::LoadU(d, next);
  const float* inputs = rows.inputs;
  float* to = rows.input_grads;
  for (std::int64_t left = rows.tokens; left > 0; --left) {
    grads[kHistory] = hn::LoadU(d, next);
    VecF chain = hn::Zero(d);
    for (int k = 0; k < kWidth; ++k) {
      chain = fused(taps[k], grads[kHistory - k], chain);
      totals[k] = fused(grads[kHistory], hn::LoadU(d, inputs + k * pitch), totals[k]);
    }
    totals[kWidth] = hn::Add(totals[kWidth], grads[kHistory]);
    hn::StoreU(chain, d, to);
    for (int k = 0; k < kHistory; ++k) grads[k] = grads[k + 1];
    next += pitch, inputs += pitch, to += pitch;
  }
  for (int k = 0; k <= kWidth; ++k) hn::StoreU(totals[k], d, rows.totals + k * rows.pitch);
}

template <int kWidth, Activation kActivation>
void backward_block(const BackwardBlock& block) {
  constexpr int kTokens = 2;  // 3 and 4 are as fast with AVX2
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32()));
  for (std::int64_t channel = 0; channel < block.channels; channel += lanes) {
    sum_inputs<kWidth>(block, channel);
    std::int64_t token = 0;
    for (; token + kTokens <= block.tokens; token += kTokens) {
      differentiate<kTokens, kActivation>(block, kWidth - 1, token, channel);
    }
    for (; token < block.tokens; ++token) {
      differentiate<1, kActivation>(block, kWidth - 1, token, channel);
    }
    add_gradients<kWidth>({.inputs = block.inputs + channel,
                           .sum_grads = block.sum_grads + channel,
                           .input_grads = block.input_grads + channel,
                           .row_pitch = block.pitch,
                           .taps = block.taps + channel,
                           .totals = block.totals + channel,
                           .pitch = block.pitch,
                           .tokens = block.tokens});
  }
}

/// The rows of a step in the L1 cache, in which a strip has the three passes of backward_block.
template <int kWidth>
struct StripRows {
  static constexpr std::int64_t kRows = kWidth - 1 + kStripTokens;
  HWY_ALIGN float inputs[kRows * kMaxStep];
  HWY_ALIGN float sum_grads[kRows * kMaxStep];
};

/// First pass: x -> inputs and sums.
template <class Element, int kWidth>
HWY_INLINE void sum_strip(const BackwardStrip& strip, std::int64_t channel,
                          StripRows<kWidth>& rows) {
  using Type = typename Element::Type;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const Type* x = static_cast<const Type*>(strip.x) + channel - (kWidth - 1) * strip.x_stride;
  Pair taps[kWidth], window[kWidth];
  for (int k = 0; k < kWidth; ++k) taps[k] = load_pair(strip.taps + k * strip.pitch + channel);
  const Pair bias = load_pair(strip.bias + channel);
  float* inputs = rows.inputs;
  const auto load = [&](int k) HWY_ATTR {
    window[k] = Element::load(x);
    store_pair(window[k], inputs);
    x += strip.x_stride, inputs += step;
  };
  for (int k = 0; k < kWidth - 1; ++k) load(k);
  float* sums = rows.sum_grads + (kWidth - 1) * step;
  for (std::int64_t token = 0; token < strip.tokens; ++token, sums += step) {
    hwy::Prefetch(x + kStripTokens * strip.x_stride);  // the same channels of the next strip
    load(kWidth - 1);
    Pair sum = bias;
    for (int k = 0; k < kWidth; ++k) {
      sum.a = fused(taps[k].a, window[k].a, sum.a);
      sum.b = fused(taps[k].b, window[k].b, sum.b);
    }
    store_pair(sum, sums);
    for (int k = 0; k < kWidth - 1; ++k) window[k] = window[k + 1];
  }
}

/// Second pass: sums -> their gradients.
template <class Element, int kWidth, Activation kActivation>
HWY_INLINE void differentiate_strip(const BackwardStrip& strip, std::int64_t channel,
                                    StripRows<kWidth>& rows) {
  using Type = typename Element::Type;
  const auto step = static_cast<std::int64_t>(2 * hn::Lanes(F32()));
  const Type* grad_out = static_cast<const Type*>(strip.grad_out) + channel;
  float* grads = rows.sum_grads + (kWidth - 1) * step;
  for (std::int64_t token = 0; token < strip.tokens; ++token, grads += step) {
    const Pair sum = load_pair(grads), grad = Element::load(grad_out);
    hwy::Prefetch(grad_out + kStripTokens * strip.grad_out_stride);
    const VecF a[2] = {sum.a, sum.b};
    Slope slopes[2];
    activate<kActivation>(a, slopes);
    store_pair({hn::Mul(grad.a, slopes[0].slope), hn::Mul(grad.b, slopes[1].slope)}, grads);
    grad_out += strip.grad_out_stride;
  }
}

/// Tokens of a width, for one step of channels after the other.
template <class Element, int kWidth, Activation kActivation>
void backward_strip(const BackwardStrip& shared) {
  using Type = typename Element::Type;
  constexpr std::int64_t kHistory = kWidth - 1;
  const BackwardStrip strip = shared;  // no store can change it
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32())), step = 2 * lanes;
  StripRows<kWidth> rows;
  for (std::int64_t channel = 0; channel < strip.channels; channel += step) {
    sum_strip<Element>(strip, channel, rows);
    differentiate_strip<Element, kWidth, kActivation>(strip, channel, rows);
    float* const history = strip.sum_grads + channel;
    for (std::int64_t k = 0; k < kHistory; ++k) {
      store_pair(load_pair(history + k * strip.pitch), rows.sum_grads + k * step);
    }
    for (std::int64_t half = 0; half < step; half += lanes) {
      add_gradients<kWidth>({.inputs = rows.inputs + half,
                             .sum_grads = rows.sum_grads + half,
                             .input_grads = rows.inputs + half,
                             .row_pitch = step,
                             .taps = strip.taps + channel + half,
                             .totals = strip.totals + channel + half,
                             .pitch = strip.pitch,
                             .tokens = strip.tokens});
    }
    const float* last = rows.sum_grads + strip.tokens * step;
    for (std::int64_t k = 0; k < kHistory; ++k, last += step) {
      store_pair(load_pair(last), history + k * strip.pitch);
    }
    if (strip.grad_x == nullptr) continue;
    Type* grad_x = static_cast<Type*>(strip.grad_x) + channel;
    for (std::int64_t token = 0; token < strip.tokens; ++token, grad_x += strip.grad_x_stride) {
      Element::store(load_pair(rows.inputs + token * step), grad_x);
    }
  }
}

/// Any width and dilation: windows are loaded from the buffers.
template <Activation kActivation>
void backward_block_any_width(const BackwardBlock& block) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t pitch = block.pitch, history = (block.width - 1) * block.dilation;
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t channel = 0; channel < block.channels; channel += lanes) {
      const float* inputs = block.inputs + token * pitch + channel;
      float* grads = block.sum_grads + (token + history) * pitch + channel;
      VecF a = hn::LoadU(d, block.bias + channel);
      for (std::int64_t k = 0; k < block.width; ++k) {
        a = fused(hn::LoadU(d, block.taps + k * pitch + channel),
                  hn::LoadU(d, inputs + k * block.dilation * pitch), a);
      }
      const Slope activated = activate<kActivation>(a);
      const std::int64_t row = token * pitch + channel;
      if (block.values != nullptr) hn::StoreU(activated.value, d, block.values + row);
      const VecF grad = hn::Mul(hn::LoadU(d, block.grad_out + row), activated.slope);
      hn::StoreU(grad, d, grads);
      VecF chain = hn::Zero(d);
      for (std::int64_t k = 0; k < block.width; ++k) {
        chain = fused(hn::LoadU(d, block.taps + k * pitch + channel),
                      hn::LoadU(d, grads - k * block.dilation * pitch), chain);
        float* total = block.totals + k * pitch + channel;
        hn::StoreU(
            fused(grad, hn::LoadU(d, inputs + k * block.dilation * pitch), hn::LoadU(d, total)), d,
            total);
      }
      float* total = block.totals + block.width * pitch + channel;
      hn::StoreU(hn::Add(hn::LoadU(d, total), grad), d, total);
      hn::StoreU(chain, d, block.input_grads + row);
    }
  }
}

void backward_row(const BackwardRow& row) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t channel = 0; channel < row.channels; channel += lanes) {
    VecF chain = row.init == nullptr ? hn::Zero(d) : hn::LoadU(d, row.init + channel);
    for (std::int64_t i = 0; i < row.count; ++i) {
      chain = fused(hn::LoadU(d, row.taps + i * row.pitch + channel),
                    hn::LoadU(d, row.grads - i * row.dilation * row.pitch + channel), chain);
    }
    hn::StoreU(chain, d, row.to + channel);
  }
}

void add_totals(float* totals, double* sums, std::int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t i = 0; i < count; i += lanes) {
    const auto total = hn::PromoteTo(d, hn::LoadU(half, totals + i));
    hn::StoreU(hn::Add(hn::LoadU(d, sums + i), total), d, sums + i);
    hn::StoreU(hn::Zero(half), half, totals + i);
  }
}

/// Width 0: any width and dilation.
template <int kWidth, Activation kActivation>
const BackwardKernels* backward_table() {
  static const BackwardKernels kernels{
      .block =
          [] {
            if constexpr (kWidth == 0) {
              return &backward_block_any_width<kActivation>;
            } else {
              return &backward_block<kWidth, kActivation>;
            }
          }(),
      .row = &backward_row,
      .add_totals = &add_totals,
      .step = static_cast<int>(hn::Lanes(F32())),
      .target = hwy::TargetName(HWY_TARGET),
  };
  return &kernels;
}

template <int kWidth>
const BackwardKernels* backward_table(Activation activation) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      return backward_table<kWidth, Activation::kSilu>();
  }
  return backward_table<kWidth, Activation::kNone>();
}

const BackwardKernels* choose_backward(int width, int dilation, Activation activation) {
  const BackwardKernels* kernels = backward_table<0>(activation);
  if (dilation != 1) return kernels;
  (void)dispatch(kWidths, width,
                 [&](auto constant) { kernels = backward_table<constant.value>(activation); });
  return kernels;
}

template <int kWidth, Activation kActivation>
BackwardStripFn strip_of(DType dtype) {
  if (dtype == DType::kF32) return &backward_strip<ElementF32, kWidth, kActivation>;
  if (dtype == DType::kBF16) return &backward_strip<ElementBF16, kWidth, kActivation>;
  return &backward_strip<ElementF16, kWidth, kActivation>;
}

template <int kWidth>
BackwardStripFn strip_of(DType dtype, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      return strip_of<kWidth, Activation::kSilu>(dtype);
  }
  return strip_of<kWidth, Activation::kNone>(dtype);
}

BackwardStripFn choose_backward_strip(DType dtype, int width, Activation activation) {
  BackwardStripFn strip = nullptr;
  (void)dispatch(kModelWidths, width,
                 [&](auto constant) { strip = strip_of<constant.value>(dtype, activation); });
  return strip;
}

}  // namespace shortconv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shortconv::cpu {
HWY_EXPORT(choose_backward);
HWY_EXPORT(choose_backward_strip);

const BackwardKernels* select_backward(int width, int dilation, Activation activation) {
  return HWY_DYNAMIC_DISPATCH(choose_backward)(width, dilation, activation);
}

BackwardStripFn select_backward_strip(DType dtype, int width, Activation activation) {
  return HWY_DYNAMIC_DISPATCH(choose_backward_strip)(dtype, width, activation);
}
}  // namespace shortconv::cpu
#endif
