// SiLU in fp32: a / (1 + exp(-a)) with exp(-a) = 2^n * p(g), g = a + n*ln2. Additions,
// multiplications, fused multiply-adds and one division, all IEEE, so every CPU target gives the
// same bits. The relative error is below 7e-7 for |a| <= 80 (tests/unit/silu_test.cpp). For a below
// -88.4 the exponential overflows to infinity and the result is -0.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace shortconv {

struct SiluConstants {
  // Beyond these limits exp(-a) counts as infinity or 0; at them 2^n still fits the exponent field.
  static constexpr float kLowest = -88.8f;
  static constexpr float kHighest = 87.0f;
  static constexpr float kMinusLog2e = -0x1.715476p+0f;
  // Adding 1.5 * 2^23 leaves an integer in the low bits of a sum; 127 more makes it the exponent
  // field of 2^n.
  static constexpr float kRound = 0x1.8p+23f + 127.0f;
  // One term is enough: the remainder of ln2 changes exp by at most 115 * 1.9e-9.
  static constexpr float kLn2 = 0x1.62e43p-1f;
  // e^-g = 1 - g + g^2 (c2 + g (c3 + g (c4 + g c5))) for |g| <= ln2/2: minimax, relative error
  // 1.05e-7.
  static constexpr float kC2 = 0x1.fffdfcp-2f;
  static constexpr float kC3 = -0x1.5557bp-3f;
  static constexpr float kC4 = 0x1.572a64p-5f;
  static constexpr float kC5 = -0x1.10625p-7f;
};

/// The scalar form; src/cpu/elements-inl.hpp has the vector form with the same operations.
inline float silu(float a) {
  using C = SiluConstants;
  float inside = a > C::kLowest ? a : C::kLowest;
  inside = inside < C::kHighest ? inside : C::kHighest;
  const float rounded = std::fma(inside, C::kMinusLog2e, C::kRound);
  const float n = rounded - C::kRound;
  const float g = std::fma(n, C::kLn2, inside);
  float p = std::fma(g, C::kC5, C::kC4);
  p = std::fma(g, p, C::kC3);
  p = std::fma(g, p, C::kC2);
  p = std::fma(g, p, -1.0f);
  p = std::fma(g, p, 1.0f);
  const auto scale = std::bit_cast<float>(std::bit_cast<std::uint32_t>(rounded) << 23);
  return a / std::fma(p, scale, 1.0f);
}

}  // namespace shortconv
