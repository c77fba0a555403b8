#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace shortconv::tools {

/// "replay [#########...........]  45%  12 s left" in at most `columns` characters.
[[nodiscard]] std::string progress_line(std::string_view label, std::int64_t done,
                                        std::int64_t total, double elapsed_seconds, int columns);

/// A progress bar on stderr. Silent when stderr is no terminal and while the work is younger than a
/// second; wiped away at the end. To be used from one thread.
class Progress {
 public:
  Progress(std::string label, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::int64_t done);

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  std::int64_t total_;
  bool terminal_;
  bool shown_ = false;
  Clock::time_point start_;
  Clock::time_point next_;
};

}  // namespace shortconv::tools
