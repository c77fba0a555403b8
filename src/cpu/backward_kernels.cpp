// SIMD kernels of a backward call, compiled once per instruction set by Highway.
//
// A vector of channels walks over the tokens of a block. Its taps, the window of inputs, the window
// of sum gradients and the totals of the taps stay in registers, so each row of the buffers is
// loaded or stored once. The buffers of a block of 256 channels fit into the L2 cache.
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
  HWY_INLINE Slope(VecF v, VecF s) : value(v), slope(s) {}
};

/// With s = 1 / (1 + e^-a): s * (1 + a * (1 - s)). For positive a, 1 - s is computed as e^-a * s:
/// the difference would cancel, and the product with a would enlarge its error.
HWY_INLINE Slope silu_slope(VecF a) {
  const F32 d;
  const VecF one = hn::Set(d, 1.0f);
  const VecF values[1] = {a};
  VecF p[1], scale[1];
  exp_of_minus(values, p, scale);
  const VecF denominator = fused(p[0], scale[0], one);
  const VecF s = hn::Div(one, denominator);
  const VecF rest =
      hn::IfThenElse(hn::Gt(a, hn::Zero(d)), hn::Mul(hn::Mul(p[0], scale[0]), s), hn::Sub(one, s));
  return {hn::Mul(a, s), hn::Mul(s, fused(a, rest, one))};
}

template <Activation kActivation>
HWY_INLINE Slope activate(VecF a) {
  switch (kActivation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      return silu_slope(a);
  }
  return {a, hn::Set(F32(), 1.0f)};
}

template <int kWidth, Activation kActivation>
void backward_block(const BackwardBlock& block) {
  constexpr int kHistory = kWidth - 1;
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t pitch = block.pitch;
  for (std::int64_t channel = 0; channel < block.channels; channel += lanes) {
    VecF taps[kWidth], inputs[kWidth], grads[kWidth], totals[kWidth + 1];
    for (int k = 0; k < kWidth; ++k) {
      taps[k] = hn::LoadU(d, block.taps + k * pitch + channel);
      totals[k] = hn::LoadU(d, block.totals + k * pitch + channel);
    }
    totals[kWidth] = hn::LoadU(d, block.totals + kWidth * pitch + channel);
    for (int k = 0; k < kHistory; ++k) {
      inputs[k] = hn::LoadU(d, block.inputs + k * pitch + channel);
      grads[k] = hn::LoadU(d, block.sum_grads + k * pitch + channel);
    }
    const VecF bias = hn::LoadU(d, block.bias + channel);
    for (std::int64_t token = 0; token < block.tokens; ++token) {
      const std::int64_t row = token * pitch + channel;
      inputs[kHistory] = hn::LoadU(d, block.inputs + kHistory * pitch + row);
      VecF a = bias;
      for (int k = 0; k < kWidth; ++k) a = fused(taps[k], inputs[k], a);
      const Slope activated = activate<kActivation>(a);
      if (block.values != nullptr) hn::StoreU(activated.value, d, block.values + row);
      grads[kHistory] = hn::Mul(hn::LoadU(d, block.grad_out + row), activated.slope);
      hn::StoreU(grads[kHistory], d, block.sum_grads + kHistory * pitch + row);
      VecF chain = hn::Zero(d);
      for (int k = 0; k < kWidth; ++k) {
        chain = fused(taps[k], grads[kHistory - k], chain);
        totals[k] = fused(grads[kHistory], inputs[k], totals[k]);
      }
      totals[kWidth] = hn::Add(totals[kWidth], grads[kHistory]);
      hn::StoreU(chain, d, block.input_grads + row);
      for (int k = 0; k < kHistory; ++k) {
        inputs[k] = inputs[k + 1];
        grads[k] = grads[k + 1];
      }
    }
    for (int k = 0; k <= kWidth; ++k) {
      hn::StoreU(totals[k], d, block.totals + k * pitch + channel);
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
