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

/// Computes the gradients of the inputs and adds those of the taps and of the bias to the totals.
template <int kWidth>
HWY_INLINE void add_gradients(const BackwardBlock& block, std::int64_t channel) {
  constexpr int kHistory = kWidth - 1;
  const F32 d;
  const std::int64_t pitch = block.pitch;
  VecF taps[kWidth], grads[kWidth], totals[kWidth + 1];
  for (int k = 0; k < kWidth; ++k) taps[k] = hn::LoadU(d, block.taps + k * pitch + channel);
  for (int k = 0; k <= kWidth; ++k) totals[k] = hn::LoadU(d, block.totals + k * pitch + channel);
  const float* next = block.sum_grads + channel;
  for (int k = 0; k < kHistory; ++k, next += pitch) grads[k] = hn::LoadU(d, next);
  const float* inputs = block.inputs + channel;
  float* to = block.input_grads + channel;
  for (std::int64_t left = block.tokens; left > 0; --left) {
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
  for (int k = 0; k <= kWidth; ++k) hn::StoreU(totals[k], d, block.totals + k * pitch + channel);
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
    add_gradients<kWidth>(block, channel);
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

}  // namespace shortconv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shortconv::cpu {
HWY_EXPORT(choose_backward);

const BackwardKernels* select_backward(int width, int dilation, Activation activation) {
  return HWY_DYNAMIC_DISPATCH(choose_backward)(width, dilation, activation);
}
}  // namespace shortconv::cpu
#endif
