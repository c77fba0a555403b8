// How many threads a call uses whose caller does not say.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace shortconv {

/// OMP_NUM_THREADS of the environment, otherwise the processors that the calling thread may run on,
/// limited by the quota of its control group. At least 1, at most kMaxThreads. The environment and
/// the quota are read once.
int available_threads();

/// The value of OMP_NUM_THREADS: a positive number, or a list that starts with one. 0: neither.
int parse_thread_count(std::string_view text);

/// Processors that the quota of the control group grants, rounded up; 0: it has none. `groups` is
/// the text of /proc/self/cgroup, `root` the folder /sys/fs/cgroup.
int cgroup_processors(const std::string& groups, const std::string& root);

}  // namespace shortconv
