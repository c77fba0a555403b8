#include "core/thread_count.hpp"

#include <sched.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "core/thread_pool.hpp"

namespace shortconv {
namespace {

// 0 if unknown.
int affinity_processors() {
  std::array<cpu_set_t, 8> processors;  // the kernel refuses a set of fewer than it may have
  if (sched_getaffinity(0, sizeof processors, processors.data()) != 0) return 0;
  return CPU_COUNT_S(sizeof processors, processors.data());
}

// 0: no quota. Version 2 has "QUOTA PERIOD" in one file, version 1 a file for each.
int quota_processors(const std::string& folder, bool version_2) {
  std::int64_t quota = 0, period = 0;
  if (version_2) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::min<std::int64_t>((quota - 1) / period + 1, INT_MAX));
}

// A group is limited by its own quota and those of its parents.
int least_quota(const std::string& root, std::string path, bool version_2) {
  int least = 0;
  for (;;) {
    const int processors = quota_processors(root + path, version_2);
    if (processors > 0 && (least == 0 || processors < least)) least = processors;
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

bool has_cpu_controller(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

std::string text_of(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int parse_thread_count(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  int count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error == std::errc::result_out_of_range && text.front() != '-') return INT_MAX;
  if (error != std::errc{} || count <= 0) return 0;
  const std::string_view rest = text.substr(static_cast<std::size_t>(end - text.data()));
  const std::size_t next = rest.find_first_not_of(" \t");
  return next == std::string_view::npos || rest[next] == ',' ? count : 0;
}

int cgroup_processors(const std::string& groups, const std::string& root) {
  std::istringstream lines(groups);  // "NUMBER:CONTROLLERS:PATH"
  int least = 0;
  for (std::string number, controllers, path; std::getline(lines, number, ':') &&
                                              std::getline(lines, controllers, ':') &&
                                              std::getline(lines, path);) {
    const bool version_2 = controllers.empty();
    if (!version_2 && !has_cpu_controller(controllers)) continue;
    const int processors = least_quota(version_2 ? root : root + "/cpu", path, version_2);
    if (processors > 0 && (least == 0 || processors < least)) least = processors;
  }
  return least;
}

int available_threads() {
  static const int wanted = [] {
    const char* text = std::getenv("OMP_NUM_THREADS");
    return text == nullptr ? 0 : parse_thread_count(text);
  }();
  if (wanted > 0) return std::min(wanted, kMaxThreads);
  static const int quota = cgroup_processors(text_of("/proc/self/cgroup"), "/sys/fs/cgroup");
  int processors = affinity_processors();
  if (quota > 0 && (processors == 0 || quota < processors)) processors = quota;
  return std::clamp(processors, 1, kMaxThreads);
}

}  // namespace shortconv
