// Functions of one gate, in fp64.
#pragma once

#include <cmath>

namespace shortconv::reference {

[[nodiscard]] inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

[[nodiscard]] inline double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }
[[nodiscard]] inline double softplus_slope(double x) { return x > 20 ? 1 : sigmoid(x); }

}  // namespace shortconv::reference
