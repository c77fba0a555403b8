#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shortconv::tools {

/// Records of a CSV text, as RFC 4180 has it: cells in quotes may hold separators, line ends and
/// doubled quotes. Blanks around cells and empty lines are left out; a line may also end with \r.
class CsvText {
 public:
  /// `text` has to outlive the reader; `name` is for messages.
  CsvText(std::string_view text, std::string name, char separator)
      : text_(text), name_(std::move(name)), separator_(separator) {}

  /// The next record in `cells`, or false at the end.
  [[nodiscard]] bool next(std::vector<std::string>& cells);

  /// Line in which the last record begins.
  [[nodiscard]] std::int64_t line() const { return line_; }

  [[noreturn]] void fail(std::string_view why) const;

 private:
  [[nodiscard]] std::string next_cell();
  [[nodiscard]] std::string quoted_cell();
  void skip_blanks();
  void end_line();
  [[nodiscard]] bool at_line_end() const;

  std::string_view text_;
  std::string name_;
  char separator_;
  std::size_t at_ = 0;
  std::int64_t next_line_ = 1;
  std::int64_t line_ = 1;
};

}  // namespace shortconv::tools
