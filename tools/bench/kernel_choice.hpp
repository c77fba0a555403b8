// Which kernel of the CUDA backend a call runs, found without a GPU.
#pragma once

#include <string>

#include "bench/call_layout.hpp"
#include "bench/shapes.hpp"

namespace shortconv::tools::bench {

inline constexpr int kMultiprocessorsOfH200 = 132;

/// The arguments of a call on a GPU whose tensors are not there: for checks and plans only.
[[nodiscard]] ForwardArgs imagined_arguments(const Shape& shape, const CallOptions& options);

/// Kernel and variant of a forward, decode or verify call with schedule flat.
[[nodiscard]] std::string chosen_kernel(const Shape& shape, const CallOptions& options,
                                        int multiprocessors);

}  // namespace shortconv::tools::bench
