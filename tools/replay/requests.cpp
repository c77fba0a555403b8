#include "replay/requests.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "common/error.hpp"
#include "common/random.hpp"
#include "common/text.hpp"

namespace shortconv::tools {

std::int64_t Workload::prompt_tokens() const {
  std::int64_t sum = 0;
  for (const Request& request : requests) sum += request.prompt_tokens;
  return sum;
}

std::int64_t Workload::output_tokens() const {
  std::int64_t sum = 0;
  for (const Request& request : requests) sum += request.output_tokens;
  return sum;
}

std::int64_t estimated_tokens(std::string_view text) {
  return std::max<std::int64_t>(1, (std::ssize(text) + 3) / 4);
}

Workload preset_requests(std::string_view preset) {
  if (preset != "gsm8k") {
    throw CommandError(kExitUsage,
                       fmt::format("--preset: {} is not one of gsm8k", in_quotes(preset)));
  }
  Workload workload;
  workload.source = fmt::format("gsm8k (test set of openai/grade-school-math, {})", kTokenRule);
  for (const TextLengths& lengths : gsm8k_lengths()) {
    workload.requests.push_back({.prompt_tokens = lengths.prompt, .output_tokens = lengths.output});
  }
  return workload;
}

void apply_limits(const WorkloadLimits& limits, Workload& workload) {
  if (limits.requests >= 0 && limits.requests < std::ssize(workload.requests)) {
    workload.requests.resize(static_cast<std::size_t>(limits.requests));
  }
  if (limits.output < 0) return;
  for (Request& request : workload.requests) {
    request.output_tokens = std::min(request.output_tokens, limits.output);
  }
}

void share_prompts(double probability, std::uint64_t seed, Workload& workload) {
  Random random(seed);
  for (std::int64_t i = 1; i < std::ssize(workload.requests); ++i) {
    if (!random.chance(probability)) continue;
    Request& request = workload.requests[i];
    request.shares_with = random.between(0, i - 1);
    const Request& earlier = workload.requests[request.shares_with];
    request.shared_tokens =
        random.between(1, std::min(request.prompt_tokens, earlier.prompt_tokens));
  }
}

}  // namespace shortconv::tools
