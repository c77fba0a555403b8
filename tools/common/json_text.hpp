#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace shortconv::tools {

/// Every JSON text that the commands read goes through here. A CommandError names the file and the
/// line of what is no JSON, is nested more than kDeepestJson deep, or has a key twice.
class JsonText {
 public:
  /// `text` has to outlive the reader; `name` is for messages.
  JsonText(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  /// Whether only blanks are left.
  [[nodiscard]] bool at_end();

  /// The next object or array; there may be several, as in JSON lines. For nlohmann::json and
  /// nlohmann::ordered_json.
  template <typename Json>
  [[nodiscard]] Json next();

  /// First line of the value that next() returned and, if it is an array, of each item.
  [[nodiscard]] std::int64_t line() const { return line_; }
  [[nodiscard]] const std::vector<std::int64_t>& lines_of_items() const { return item_lines_; }

  /// Line of the next text after the blanks that at_end() skipped.
  [[nodiscard]] std::int64_t next_line() const { return next_line_; }

  [[noreturn]] void fail(std::int64_t line, std::string_view why) const;

 private:
  [[nodiscard]] std::string_view take();
  [[noreturn]] void fail_at(std::size_t byte, std::string_view last_token) const;

  std::string_view text_;
  std::string name_;
  std::size_t at_ = 0;
  std::int64_t next_line_ = 1;  // of at_
  std::int64_t line_ = 1;
  std::vector<std::int64_t> item_lines_;
};

/// Files of this tool have 4 levels at most.
inline constexpr std::size_t kDeepestJson = 64;
/// nlohmann::ordered_json searches an object's keys one by one.
inline constexpr std::size_t kMostJsonKeys = 10'000;

/// As text. Bytes that are no UTF-8, as arguments and names of files may have them, become U+FFFD
/// instead of an exception.
template <typename Json>
[[nodiscard]] std::string dump_json(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

/// A text that is one object and nothing else.
template <typename Json>
[[nodiscard]] Json parse_json_object(std::string_view text, const std::string& name);

}  // namespace shortconv::tools
