// Launches of the general kernels: instances, blocks and shared memory.
#pragma once

#include <cstdint>

#include "cuda/kernel_table.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::cuda {

/// The width of the instance of a general kernel for a call; 0: the one for any window.
[[nodiscard]] int general_width(const Problem& problem);

// In place: channels of a block, and threads that process a sequence of average length in steps of
// equally many strips.
[[nodiscard]] int in_place_channels(const Problem& problem);
[[nodiscard]] std::int32_t in_place_threads(const Problem& problem);

/// Dynamic shared memory of a block of a general kernel.
[[nodiscard]] std::int32_t general_shared_bytes(const Problem& problem, Kernel kernel,
                                                std::int32_t threads);
/// The most that Kernel::kGeneral needs for any problem.
[[nodiscard]] std::int32_t max_general_shared_bytes(std::int32_t threads);

}  // namespace shortconv::cuda
