#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/random.hpp"

namespace shortconv::tools {

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
