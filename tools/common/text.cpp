#include "common/text.hpp"

#include <fmt/format.h>

namespace shortconv::tools {
namespace {

bool is_invisible(char32_t code) {
  const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
  // Marks, embeddings, overrides and isolates of the direction of writing; separators of lines.
  const bool direction = code == 0x200e || code == 0x200f || (code >= 0x2028 && code <= 0x202e) ||
                         (code >= 0x2066 && code <= 0x2069);
  return control || direction || code == 0xfeff;
}

std::string printable(std::string_view text, std::size_t most, bool keep_newlines) {
  std::string shown;
  for (std::size_t count = 0; !text.empty(); ++count) {
    if (count == most) return shown + "...";
    const Character character = first_character(text);
    const bool kept = keep_newlines && character.code == '\n';
    if (character.valid && (kept || !is_invisible(character.code))) {
      shown += text.substr(0, character.bytes);
    } else if (!character.valid || character.code < 0x100) {
      const auto code = character.valid ? static_cast<unsigned>(character.code)
                                        : static_cast<unsigned char>(text.front());
      shown += fmt::format("\\x{:02x}", code);
    } else {
      shown += fmt::format("\\u{:04x}", static_cast<unsigned>(character.code));
    }
    text.remove_prefix(character.bytes);
  }
  return shown;
}

}  // namespace

Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  const std::size_t bytes = lead < 0x80             ? 1
                            : (lead & 0xe0) == 0xc0 ? 2
                            : (lead & 0xf0) == 0xe0 ? 3
                            : (lead & 0xf8) == 0xf0 ? 4
                                                    : 0;
  if (bytes == 0 || bytes > text.size()) return {};
  char32_t code = bytes == 1 ? lead : lead & (0x7f >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3f);
  }
  constexpr char32_t kLeast[] = {0, 0x80, 0x800, 0x10000};  // longer forms are not allowed
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (code < kLeast[bytes - 1] || code > 0x10ffff || surrogate) return {};
  return {.code = code, .bytes = bytes, .valid = true};
}

std::string printable(std::string_view text, std::size_t most) {
  return printable(text, most, /*keep_newlines=*/false);
}

std::string printable_lines(std::string_view text) {
  return printable(text, std::string_view::npos, /*keep_newlines=*/true);
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 40;
  return "'" + printable(text, kLongest) + "'";
}

}  // namespace shortconv::tools
