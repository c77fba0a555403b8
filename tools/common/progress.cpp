#include "common/progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace shortconv::tools {
namespace {

constexpr auto kSilence = std::chrono::seconds(1);
constexpr auto kRefresh = std::chrono::milliseconds(100);
constexpr int kBarColumns = 30;

int terminal_columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

std::string progress_line(std::string_view label, std::int64_t done, std::int64_t total,
                          double elapsed_seconds, int columns) {
  const double share =
      total <= 0 ? 1.0
                 : std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const int filled = static_cast<int>(share * kBarColumns);
  std::string line = fmt::format("{} [{:#<{}}{:.<{}}] {:3}%", label, "", filled, "",
                                 kBarColumns - filled, static_cast<int>(share * 100));
  if (share > 0) line += fmt::format("  {:.0f} s left", elapsed_seconds * (1 - share) / share);
  return line.substr(0, static_cast<std::size_t>(std::max(columns, 0)));
}

Progress::Progress(std::string label, std::int64_t total)
    : label_(std::move(label)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      next_(start_ + kSilence) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(std::int64_t done) {
  if (!terminal_) return;
  const Clock::time_point now = Clock::now();
  if (now < next_) return;
  next_ = now + kRefresh;
  shown_ = true;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  // One column stays free: a full line would wrap on some terminals.
  const std::string line = progress_line(label_, done, total_, elapsed, terminal_columns() - 1);
  std::fprintf(stderr, "\r%s\x1b[K", line.c_str());
}

}  // namespace shortconv::tools
