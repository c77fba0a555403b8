#include "common/arguments.hpp"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <system_error>

#include "common/text.hpp"

namespace shortconv::tools {
namespace {

// `range` is for the message, `shown` for the help.
template <typename T>
CLI::Validator number_between(T least, T most, std::string range, std::string shown) {
  const auto check = [least, most,
                      range = std::move(range)](const std::string& text) -> std::string {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const std::size_t first = text.starts_with('-') ? 1 : 0;
    const bool is_octal = text.size() > first + 1 && text[first] == '0' && text[first + 1] >= '0' &&
                          text[first + 1] <= '9';  // to CLI11
    const bool is_number = error == std::errc() && end == text.data() + text.size() && !is_octal;
    if (is_number && value >= least && value <= most) return "";  // NaN is not
    return fmt::format("{} is not {}", in_quotes(text), range);
  };
  return CLI::Validator(check, std::move(shown));
}

}  // namespace

std::vector<std::string> given_arguments(const CLI::App& command) {
  std::vector<std::string> arguments{command.get_name()};
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() == 0) continue;
    arguments.push_back(option->get_name());
    const bool is_flag = option->get_expected_max() == 0;
    if (is_flag) continue;
    for (const std::string& value : option->results()) arguments.push_back(value);
  }
  return arguments;
}

CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  return number_between(least, most, fmt::format("a whole number from {} to {}", least, most),
                        fmt::format("{}..{}", least, most));
}

CLI::Validator real_number(double least, double most) {
  return number_between(least, most, fmt::format("a number from {} to {}", least, most),
                        fmt::format("{}..{}", least, most));
}

CLI::Validator seed_number() {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  return number_between<std::uint64_t>(0, kMost, "a whole number of 64 bits", "");
}

CLI::Validator file_name() {
  return CLI::Validator(
      [](std::string& text) { return std::string(text.empty() ? "the name is empty" : ""); }, "");
}

void add_measuring_options(CLI::App& command, int& repeats, std::string& json) {
  constexpr int kMostRepeats = 1'000'000;  // days
  command.add_option("--repeats", repeats, "0: until it is enough, a second a row or less")
      ->check(whole_number(0, kMostRepeats))
      ->capture_default_str();
  command
      .add_option("--json", json,
                  "Also write the rows to FILE; - is standard output, without the table")
      ->check(file_name());
}

}  // namespace shortconv::tools
