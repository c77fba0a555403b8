#include "common/output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/text.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;

bool is_stdout(const std::string& path) { return path == "-"; }

CommandError failure(int exit_code, const std::string& path, std::string_view why) {
  return {exit_code, fmt::format("{}: cannot be written: {}", printable(path), why)};
}

[[noreturn]] void fail(const std::string& path, int error) {
  throw failure(kExitFailed, path, std::strerror(error));
}

std::optional<struct stat> status_of(const std::string& path, int dash) {
  struct stat status{};
  const int result = path == "-" ? fstat(dash, &status) : stat(path.c_str(), &status);
  return result == 0 ? std::optional(status) : std::nullopt;
}

bool is_same_file(const std::string& output, const std::string& input) {
  const auto written = status_of(output, STDOUT_FILENO), read = status_of(input, STDIN_FILENO);
  return written && read && S_ISREG(written->st_mode) && written->st_dev == read->st_dev &&
         written->st_ino == read->st_ino;
}

// Renaming over a device or a pipe would put a file in its place.
bool is_replaceable(const std::string& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return !fs::exists(status) || fs::is_regular_file(status);
}

// Target of a symbolic link, existing or not, so that the link itself is not replaced.
std::string target_of(const std::string& path) {
  constexpr int kMostLinks = 40;  // as Linux has it
  fs::path target = path;
  std::error_code error;
  for (int links = 0; links < kMostLinks && fs::is_symlink(target, error); ++links) {
    target = target.parent_path() / fs::read_symlink(target, error);
  }
  return target.string();
}

std::string folder_of(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

// Permissions of the replaced file; for a new file those that the umask leaves.
mode_t permissions_of(const std::string& target) {
  constexpr mode_t kPermissions = 0777, kNewFile = 0666;
  if (const auto status = status_of(target, -1)) return status->st_mode & kPermissions;
  const mode_t withheld = umask(0077);
  umask(withheld);
  return kNewFile & ~withheld;
}

// A file descriptor that closes itself. `path` is the name that messages use.
class Descriptor {
 public:
  Descriptor(int number, const std::string& path) : number_(number), path_(path) {
    if (number < 0) fail(path, errno);
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t bytes = ::write(number_, text.data(), text.size());
      if (bytes < 0 && errno != EINTR) fail(path_, errno);
      if (bytes > 0) text.remove_prefix(static_cast<std::size_t>(bytes));
    }
  }
  void set_permissions(mode_t mode) const {
    if (fchmod(number_, mode) != 0) fail(path_, errno);
  }
  // Some file systems report a full disk here.
  void close() {
    if (::close(std::exchange(number_, -1)) != 0) fail(path_, errno);
  }

 private:
  int number_;
  const std::string& path_;
};

void replace_file(const std::string& path, std::string_view text) {
  const std::string target = target_of(path);
  // mkostemp creates a new file with an unpredictable name, so it cannot follow a link.
  std::string temporary = folder_of(target) + "/.shortconv-XXXXXX";
  const int number = mkostemp(temporary.data(), O_CLOEXEC);
  Descriptor file(number, path);
  try {
    file.write(text);
    file.set_permissions(permissions_of(target));
    file.close();
    if (std::rename(temporary.c_str(), target.c_str()) != 0) fail(path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

}  // namespace

void check_writable(const std::string& path, std::span<const std::string> inputs) {
  if (path.empty()) return;
  const auto refuse = [&](std::string_view why) { throw failure(kExitUsage, path, why); };
  for (const std::string& input : inputs) {
    if (is_same_file(path, input)) {
      refuse(fmt::format("it is the same file as the input {}", input_name(input)));
    }
  }
  if (is_stdout(path)) return;
  std::error_code error;
  if (fs::is_directory(path, error)) refuse("it is a directory");
  const std::string target = target_of(path);
  if (fs::is_symlink(target, error)) refuse(std::strerror(ELOOP));
  const bool replaces = is_replaceable(path);
  if (replaces) {
    const std::string folder = folder_of(target);
    if (access((folder + "/.").c_str(), W_OK | X_OK) != 0) {
      refuse(fmt::format("{}: {}", printable(folder), std::strerror(errno)));
    }
  }
  if ((!replaces || fs::exists(target, error)) && access(target.c_str(), W_OK) != 0) {
    refuse(std::strerror(errno));
  }
}

void write_output(const std::string& path, std::string_view text) {
  if (is_stdout(path)) {
    write_stdout(text);
  } else if (is_replaceable(path)) {
    replace_file(path, text);
  } else {
    Descriptor file(::open(path.c_str(), O_WRONLY | O_CLOEXEC), path);
    file.write(text);
    file.close();
  }
}

void write_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) {
    return;
  }
  throw failure(kExitFailed, "standard output", std::strerror(errno));
}

}  // namespace shortconv::tools
