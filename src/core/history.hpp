#pragma once

#include <cstdint>

#include "core/device.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

/// Number of inputs before a token that its output depends on; a state has at least as many
/// columns.
SHORTCONV_HOST_DEVICE constexpr std::int32_t history_of(const Problem& p) {
  return (p.width - 1) * p.dilation;
}
SHORTCONV_HOST_DEVICE constexpr std::int32_t history_of(const BackwardProblem& p) {
  return (p.width - 1) * p.dilation;
}

}  // namespace shortconv
