#include "common/output_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>

#include "common/error.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;

bool is_stdout(const std::string& path) { return path == "-"; }

[[noreturn]] void fail(const std::string& path, std::string_view why) {
  throw CommandError(kExitUsage, fmt::format("{}: cannot be written: {}", path, why));
}

// Renaming over a device or a pipe would put a file in its place.
bool is_replaceable(const std::string& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return !fs::exists(status) || fs::is_regular_file(status);
}

// Where a link leads, so that the link stays one.
std::string target_of(const std::string& path) {
  std::error_code error;
  const fs::path target = fs::weakly_canonical(path, error);
  return error ? path : target.string();
}

std::string folder_of(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

void write_all(std::FILE* file, std::string_view text, const std::string& path) {
  if (std::fwrite(text.data(), 1, text.size(), file) != text.size() || std::fflush(file) != 0) {
    fail(path, std::strerror(errno));
  }
}

// `path` is the name that messages use.
void write_file(const std::string& file_name, std::string_view text, const std::string& path) {
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(file_name.c_str(), "wb"),
                                                         close);
  if (file == nullptr) fail(path, std::strerror(errno));
  write_all(file.get(), text, path);
}

}  // namespace

void check_writable(const std::string& path) {
  if (path.empty() || is_stdout(path)) return;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) fail(path, "it is a directory");
  const std::string place = is_replaceable(path) ? folder_of(target_of(path)) : path;
  if (access(place.c_str(), W_OK) != 0) {
    fail(path, fmt::format("{}: {}", place, std::strerror(errno)));
  }
}

void write_output(const std::string& path, std::string_view text) {
  if (is_stdout(path)) {
    write_all(stdout, text, "stdout");
  } else if (is_replaceable(path)) {
    const std::string target = target_of(path);
    const std::string temporary = fmt::format("{}.{}.tmp", target, getpid());
    try {
      write_file(temporary, text, path);
      if (std::rename(temporary.c_str(), target.c_str()) != 0) fail(path, std::strerror(errno));
    } catch (const CommandError&) {
      std::remove(temporary.c_str());
      throw;
    }
  } else {
    write_file(path, text, path);
  }
}

}  // namespace shortconv::tools
