// Launches of the general kernels: instances, blocks and shared memory.
#pragma once

#include <cstdint>

#include "cuda/host/policy.hpp"
#include "cuda/kernel_table.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::cuda {

/// The width of the instance of a general kernel for a call; 0: the one for any window.
[[nodiscard]] int general_width(const Problem& problem);

// Decode and verify have instances for the sizes of x's and the state's elements.
/// As general_width; 0 too for types that has_sized_types (memory_layout.hpp) excludes.
[[nodiscard]] int sized_width(const Problem& problem);

/// Prefill, schedule flat: packed rows of a thread.
[[nodiscard]] std::uint32_t general_rows(const Problem& problem, const DeviceProperties& device,
                                         const TuningPolicy& policy);

/// Decode: channels of a block, and sequences that it processes so that the blocks are about a
/// wave. Above width 34 shared memory has room for fewer blocks, and they are more than one.
[[nodiscard]] std::int64_t general_decode_block_channels(const Problem& problem);
[[nodiscard]] std::uint32_t general_decode_sequences(const Problem& problem,
                                                     const DeviceProperties& device);

// The kernel for whole sequences.
/// Whether a call that is not in place runs it, because its blocks share the rows of wide windows.
[[nodiscard]] bool fits_whole_sequences(const Problem& problem, const DeviceProperties& device);

/// Channels of a block, and threads that process a sequence of average length in steps of
// equally many strips.
[[nodiscard]] int whole_sequences_channels(const Problem& problem);
[[nodiscard]] std::int32_t whole_sequences_threads(const Problem& problem);

/// Verify: tokens of a sequence whose inputs are in shared memory together.
[[nodiscard]] int staged_tokens(const Problem& problem);

/// Dynamic shared memory of a block of a general kernel.
[[nodiscard]] std::int32_t general_shared_bytes(const Problem& problem, Kernel kernel,
                                                std::int32_t threads);
// The most for any problem.
[[nodiscard]] std::int32_t max_general_shared_bytes(std::int32_t threads);
[[nodiscard]] std::int32_t max_general_decode_shared_bytes();
[[nodiscard]] std::int32_t max_general_verify_shared_bytes();

}  // namespace shortconv::cuda
