#pragma once

#include <cstdint>
#include <initializer_list>

namespace shortconv::tools {

/// SplitMix64's finaliser: a bijection that makes neighbouring arguments unrelated.
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// One number from several coordinates, whose order matters.
[[nodiscard]] constexpr std::uint64_t hash_of(std::uint64_t seed,
                                              std::initializer_list<std::int64_t> coordinates) {
  std::uint64_t hash = mix(seed);
  for (const std::int64_t coordinate : coordinates) {
    hash = mix(hash ^ static_cast<std::uint64_t>(coordinate));
  }
  return hash;
}

}  // namespace shortconv::tools
