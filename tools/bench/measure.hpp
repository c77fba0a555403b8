// How a shape is measured: on the CPU with a clock around the call, on the GPU with graphs of many
// calls.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/call_layout.hpp"
#include "bench/shapes.hpp"

namespace shortconv::tools::bench {

/// What a GPU's cache holds when a call starts: something else, or what the call reads.
enum class CacheMode { kCold, kWarm };

struct GpuTimes {
  CacheMode mode = CacheMode::kCold;
  int sets = 1;
  int calls = 1;           // of one graph
  bool past_cache = true;  // the sets are together what number_of_sets wants
  double plan_us = 0;      // host: lengths and lists of the schedule, checks, plan
  double launch_us = 0;    // host: run with a ready plan
  double bare_launch_us = 0;
  double empty_us = 0;  // an empty kernel in place of each call
  // Of calls that may overlap with their neighbours: a copy that does too.
  std::optional<double> overlapped_copy_us = {};
  // Of backward calls: a pass that reads two arrays and writes one, and moves as many bytes.
  std::optional<double> two_reads_us = {};
};

/// Microseconds are medians.
struct Row {
  const Shape* shape = nullptr;
  CallOptions options;
  std::int64_t bytes = 0;
  double run_us = 0;
  double copy_us = 0;  // of a copy that moves as many bytes
  double host_us = 0;  // CPU: before the call; GPU: until it is launched
  std::optional<GpuTimes> gpu = {};

  [[nodiscard]] double ratio() const { return run_us / copy_us; }
};

class Measurement {
 public:
  virtual ~Measurement() = default;

  /// Where it runs, as part of a title.
  [[nodiscard]] virtual std::string place() = 0;

  /// Lines that belong above the table, or nothing.
  [[nodiscard]] virtual std::string preface() { return {}; }

  /// For the result file, as describe_host.
  [[nodiscard]] virtual nlohmann::ordered_json describe() = 0;

  /// One row per cache mode.
  [[nodiscard]] virtual std::vector<Row> measure(const Shape& shape,
                                                 const CallOptions& options) = 0;
};

/// `repeats` of everything that is timed; 0 = until the time that this kind of measurement takes is
/// spent.
[[nodiscard]] std::unique_ptr<Measurement> measure_on_cpu(int threads, int repeats);
[[nodiscard]] std::unique_ptr<Measurement> measure_on_gpu(std::vector<CacheMode> modes,
                                                          int repeats);

/// How many calls a graph holds: whole turns of the sets, two at least.
[[nodiscard]] int calls_of_graph(int sets);

template <typename Work>
[[nodiscard]] double wall_microseconds(Work&& work) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  work();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

}  // namespace shortconv::tools::bench
