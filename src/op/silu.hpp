// SiLU in fp32 from additions, multiplications, fused multiply-adds and one division, all IEEE:
// every CPU target gives the same bits. a / (1 + exp(-a)) with exp(t) = 2^n * p(t - n*ln2).
// Relative error below 5e-7 for |a| <= 80 (tests/silu_test.cpp); for a below -88.4 the exponential
// overflows to infinity and the result is -0, as IEEE has it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace shortconv {

struct SiluConstants {
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.62e43p-1f;
  static constexpr float kLn2Low = -0x1.05c61p-29f;
  // Adding 1.5 * 2^23 leaves round(t * log2e) in the low bits of the sum.
  static constexpr float kRound = 0x1.8p+23f;
  // Outside of these exp(t) is 0 or infinity for our purpose, and 2^n still fits the exponent
  // field.
  static constexpr float kLowest = -87.0f;
  static constexpr float kHighest = 88.8f;
  // e^f = 1 + f + f^2 (c2 + f (c3 + f (c4 + f c5))) for |f| <= ln2/2: minimax, relative
  // error 1.05e-7.
  static constexpr float kC2 = 0x1.fffdfcp-2f;
  static constexpr float kC3 = 0x1.5557bp-3f;
  static constexpr float kC4 = 0x1.572a64p-5f;
  static constexpr float kC5 = 0x1.10625p-7f;
};

/// The scalar form; src/cpu/kernels-inl.hpp repeats it operation by operation on vectors.
inline float silu(float a) {
  using C = SiluConstants;
  float t = -a;
  t = t > C::kLowest ? t : C::kLowest;
  t = t < C::kHighest ? t : C::kHighest;
  const float rounded = std::fma(t, C::kLog2e, C::kRound);
  const float n = rounded - C::kRound;
  float f = std::fma(n, -C::kLn2High, t);
  f = std::fma(n, -C::kLn2Low, f);
  float p = std::fma(f, C::kC5, C::kC4);
  p = std::fma(f, p, C::kC3);
  p = std::fma(f, p, C::kC2);
  p = std::fma(f, p, 1.0f);
  p = std::fma(f, p, 1.0f);
  const auto scale = std::bit_cast<float>((std::bit_cast<std::uint32_t>(rounded) + 127u) << 23);
  return a / std::fma(p, scale, 1.0f);
}

}  // namespace shortconv
