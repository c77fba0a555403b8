#include "replay/csv_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "common/error.hpp"

namespace shortconv::tools {

void CsvText::fail(std::string_view why) const {
  throw CommandError(kExitUsage, fmt::format("{}:{}: {}", name_, line_, why));
}

bool CsvText::at_line_end() const {
  return at_ == text_.size() || text_[at_] == '\n' || text_[at_] == '\r';
}

// \n, \r or \r\n.
void CsvText::end_line() {
  if (at_ == text_.size()) return;
  at_ += text_.substr(at_).starts_with("\r\n") ? 2 : 1;
  ++next_line_;
}

void CsvText::skip_blanks() {
  while (at_ < text_.size() && text_[at_] != separator_ &&
         (text_[at_] == ' ' || text_[at_] == '\t')) {
    ++at_;
  }
}

std::string CsvText::quoted_cell() {
  std::string cell;
  for (++at_; at_ < text_.size(); ++at_) {
    if (text_[at_] == '"') {
      ++at_;
      const bool doubled = at_ < text_.size() && text_[at_] == '"';
      if (!doubled) return cell;
    } else if (text_[at_] == '\n') {
      ++next_line_;
    }
    cell += text_[at_];
  }
  fail("a cell in quotes does not end");
}

std::string CsvText::next_cell() {
  skip_blanks();
  if (at_ < text_.size() && text_[at_] == '"') {
    std::string cell = quoted_cell();
    skip_blanks();
    if (!at_line_end() && text_[at_] != separator_) fail("text follows a cell in quotes");
    return cell;
  }
  const char ends[] = {separator_, '\r', '\n'};
  const std::size_t end = std::min(text_.find_first_of({ends, std::size(ends)}, at_), text_.size());
  std::string_view cell = text_.substr(at_, end - at_);
  at_ = end;
  return std::string(cell.substr(0, cell.find_last_not_of(" \t") + 1));
}

bool CsvText::next(std::vector<std::string>& cells) {
  cells.clear();
  for (skip_blanks(); at_ < text_.size() && at_line_end(); skip_blanks()) end_line();
  if (at_ == text_.size()) return false;
  line_ = next_line_;
  cells.push_back(next_cell());
  while (!at_line_end()) {
    ++at_;  // the separator
    cells.push_back(next_cell());
  }
  end_line();
  return true;
}

}  // namespace shortconv::tools
