// A block of the emulated device. Each thread has a separate stack and runs until it executes a
// warp operation, waits for its block, or ends. Then the next thread runs.
//
// Stricter than the hardware on purpose. All threads of a warp that have not ended must execute the
// same warp operation in the same line, with a mask of all of them, which may also contain threads
// that have ended. All threads of a block that have not ended must wait for it in the same line.
// Other programs are not necessarily wrong, but the kernels do not need them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <source_location>
#include <string>
#include <string_view>

#include "common/random.hpp"

namespace shortconv::emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

inline constexpr int kWarp = 32;
inline constexpr int kSharedBytes = 227 * 1024;  // of a block, as on a GPU

/// Whether a thread of the block has executed the PDL wait, or the launch is without PDL.
inline bool pdl_waited = true;
inline bool pdl_overlaps = false;

/// Runs `body` once for each of `threads` threads, a multiple of 32 up to 1024, in a random order.
/// Returns a description of the first error; the threads are then abandoned.
[[nodiscard]] std::optional<std::string> run_block(int threads, tools::Random& random,
                                                   const std::function<void()>& body);

// For the threads of a block.

/// Reports an error of the block. Does not return and calls no destructors.
[[noreturn]] void fail(std::string_view what);

enum class WarpOperation : std::uint8_t { kBallot, kOr, kShuffle, kSync };
struct LaneValues {
  std::array<std::uint32_t, kWarp> values{};  // 0 for lanes that have ended
  std::uint32_t lanes = 0;                    // mask of the others
};

/// Exchanges a value with all lanes of the warp. The result is valid until the next operation.
const LaneValues& exchange(WarpOperation operation, std::uint32_t mask, std::uint32_t value,
                           const std::source_location& place);

void wait_for_block(const std::source_location& place);

}  // namespace shortconv::emulated
