// Small functions of counts and sizes, for the host code of plans.
#pragma once

#include <cstdint>

namespace shortconv::cuda {

[[nodiscard]] constexpr std::int64_t divide_up(std::int64_t count, std::int64_t by) {
  return count / by + (count % by != 0 ? 1 : 0);
}

/// For numbers that a plan has found to fit.
[[nodiscard]] constexpr std::int32_t narrow(std::int64_t number) {
  return static_cast<std::int32_t>(number);
}

}  // namespace shortconv::cuda
