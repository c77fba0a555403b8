#pragma once

#include <cstdint>

#include "core/device.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

/// Inputs before a token that its result may depend on: what a state holds, in so many columns.
SHORTCONV_HOST_DEVICE constexpr std::int32_t history_of(const Problem& p) {
  return (p.width - 1) * p.dilation;
}

}  // namespace shortconv
