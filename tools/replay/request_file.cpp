#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/json_text.hpp"
#include "common/text.hpp"
#include "replay/csv_text.hpp"
#include "replay/requests.hpp"

namespace shortconv::tools {
namespace {

using Json = nlohmann::json;

// Far above real requests, and small enough for sums over many requests in 64 bits.
constexpr std::int64_t kMaxTokens = 1'000'000'000;

// A position in the input, for messages.
struct Place {
  const std::string& name;
  std::int64_t line;

  [[noreturn]] void fail(std::string_view why) const {
    throw CommandError(kExitUsage, fmt::format("{}:{}: {}", name, line, why));
  }
};

std::int64_t checked_count(const Place& place, std::string_view column, std::int64_t count,
                           std::int64_t least) {
  if (count < least) {
    place.fail(fmt::format("{} is {}, expected at least {}", column, count, least));
  }
  if (count > kMaxTokens) {
    place.fail(fmt::format("{} is {}, expected at most {}", column, count, kMaxTokens));
  }
  return count;
}

// A prompt has at least one token, an answer may be empty.
Request checked_request(const Place& place, std::string_view prompt_column, std::int64_t prompt,
                        std::string_view output_column, std::int64_t output) {
  return {.prompt_tokens = checked_count(place, prompt_column, prompt, 1),
          .output_tokens = checked_count(place, output_column, output, 0)};
}

using Cells = std::vector<std::string>;

constexpr std::string_view kPrompt = "ContextTokens";
constexpr std::string_view kOutput = "GeneratedTokens";

std::optional<std::size_t> find_column(const Cells& header, std::string_view column) {
  const auto found = std::find(header.begin(), header.end(), column);
  if (found == header.end()) return std::nullopt;
  return static_cast<std::size_t>(found - header.begin());
}

// A comma if there is one outside quotes in the first line, else a semicolon or a tab.
char separator_of(std::string_view text) {
  bool inside = false;
  std::string outside;
  for (const char c : text.substr(std::min(text.find_first_not_of(" \r\n"), text.size()))) {
    if (c == '"') inside = !inside;
    if (inside) continue;
    if (c == '\n' || c == '\r') break;
    outside += c;
  }
  for (const char separator : {',', ';', '\t'}) {
    if (outside.find(separator) != std::string::npos) return separator;
  }
  return ',';
}

std::int64_t csv_number(const Place& place, const Cells& cells, std::size_t index,
                        std::string_view column) {
  if (index >= cells.size()) {
    place.fail(fmt::format("{} is missing, the line has {} columns", column, cells.size()));
  }
  const std::string& text = cells[index];
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    place.fail(fmt::format("{} is {}, expected a whole number", column, in_quotes(text)));
  }
  return value;
}

Workload read_csv(std::string_view text, const std::string& name) {
  CsvText csv(text, name, separator_of(text));
  Workload workload{.source = "CSV, token counts as given", .requests = {}};
  Cells cells;
  if (!csv.next(cells)) return workload;
  const auto column = [&](std::string_view wanted) {
    const auto index = find_column(cells, wanted);
    if (!index) {
      csv.fail(
          fmt::format("the header has no column {}, expected {} and {}", wanted, kPrompt, kOutput));
    }
    return *index;
  };
  const std::size_t prompt = column(kPrompt), output = column(kOutput);
  while (csv.next(cells)) {
    const Place place{name, csv.line()};
    workload.requests.push_back(checked_request(place, kPrompt,
                                                csv_number(place, cells, prompt, kPrompt), kOutput,
                                                csv_number(place, cells, output, kOutput)));
  }
  return workload;
}

const Json& member(const Place& place, const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) {
    place.fail(
        fmt::format("{} is missing, expected prompt_tokens and output_tokens, or question "
                    "and answer",
                    key));
  }
  return *found;
}

std::int64_t json_count(const Place& place, const Json& object, const char* key) {
  const Json& value = member(place, object, key);
  const bool too_large = value.is_number_unsigned() &&
                         value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMaxTokens);
  if (!value.is_number_integer() || too_large) {
    place.fail(fmt::format("{} is {}, expected a whole number up to {}", key,
                           in_quotes(dump_json(value)), kMaxTokens));
  }
  return value.get<std::int64_t>();
}

std::int64_t text_tokens(const Place& place, const Json& object, const char* key) {
  const Json& value = member(place, object, key);
  if (!value.is_string()) place.fail(fmt::format("{} is not a string", key));
  return estimated_tokens(value.get_ref<const std::string&>());
}

bool has_texts(const Json& object) {
  return object.contains("question") && object.contains("answer");
}

Request json_request(const Place& place, const Json& object) {
  if (!object.is_object()) place.fail("a request is not a JSON object");
  if (has_texts(object)) {
    return {.prompt_tokens = text_tokens(place, object, "question"),
            .output_tokens = text_tokens(place, object, "answer")};
  }
  return checked_request(place, "prompt_tokens", json_count(place, object, "prompt_tokens"),
                         "output_tokens", json_count(place, object, "output_tokens"));
}

Workload read_json(std::string_view text, const std::string& name) {
  JsonText json(text, name);
  Workload workload;
  bool from_text = false;
  const auto add = [&](std::int64_t line, const Json& object) {
    workload.requests.push_back(json_request({name, line}, object));
    from_text |= has_texts(object);
  };
  while (!json.at_end()) {
    const Json value = json.next<Json>();
    if (!value.is_array()) {
      add(json.line(), value);
      continue;
    }
    for (std::size_t i = 0; i < value.size(); ++i) add(json.lines_of_items()[i], value[i]);
  }
  workload.source = from_text ? fmt::format("JSON, {}", kTokenRule) : "JSON, token counts as given";
  return workload;
}

std::string file_name(const std::string& name) { return name.substr(name.find_last_of('/') + 1); }

}  // namespace

Workload load_requests(const std::string& path) {
  const std::string text = read_input(path);
  const std::string name = input_name(path);
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  const bool is_json = first != std::string::npos && (text[first] == '{' || text[first] == '[');
  Workload workload = is_json ? read_json(text, name) : read_csv(text, name);
  if (workload.requests.empty()) {
    throw CommandError(kExitUsage, fmt::format("{}: no requests in the file", name));
  }
  workload.source = fmt::format("{} ({})", file_name(name), workload.source);
  return workload;
}

}  // namespace shortconv::tools
