#include "common/input_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>

#include "common/error.hpp"
#include "common/text.hpp"

namespace shortconv::tools {
namespace {

// A week of requests of a large service has about 1 GiB. Devices and pipes may never end.
constexpr std::size_t kMostBytes = std::size_t{2} << 30;

[[noreturn]] void fail(const std::string& path, std::string_view why) {
  throw CommandError(kExitUsage, fmt::format("{}: {}", input_name(path), why));
}

void close(std::FILE* file) {
  if (file != stdin) std::fclose(file);
}

void check_part(const std::string& path, std::string_view text, std::string_view part) {
  if (text.size() > kMostBytes) fail(path, "is larger than 2 GiB, the most that is read");
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff")) {
    fail(path, "is text in UTF-16; expected UTF-8");
  }
  if (part.find('\0') == std::string_view::npos) return;
  const auto zero = text.begin() + static_cast<std::ptrdiff_t>(text.find('\0'));
  fail(path, fmt::format("is no text: line {} has a byte of value 0",
                         1 + std::count(text.begin(), zero, '\n')));
}

}  // namespace

std::string input_name(const std::string& path) {
  return path == "-" ? "standard input" : printable(path);
}

std::string read_input(const std::string& path) {
  const std::unique_ptr<std::FILE, decltype(&close)> file(
      path == "-" ? stdin : std::fopen(path.c_str(), "rb"), close);
  if (file == nullptr) fail(path, fmt::format("cannot be read: {}", std::strerror(errno)));
  std::string text;
  std::array<char, 1 << 16> block;
  while (const std::size_t bytes = std::fread(block.data(), 1, block.size(), file.get())) {
    text.append(block.data(), bytes);
    check_part(path, text, {block.data(), bytes});
  }
  if (std::ferror(file.get()) != 0) {
    fail(path, fmt::format("cannot be read: {}", std::strerror(errno)));
  }
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  return text;
}

}  // namespace shortconv::tools
