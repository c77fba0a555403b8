// A block of the emulated device. Each thread has a stack of its own and runs until it asks its
// warp something, waits for its block, or ends; then it is the next one's turn.
//
// Stricter than the hardware on purpose: all threads of a warp that have not ended have to ask the
// same question in the same line, with a mask that names all of them and, besides, at most some
// that have ended; and all threads of a block that have not ended have to wait for it in the same
// line. Nothing else is a defect for sure, but nothing else is wanted here.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <source_location>
#include <string>
#include <string_view>

namespace shortconv::emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

inline constexpr int kWarp = 32;

/// Whether a thread of the block has waited for the kernel before, or none had to.
inline bool waited = true;

/// Runs `body` once for each of so many threads, a multiple of 32 up to 1024, in an order that
/// `random` chooses. Says what the block did
/// wrong; then the threads are given up wherever they are.
[[nodiscard]] std::optional<std::string> run_block(int threads, std::mt19937& random,
                                                   const std::function<void()>& body);

// What follows is for the threads of a block.

/// Says what the block did wrong, and does not return: callers may hold nothing that has to be
/// freed.
[[noreturn]] void fail(std::string_view what);

enum class Question : std::uint8_t { kBallot, kOr, kShuffle, kSync };
struct Answers {
  std::array<std::uint32_t, kWarp> values{};  // 0 of lanes that had ended
  std::uint32_t lanes = 0;                    // the others
};

/// What all lanes of the warp said; until the next question.
const Answers& ask(Question question, std::uint32_t mask, std::uint32_t value,
                   const std::source_location& place);

void wait_for_block(const std::source_location& place);

}  // namespace shortconv::emulated
