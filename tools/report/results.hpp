// The JSON files of `shortconv replay` and `shortconv bench`, checked and typed.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace shortconv::tools::report {

/// Printable name and value, in the order of the file; nested objects are flattened.
using Facts = std::vector<std::pair<std::string, std::string>>;

struct Times {  // microseconds per call
  double p50 = 0;
  double mean = 0;
  double p99 = 0;
};

struct Kind {
  std::string name;
  std::int64_t calls = 0;
  std::int64_t tokens = 0;
  Times host_us, run_us;
  double gb_per_s = 0;
  double copy_ratio = 0;  // run time / copy time
  std::vector<double> run_us_samples;
  std::vector<double> copy_us_samples;
};

struct Run {
  std::string schedule;
  std::vector<Kind> kinds;
};

struct BenchRow {
  std::string name;
  std::string schedule;
  std::string dtype;
  std::string mode;  // cold or warm; of a GPU only
  std::int64_t tokens = 0;
  std::int64_t channels = 0;
  std::int64_t sequences = 0;
  std::int64_t threads = 0;
  double bytes = 0;
  double run_us = 0;
  double host_us = 0;
  double copy_us = 0;
  double gb_per_s = 0;
  double copy_gb_per_s = 0;
  double ratio = 0;  // run time / copy time
};

/// One file. A replay has runs, a bench has rows.
struct Result {
  std::string path;
  std::string command;
  std::string version;
  std::string command_line;
  Facts host, workload, model, scheduler, verification;
  std::vector<Run> runs;
  std::vector<BenchRow> rows;
};

/// A CommandError names the file, the field and what was expected there.
[[nodiscard]] Result read_result(const std::string& path);

}  // namespace shortconv::tools::report
