// From run-time values to compile-time constants, in the one place where that happens.
#pragma once

#include <type_traits>

#include "core/capability.hpp"

namespace shortconv {

/// Calls `use` with the std::integral_constant of the list that equals `value`; false if there is
/// none.
template <auto... kList, typename T, typename F>
[[nodiscard]] constexpr bool dispatch(Values<kList...>, T value, F&& use) {
  return ((value == kList && (use(std::integral_constant<decltype(kList), kList>{}), true)) || ...);
}

/// Whether the list has it.
template <auto... kList, typename T>
[[nodiscard]] constexpr bool is_listed(Values<kList...>, T value) {
  return ((value == kList) || ...);
}

}  // namespace shortconv
