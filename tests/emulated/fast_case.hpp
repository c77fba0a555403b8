// Random cases for kernels that do not take everything.
#pragma once

#include "verify/case.hpp"

namespace shortconv::tools::verify {

/// A case as engines have it: x, out and state of one type, weights of it or fp32, no gate or
/// dilation, a width with kernels of its own, channels by fours, and mostly everything aligned and
/// without gaps. One in twenty of make_case is of that kind.
[[nodiscard]] Case make_fast_case(std::uint64_t seed, DType dtype);

}  // namespace shortconv::tools::verify
