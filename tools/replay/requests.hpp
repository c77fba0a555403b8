#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "replay/scheduler.hpp"

namespace shortconv::tools {

struct Workload {
  std::string source;  ///< where the lengths come from and by which rule, in words fit to print
  std::vector<Request> requests;

  [[nodiscard]] std::int64_t prompt_tokens() const;
  [[nodiscard]] std::int64_t output_tokens() const;
};

/// The rule that stands in for a tokenizer: one token for every four UTF-8 bytes, rounded up, at
/// least one.
[[nodiscard]] std::int64_t estimated_tokens(std::string_view text);

/// Lengths of the questions and answers of GSM8K's test set, in its order, by estimated_tokens.
struct TextLengths {
  std::uint16_t prompt;
  std::uint16_t output;
};
[[nodiscard]] std::span<const TextLengths> gsm8k_lengths();

inline constexpr std::string_view kTokenRule = "one token per 4 UTF-8 bytes";

/// CSV with the columns ContextTokens and GeneratedTokens, or JSON objects with prompt_tokens and
/// output_tokens or with question and answer, one after the other or in arrays. Throws CommandError
/// with file and line.
[[nodiscard]] Workload load_requests(const std::string& path);

/// Requests that come with the tool: "gsm8k".
[[nodiscard]] Workload preset_requests(std::string_view preset);

struct WorkloadLimits {
  std::int64_t requests = -1;  ///< keep the first so many; negative: all
  std::int64_t output = -1;    ///< generated tokens of a request at most; negative: as given
};
void apply_limits(const WorkloadLimits& limits, Workload& workload);

/// Gives each request but the first, with that probability, the beginning of an earlier one's
/// prompt: any of them, for any number of tokens that both prompts have.
void share_prompts(double probability, std::uint64_t seed, Workload& workload);

}  // namespace shortconv::tools
