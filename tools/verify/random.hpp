// Random numbers that are the same on every machine: <random> fixes its engines, not its
// distributions.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

namespace shortconv::tools::verify {

/// SplitMix64's finaliser: a bijection that makes neighbouring arguments unrelated.
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// About N(0, 1): the sum of four uniform 16-bit numbers. Never beyond 3.5.
[[nodiscard]] constexpr double normal_from(std::uint64_t bits) {
  constexpr double kMean = 4 * 32767.5;
  constexpr double kDeviation = 37837.2;  // 65536 * sqrt(4 / 12)
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<double>((bits >> (16 * i)) & 0xffffu);
  return (sum - kMean) / kDeviation;
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : seed_(mix(seed)) {}

  std::uint64_t bits() { return mix(seed_ + ++drawn_); }

  /// Both ends included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<std::int64_t>(bits() % range);
  }

  bool chance(double probability) {
    return static_cast<double>(bits() >> 11) * 0x1p-53 < probability;
  }

  template <typename T>
  T pick(std::span<const T> list) {
    return list[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(list.size()) - 1))];
  }
  template <typename T>
  T pick(std::initializer_list<T> list) {
    return pick(std::span<const T>(list.begin(), list.size()));
  }

 private:
  std::uint64_t seed_;
  std::uint64_t drawn_ = 0;
};

}  // namespace shortconv::tools::verify
