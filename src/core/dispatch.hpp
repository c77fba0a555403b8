// Conversion of run-time values to compile-time constants.
#pragma once

#include <type_traits>

#include "core/capability.hpp"

namespace shortconv {

/// Calls `use` with `value` as a std::integral_constant; false if the list does not contain it.
template <auto... kList, typename T, typename F>
[[nodiscard]] constexpr bool dispatch(Values<kList...>, T value, F&& use) {
  return ((value == kList && (use(std::integral_constant<decltype(kList), kList>{}), true)) || ...);
}

/// True if the list contains the value.
template <auto... kList, typename T>
[[nodiscard]] constexpr bool is_listed(Values<kList...>, T value) {
  return ((value == kList) || ...);
}

}  // namespace shortconv
