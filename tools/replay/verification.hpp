#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "replay/engine.hpp"

namespace shortconv::tools {

struct Verification {
  std::int64_t asked = 0;     ///< requests that should be checked
  std::int64_t requests = 0;  ///< that were: fewer where memory is short
  std::int64_t runs = 0;
  std::int64_t rows = 0;
  std::int64_t values = 0;
  std::int64_t correctly_rounded = 0;  ///< values that are the fp64 result rounded once
  std::int64_t differing_values = 0;   ///< not the bits of one pass over the whole request
  std::int64_t differing_states = 0;   ///< final states that are not the last inputs
  std::int64_t inaccurate_values = 0;  ///< outside the bound of fp32 accumulation around fp64
  std::string first_failure{};         ///< in words, empty without

  [[nodiscard]] std::int64_t failures() const {
    return differing_values + differing_states + inaccurate_values;
  }
  [[nodiscard]] double correctly_rounded_share() const {
    return values == 0 ? 0.0 : static_cast<double>(correctly_rounded) / static_cast<double>(values);
  }
};

/// Throws CommandError with kExitFailed and the first failure when there is one.
void require_success(const Verification& verification);

/// Up to `count` requests in ascending order: the longest, the shortest, and others drawn by the
/// seed, as many as `memory_bytes` hold at `bytes_per_token`. The first two do not ask for room.
[[nodiscard]] std::vector<std::int64_t> choose_requests(std::span<const Request> requests,
                                                        std::int64_t count, std::uint64_t seed,
                                                        std::int64_t bytes_per_token,
                                                        std::int64_t memory_bytes);

/// Compares what a run recorded with one pass of the same backend over each whole request, without
/// a state pool, drafts or cached prefixes: bit for bit; and with the fp64 reference: within the
/// bound. Adds to `verification`; `on_rows(n)` is told how many rows of these recordings are done.
void verify_recordings(const ReplaySetup& setup, std::span<const Recording> recordings,
                       const std::function<void(std::int64_t)>& on_rows,
                       Verification& verification);

}  // namespace shortconv::tools
