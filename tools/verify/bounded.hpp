// Numbers in fp64 that know how far from them one in fp32 may be: a running error analysis.
#pragma once

#include <cmath>
#include <cstdint>

namespace shortconv::tools::verify {

inline constexpr double kUnitRoundoff = 0x1p-24;  // of fp32
inline constexpr double kSubnormalStep = 0x1p-150;

/// A number, and how far from it one in fp32 may be.
struct Bounded {
  double value = 0, error = 0;
};

/// After one rounding.
inline Bounded rounded(double value, double error) {
  return {value, error + kUnitRoundoff * (std::fabs(value) + error) + kSubnormalStep};
}
inline Bounded operator*(const Bounded& a, const Bounded& b) {
  return rounded(a.value * b.value,
                 std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error);
}
inline Bounded operator+(const Bounded& a, const Bounded& b) {
  return rounded(a.value + b.value, a.error + b.error);
}
inline Bounded operator-(const Bounded& a) { return {-a.value, a.error}; }

/// A chain or a sum of products, all of whose roundings are counted at its end.
struct Products {
  double value = 0, magnitude = 0, error = 0;
  std::int64_t terms = 0;

  void add(const Bounded& a, const Bounded& b) {
    value += a.value * b.value;
    error += std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error;
    magnitude += (std::fabs(a.value) + a.error) * (std::fabs(b.value) + b.error);
    ++terms;
  }
  [[nodiscard]] Bounded after(std::int64_t roundings) const {
    const auto count = static_cast<double>(roundings);
    return {value, error + count * (kUnitRoundoff * magnitude + kSubnormalStep)};
  }
};

}  // namespace shortconv::tools::verify
