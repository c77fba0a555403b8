#include "replay/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "common/error.hpp"
#include "common/random.hpp"

namespace shortconv::tools {
namespace {

// No request of any service comes near; sums over many requests stay far inside 64 bits.
constexpr std::int64_t kMaxTokens = 1'000'000'000;
constexpr std::string_view kTokenRule = "one token per 4 UTF-8 bytes";

/// A line of the input with what messages need to point at it.
struct Line {
  const std::string& path;
  std::int64_t number;
  std::string_view text;

  [[noreturn]] void fail(std::string_view why) const {
    throw CommandError(kExitUsage, fmt::format("{}:{}: {}", path, number, why));
  }
};

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const std::size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

// For messages: whatever the file holds, the message stays one readable line.
std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 40;
  std::string line;
  for (const char c : text.substr(0, kLongest)) {
    const bool printable = static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
    line += printable ? c : '?';
  }
  return "'" + line + (text.size() > kLongest ? "...'" : "'");
}

std::int64_t checked_count(const Line& line, std::string_view column, std::int64_t count,
                           std::int64_t least) {
  if (count < least) {
    line.fail(fmt::format("{} is {}, expected at least {}", column, count, least));
  }
  if (count > kMaxTokens) {
    line.fail(fmt::format("{} is {}, expected at most {}", column, count, kMaxTokens));
  }
  return count;
}

// A prompt has at least one token, an answer may be empty.
Request checked_request(const Line& line, std::string_view prompt_column, std::int64_t prompt,
                        std::string_view output_column, std::int64_t output) {
  return {.prompt_tokens = checked_count(line, prompt_column, prompt, 1),
          .output_tokens = checked_count(line, output_column, output, 0)};
}

class CsvReader {
 public:
  explicit CsvReader(const Line& header) {
    const std::vector<std::string_view> names = cells(header.text);
    prompt_ = find(header, names, kPrompt);
    output_ = find(header, names, kOutput);
  }

  [[nodiscard]] Request read(const Line& line) const {
    const std::vector<std::string_view> values = cells(line.text);
    return checked_request(line, kPrompt, number(line, values, prompt_, kPrompt), kOutput,
                           number(line, values, output_, kOutput));
  }

  [[nodiscard]] static std::string rule() { return "CSV, token counts as given"; }

 private:
  static constexpr std::string_view kPrompt = "ContextTokens";
  static constexpr std::string_view kOutput = "GeneratedTokens";

  static std::vector<std::string_view> cells(std::string_view text) {
    std::vector<std::string_view> parts;
    for (std::size_t start = 0; start <= text.size();) {
      const std::size_t comma = std::min(text.find(',', start), text.size());
      parts.push_back(trim(text.substr(start, comma - start)));
      start = comma + 1;
    }
    return parts;
  }

  static std::size_t find(const Line& header, const std::vector<std::string_view>& names,
                          std::string_view column) {
    const auto found = std::find(names.begin(), names.end(), column);
    if (found == names.end()) {
      header.fail(
          fmt::format("the header has no column {}, expected {} and {}", column, kPrompt, kOutput));
    }
    return static_cast<std::size_t>(found - names.begin());
  }

  static std::int64_t number(const Line& line, const std::vector<std::string_view>& values,
                             std::size_t index, std::string_view column) {
    if (index >= values.size()) {
      line.fail(fmt::format("{} is missing, the line has {} columns", column, values.size()));
    }
    const std::string_view text = values[index];
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
      line.fail(fmt::format("{} is {}, expected a whole number", column, shown(text)));
    }
    return value;
  }

  std::size_t prompt_ = 0;
  std::size_t output_ = 0;
};

class JsonReader {
 public:
  [[nodiscard]] Request read(const Line& line) {
    const auto object = nlohmann::json::parse(line.text, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) line.fail("not a JSON object");
    if (object.contains("question") && object.contains("answer")) {
      from_text_ = true;
      return {.prompt_tokens = text_tokens(line, object, "question"),
              .output_tokens = text_tokens(line, object, "answer")};
    }
    return checked_request(line, "prompt_tokens", count(line, object, "prompt_tokens"),
                           "output_tokens", count(line, object, "output_tokens"));
  }

  [[nodiscard]] std::string rule() const {
    return from_text_ ? fmt::format("JSON lines, {}", kTokenRule)
                      : "JSON lines, token counts as given";
  }

 private:
  static const nlohmann::json& member(const Line& line, const nlohmann::json& object,
                                      const char* key) {
    const auto found = object.find(key);
    if (found == object.end()) {
      line.fail(
          fmt::format("{} is missing, expected prompt_tokens and output_tokens, or question "
                      "and answer",
                      key));
    }
    return *found;
  }

  static std::int64_t count(const Line& line, const nlohmann::json& object, const char* key) {
    const nlohmann::json& value = member(line, object, key);
    const bool too_large = value.is_number_unsigned() &&
                           value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMaxTokens);
    if (!value.is_number_integer() || too_large) {
      line.fail(fmt::format("{} is {}, expected a whole number up to {}", key, shown(value.dump()),
                            kMaxTokens));
    }
    return value.get<std::int64_t>();
  }

  static std::int64_t text_tokens(const Line& line, const nlohmann::json& object, const char* key) {
    const nlohmann::json& value = member(line, object, key);
    if (!value.is_string()) line.fail(fmt::format("{} is not a string", key));
    return estimated_tokens(value.get_ref<const std::string&>());
  }

  bool from_text_ = false;
};

std::string file_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

}  // namespace

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

Workload load_requests(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw CommandError(kExitUsage, fmt::format("{}: {}", path, std::strerror(errno)));
  }

  Workload workload;
  std::optional<CsvReader> csv;
  JsonReader json;
  std::int64_t number = 0;
  for (std::string text; std::getline(file, text);) {
    std::string_view content = text;
    constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
    if (++number == 1 && content.starts_with(kByteOrderMark)) {
      content.remove_prefix(kByteOrderMark.size());
    }
    const Line line{.path = path, .number = number, .text = trim(content)};
    if (line.text.empty()) continue;
    const bool is_first = !csv && workload.requests.empty();
    if (is_first && line.text.front() != '{') {
      csv.emplace(line);
    } else {
      workload.requests.push_back(csv ? csv->read(line) : json.read(line));
    }
  }
  if (file.bad()) throw CommandError(kExitUsage, fmt::format("{}: cannot be read", path));
  if (workload.requests.empty()) {
    throw CommandError(kExitUsage, fmt::format("{}: no requests in the file", path));
  }
  workload.source = fmt::format("{} ({})", file_name(path), csv ? csv->rule() : json.rule());
  return workload;
}

Workload preset_requests(std::string_view preset) {
  if (preset != "gsm8k") {
    throw CommandError(kExitUsage, fmt::format("--preset: '{}' is not one of gsm8k", preset));
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
