// Random numbers that are equal on every machine. The C++ standard specifies the engines of
// <random>, but not the results of its distributions and of std::shuffle.
//
// The cases of shortconv verify are drawn from a seed. Changing how a number is drawn here changes
// the case of every seed.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>
#include <utility>

namespace shortconv::tools {

/// A step of SplitMix64: a bijection with unrelated results for neighbouring arguments.
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// Approximately N(0, 1): the sum of four uniform 16-bit numbers. Its magnitude is below 3.5.
[[nodiscard]] constexpr double normal_from(std::uint64_t bits) {
  constexpr double kMean = 4 * 32767.5;
  constexpr double kDeviation = 37837.2;  // 65536 * sqrt(4 / 12)
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<double>((bits >> (16 * i)) & 0xffffu);
  return (sum - kMean) / kDeviation;
}

/// A generator that draws all of its values from a seed; with a list, the first of them from its
/// bytes, one each, so that a fuzzer can change a single draw.
class Random {
 public:
  constexpr explicit Random(std::uint64_t seed, std::span<const std::uint8_t> first = {})
      : seed_(mix(seed)), first_(first) {}

  /// 64 random bits.
  constexpr std::uint64_t next() {
    if (drawn_ < first_.size()) return std::uint64_t{0x0101010101010101} * first_[drawn_++];
    return mix(seed_ + ++drawn_);
  }

  /// An integer from low to high, both included. The whole range of 64 bits is not supported.
  constexpr std::int64_t between(std::int64_t low, std::int64_t high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<std::int64_t>(next() % range);
  }

  /// From 0, which is included, to 1, which is not.
  constexpr double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  /// Approximately N(0, 1); see normal_from.
  constexpr double normal() { return normal_from(next()); }

  constexpr bool chance(double probability) { return uniform() < probability; }
  /// An integer would be a percentage. Probabilities are from 0.0 to 1.0.
  bool chance(std::integral auto percent) = delete;

  /// An element of a list that is not empty.
  template <typename List>
  constexpr auto pick(const List& list) {
    return std::data(list)[index_below(std::size(list))];
  }
  template <typename T>
  constexpr T pick(std::initializer_list<T> list) {
    return list.begin()[index_below(list.size())];
  }

  /// Reorders a contiguous range. All orders have the same probability.
  template <typename List>
  constexpr void shuffle(List&& list) {
    using std::swap;
    for (std::size_t i = std::size(list); i > 1; --i) {
      swap(std::data(list)[i - 1], std::data(list)[index_below(i)]);
    }
  }

 private:
  constexpr std::size_t index_below(std::size_t count) {
    return static_cast<std::size_t>(between(0, static_cast<std::int64_t>(count) - 1));
  }

  std::uint64_t seed_;
  std::span<const std::uint8_t> first_;
  std::uint64_t drawn_ = 0;
};

}  // namespace shortconv::tools
