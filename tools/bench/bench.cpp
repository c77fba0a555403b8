// shortconv bench: named shapes on this machine, each beside a copy of the same number of bytes.
#include <fmt/format.h>
#include <omp.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/call.hpp"
#include "bench/shapes.hpp"
#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/copy.hpp"
#include "common/error.hpp"
#include "common/host.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "common/progress.hpp"
#include "common/statistics.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

using bench::Call;
using bench::CallOptions;
using bench::Shape;

struct BenchOptions {
  std::vector<std::string> shapes;
  std::string dtype = "bf16";
  int width = 4;
  std::string activation = "silu";
  std::string schedules = "flat";
  std::string backend = "cpu";
  int threads = 0;
  int repeats = 0;
  std::string json;
  bool list = false;
};

struct Row {
  const Shape* shape;
  CallOptions options;
  std::int64_t bytes = 0;
  double host_us = 0;
  double run_us = 0;
  double copy_us = 0;

  [[nodiscard]] double ratio() const { return run_us / copy_us; }
};

template <typename Work>
double microseconds(Work&& work) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  work();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Calls and copies take turns, so that both see the same machine: clocks, neighbours, page tables.
Row measure(const Shape& shape, const CallOptions& options, int repeats) {
  constexpr int kWarmups = 2;
  constexpr int kFewest = 15, kMost = 2000;
  constexpr double kEnoughMicroseconds = 1e6;

  Call call(shape, options);
  Row row{&shape, options, call.bytes()};
  const bench::RandomBuffer source(DType::kF32, row.bytes / 8 + 1, options.threads);
  const bench::RandomBuffer target(DType::kF32, row.bytes / 8 + 1, options.threads);

  std::vector<double> host, run, copy;
  double spent = 0;
  const int fewest = repeats > 0 ? repeats : kFewest;
  const int most = repeats > 0 ? repeats : kMost;
  for (int i = -kWarmups; i < fewest || (i < most && spent < kEnoughMicroseconds); ++i) {
    const double host_us = microseconds([&] { call.prepare(); });
    const double run_us = microseconds([&] { call.run(); });
    const double copy_us = microseconds([&] {
      parallel_copy(target.data(), source.data(), static_cast<std::size_t>(row.bytes / 2),
                    options.threads);
    });
    if (i < 0) continue;
    host.push_back(host_us);
    run.push_back(run_us);
    copy.push_back(copy_us);
    spent += run_us + copy_us;
  }
  row.host_us = median(std::move(host));
  row.run_us = median(std::move(run));
  row.copy_us = median(std::move(copy));
  return row;
}

double gigabytes_per_second(std::int64_t bytes, double us) {
  return static_cast<double>(bytes) / us * 1e-3;
}

std::string table_header() {
  return fmt::format("{:<14} {:<13} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7}\n",
                     "case", "schedule", "tokens", "seqs", "channels", "MB", "run us", "host us",
                     "copy us", "GB/s", "copy", "x copy");
}

std::string table_line(const Row& row) {
  return fmt::format(
      "{:<14} {:<13} {:>6} {:>6} {:>9} {:>9.2f} {:>9.1f} {:>9.1f} {:>9.1f} {:>7.1f} {:>7.1f} "
      "{:>7.2f}\n",
      row.shape->name, name(row.options.schedule), row.shape->tokens(), row.shape->sequences(),
      row.shape->channels, static_cast<double>(row.bytes) * 1e-6, row.run_us, row.host_us,
      row.copy_us, gigabytes_per_second(row.bytes, row.run_us),
      gigabytes_per_second(row.bytes, row.copy_us), 1 / row.ratio());
}

nlohmann::ordered_json to_json(const Row& row) {
  return {{"case", row.shape->name},
          {"schedule", name(row.options.schedule)},
          {"dtype", name(row.options.dtype)},
          {"width", row.options.width},
          {"activation", name(row.options.activation)},
          {"tokens", row.shape->tokens()},
          {"channels", row.shape->channels},
          {"sequences", row.shape->sequences()},
          {"threads", row.options.threads},
          {"bytes", row.bytes},
          {"run_us", row.run_us},
          {"host_us", row.host_us},
          {"copy_us", row.copy_us},
          {"gb_per_s", gigabytes_per_second(row.bytes, row.run_us)},
          {"copy_gb_per_s", gigabytes_per_second(row.bytes, row.copy_us)},
          {"ratio", row.ratio()}};
}

std::string shape_list() {
  std::string text;
  for (const Shape& shape : bench::shapes()) {
    text += fmt::format("  {:<14} {:>5} tokens x {:>5} channels: {}\n", shape.name, shape.tokens(),
                        shape.channels, shape.description);
  }
  return text;
}

std::vector<const Shape*> chosen_shapes(const std::vector<std::string>& names) {
  std::vector<const Shape*> chosen;
  if (names.empty()) {
    for (const Shape& shape : bench::shapes()) chosen.push_back(&shape);
  }
  for (const std::string& wanted : names) {
    const auto found = std::ranges::find(bench::shapes(), wanted, &Shape::name);
    if (found == bench::shapes().end()) {
      throw CommandError(kExitUsage,
                         fmt::format("--shape: no '{}'; there are\n{}", wanted, shape_list()));
    }
    chosen.push_back(&*found);
  }
  return chosen;
}

// Every row of the run, before anything is measured: a mistake in an option shows at once.
std::vector<Row> plan_rows(const BenchOptions& options) {
  const Capabilities& can = capabilities();
  CallOptions call{
      .dtype = parse_name(can.dtypes, "--dtype", options.dtype),
      .width = options.width,
      .activation = parse_name(can.activations, "--activation", options.activation),
      .schedule = Schedule::kFlat,
      .backend = parse_name(can.backends, "--backend", options.backend),
      .threads = options.threads > 0 ? options.threads : omp_get_max_threads(),
  };
  std::vector<Schedule> schedules;
  for (const std::string& text : split_commas(options.schedules)) {
    schedules.push_back(parse_name(can.schedules, "--schedule", text));
  }
  std::vector<Row> rows;
  for (const Shape* shape : chosen_shapes(options.shapes)) {
    for (const Schedule schedule : schedules) {
      const bool decode = shape->op == Op::kDecode;
      if (decode && schedule != schedules.front()) continue;  // has no schedule to choose
      call.schedule = decode ? Schedule::kFlat : schedule;
      rows.push_back({shape, call});
    }
  }
  return rows;
}

void run_bench(const BenchOptions& options, const std::vector<std::string>& arguments) {
  if (options.list) {
    fmt::print("{}", shape_list());
    return;
  }
  check_writable(options.json);
  std::vector<Row> rows = plan_rows(options);
  const bool json_on_stdout = options.json == "-";
  if (!json_on_stdout) {
    fmt::print("{}, width {}, {}, {} threads; medians\n{}", options.dtype, options.width,
               options.activation, rows.front().options.threads, table_header());
  }
  Progress progress("bench", std::ssize(rows));
  auto json_rows = nlohmann::ordered_json::array();
  for (Row& row : rows) {
    row = measure(*row.shape, row.options, options.repeats);
    json_rows.push_back(to_json(row));
    if (!json_on_stdout) {
      fmt::print("{}", table_line(row));
      std::fflush(stdout);
    }
    progress.update(std::ssize(json_rows));
  }
  if (options.json.empty()) return;
  const nlohmann::ordered_json result = {{"command", "bench"},
                                         {"version", library_version()},
                                         {"arguments", arguments},
                                         {"host", describe_host()},
                                         {"rows", json_rows}};
  write_output(options.json, result.dump(2) + "\n");
}

constexpr const char* kFooter =
    "run us: the call alone. host us: lists of the schedule, checks and plan, before it. copy us: "
    "a\n"
    "copy that moves the same bytes (inputs, outputs and states once each way) with the same "
    "threads,\n"
    "measured in turns with the call. x copy: copy time / run time. The buffers stay the same, so "
    "the\n"
    "small shapes run from cache, and so do their copies.\n";

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("bench", "Measure named shapes beside a copy of the same bytes");
  auto options = std::make_shared<BenchOptions>();
  command->add_option("--shape", options->shapes, "One or more of --list (default: all)");
  command->add_option("--dtype", options->dtype, "Of all tensors")->capture_default_str();
  command->add_option("--width", options->width, "Taps")
      ->check(CLI::Range(2, capabilities().max_width))
      ->capture_default_str();
  command->add_option("--activation", options->activation)->capture_default_str();
  command->add_option("--schedule", options->schedules, "One or several, with commas")
      ->capture_default_str();
  command->add_option("--backend", options->backend)->capture_default_str();
  command->add_option("--threads", options->threads, "0: as many as OpenMP offers")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "0: about a second a row")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--json", options->json, "Also write the rows to FILE; - is stdout, alone");
  command->add_flag("--list", options->list, "Print the shapes and stop");
  command->footer(kFooter);
  command->callback([command, options] { run_bench(*options, given_arguments(*command)); });
}

}  // namespace shortconv::tools
