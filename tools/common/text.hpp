#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <string_view>

namespace shortconv::tools {

/// One character of a text.
struct Character {
  char32_t code = 0;
  std::size_t bytes = 1;  ///< that it takes up
  bool valid = false;     ///< else one byte that is no UTF-8
};

/// The character at the start of a text that is not empty.
[[nodiscard]] Character first_character(std::string_view text);

/// `text` for a terminal: control characters, characters that change the direction of writing and
/// invalid UTF-8 become escapes such as \x1b or \u202e. Text after `most` characters becomes "...".
[[nodiscard]] std::string printable(std::string_view text,
                                    std::size_t most = std::numeric_limits<std::size_t>::max());

/// The same for a message of several lines: newlines stay.
[[nodiscard]] std::string printable_lines(std::string_view text);

/// For values of files and options in messages: 'text', printable and short.
[[nodiscard]] std::string in_quotes(std::string_view text);

}  // namespace shortconv::tools
