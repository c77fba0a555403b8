#include "common/json_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <unordered_set>

#include "common/error.hpp"
#include "common/text.hpp"

namespace shortconv::tools {
namespace {

// Position of the parser.
struct Cursor {
  const char* at;
  std::int64_t line;
};

// Updates the cursor: the parser does not report its position.
class CursorIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CursorIterator(const char* at, Cursor& cursor) : at_(at), cursor_(&cursor) {}

  reference operator*() const { return *at_; }
  CursorIterator& operator++() {
    if (*at_ == '\n') ++cursor_->line;
    cursor_->at = ++at_;
    return *this;
  }
  CursorIterator operator++(int) {
    const CursorIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CursorIterator& other) const { return at_ == other.at_; }

 private:
  const char* at_;
  Cursor* cursor_;
};

// Checks a value before it is parsed into memory, so that deep values are refused in constant
// memory.
class Check : public nlohmann::json_sax<nlohmann::json> {
 public:
  Check(const Cursor& cursor, std::vector<std::int64_t>& item_lines)
      : cursor_(cursor), item_lines_(item_lines) {}

  bool null() override { return item(); }
  bool boolean(bool) override { return item(); }
  bool number_integer(number_integer_t) override { return item(); }
  bool number_unsigned(number_unsigned_t) override { return item(); }
  bool number_float(number_float_t, const string_t&) override { return item(); }
  bool string(string_t&) override { return item(); }
  bool binary(binary_t&) override { return item(); }
  bool start_object(std::size_t) override { return item() && open(/*is_array=*/false); }
  bool start_array(std::size_t) override { return item() && open(/*is_array=*/true); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    auto& keys = open_.back().keys;
    if (!keys.insert(name).second) return refuse(fmt::format("the key {} twice", in_quotes(name)));
    if (keys.size() <= kMostJsonKeys) return true;
    return refuse(fmt::format("an object with more than {} keys", kMostJsonKeys));
  }
  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::json::exception& error) override {
    constexpr int kNumberOverflow = 406;
    if (error.id == kNumberOverflow) {
      return refuse(fmt::format("a number out of range, {}", in_quotes(last_token)));
    }
    error_byte = position == 0 ? 0 : position - 1;
    error_token = last_token;
    return false;
  }

  std::string refusal;         ///< what the value has and should not have
  std::size_t error_byte = 0;  ///< else where it stops to be JSON
  std::string error_token;

 private:
  struct Open {
    bool is_array;
    std::unordered_set<std::string> keys;
  };

  bool item() {
    if (open_.size() == 1 && open_.front().is_array) item_lines_.push_back(cursor_.line);
    return true;
  }
  bool open(bool is_array) {
    if (open_.size() == kDeepestJson) {
      return refuse(fmt::format("values nested more than {} deep", kDeepestJson));
    }
    open_.push_back({is_array, {}});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  bool refuse(std::string what) {
    refusal = std::move(what);
    return false;
  }

  const Cursor& cursor_;
  std::vector<std::int64_t>& item_lines_;
  std::vector<Open> open_;
};

}  // namespace

bool JsonText::at_end() {
  constexpr std::string_view kBlank = " \t\r\n";
  const std::size_t next = std::min(text_.find_first_not_of(kBlank, at_), text_.size());
  next_line_ += std::ranges::count(text_.substr(at_, next - at_), '\n');
  at_ = next;
  return at_ == text_.size();
}

void JsonText::fail(std::int64_t line, std::string_view why) const {
  throw CommandError(kExitUsage, fmt::format("{}:{}: {}", name_, line, why));
}

void JsonText::fail_at(std::size_t byte, std::string_view last_token) const {
  if (byte >= text_.size()) fail(line_, "the JSON value that begins here does not end");
  const std::string_view before = text_.substr(0, byte);
  const std::size_t line_begin = before.rfind('\n') + 1;  // 0 in the first line
  fail(1 + std::ranges::count(before, '\n'),
       fmt::format("is no JSON at column {}: {}", byte - line_begin + 1, in_quotes(last_token)));
}

std::string_view JsonText::take() {
  item_lines_.clear();
  const bool ended = at_end();
  line_ = next_line_;
  if (ended) fail(line_, "expected a JSON object, found the end of the file");
  if (text_[at_] != '{' && text_[at_] != '[') {
    const std::string_view rest = text_.substr(at_);
    fail(line_, fmt::format("expected a JSON object, found {}",
                            in_quotes(rest.substr(0, rest.find_first_of("\r\n")))));
  }
  const char* const begin = text_.data() + at_;
  Cursor cursor{begin, next_line_};
  Check check(cursor, item_lines_);
  const bool good = nlohmann::json::sax_parse(
      CursorIterator(begin, cursor), CursorIterator(text_.data() + text_.size(), cursor), &check,
      nlohmann::json::input_format_t::json, /*strict=*/false);
  if (!check.refusal.empty()) fail(cursor.line, "has " + check.refusal);
  if (!good) fail_at(at_ + check.error_byte, check.error_token);
  at_ = static_cast<std::size_t>(cursor.at - text_.data());
  next_line_ = cursor.line;
  return {begin, cursor.at};
}

template <typename Json>
Json JsonText::next() {
  const std::string_view value = take();
  return Json::parse(value.begin(), value.end());
}

template <typename Json>
Json parse_json_object(std::string_view text, const std::string& name) {
  JsonText json(text, name);
  if (json.at_end()) throw CommandError(kExitUsage, name + ": is empty; expected a JSON object");
  Json object = json.next<Json>();
  if (!object.is_object()) json.fail(json.line(), "expected a JSON object, found an array");
  if (!json.at_end()) json.fail(json.next_line(), "expected nothing after the JSON object");
  return object;
}

template nlohmann::json JsonText::next<nlohmann::json>();
template nlohmann::ordered_json JsonText::next<nlohmann::ordered_json>();
template nlohmann::json parse_json_object<nlohmann::json>(std::string_view, const std::string&);
template nlohmann::ordered_json parse_json_object<nlohmann::ordered_json>(std::string_view,
                                                                          const std::string&);

}  // namespace shortconv::tools
