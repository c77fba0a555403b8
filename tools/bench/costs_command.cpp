// shortconv costs: kernel of each kind of call, and how long it takes beside a copy of the same
// bytes.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "bench/costs.hpp"
#include "bench/kernel_choice.hpp"
#include "bench/measure.hpp"
#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/error.hpp"
#include "common/gpu.hpp"
#include "common/host.hpp"
#include "common/json_text.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "common/progress.hpp"

namespace shortconv::tools {
namespace {

using bench::CacheMode;
using bench::Cost;
using bench::Measurement;
using bench::Row;

struct CostsOptions {
  std::vector<std::string> parts;  // of names of cases; empty: all
  bool kernels_only = false;
  int repeats = 0;
  std::string json;
};

std::vector<Cost> chosen_costs(const std::vector<std::string>& parts) {
  const std::span<const Cost> all = bench::costs();
  if (parts.empty()) return {all.begin(), all.end()};
  const auto has_part = [](const Cost& cost, const std::string& part) {
    return cost.shape.name.find(part) != std::string::npos;
  };
  for (const std::string& part : parts) {
    if (std::ranges::none_of(all, [&](const Cost& cost) { return has_part(cost, part); })) {
      throw CommandError(kExitUsage,
                         fmt::format("PART: no case has {} in its name; expected a part of one of "
                                     "those that shortconv costs --kernels-only prints",
                                     in_quotes(part)));
    }
  }
  std::vector<Cost> chosen;
  std::ranges::copy_if(all, std::back_inserter(chosen), [&](const Cost& cost) {
    return std::ranges::any_of(parts,
                               [&](const std::string& part) { return has_part(cost, part); });
  });
  return chosen;
}

void run_costs(const CostsOptions& options, const std::vector<std::string>& arguments) {
  check_writable(options.json);
  const std::vector<Cost> costs = chosen_costs(options.parts);
  std::unique_ptr<Measurement> measurement;
  int multiprocessors = bench::kMultiprocessorsOfH200;
  if (!options.kernels_only) {
    require_available(BackendId::kCuda);
    measurement = bench::measure_on_gpu({CacheMode::kCold}, options.repeats);
    multiprocessors = describe_gpu().multiprocessors;
  }
  const bool prints = options.json != "-";
  if (prints) write_stdout(bench::cost_header(measurement != nullptr));
  Progress progress("costs", std::ssize(costs));
  auto rows = nlohmann::ordered_json::array();
  for (const Cost& cost : costs) {
    const std::string kernel = bench::chosen_kernel(cost.shape, cost.options, multiprocessors);
    std::vector<Row> measured;
    if (measurement) measured = measurement->measure(cost.shape, cost.options);
    const Row* row = measured.empty() ? nullptr : &measured.front();
    rows.push_back(bench::to_json(cost, kernel, row));
    if (prints) write_stdout(bench::cost_line(cost, kernel, row));
    progress.update(std::ssize(rows));
  }
  if (options.json.empty()) return;
  nlohmann::ordered_json result = {
      {"command", "costs"}, {"version", library_version()}, {"arguments", arguments}};
  if (measurement) result["host"] = measurement->describe();
  result["rows"] = std::move(rows);
  write_output(options.json, dump_json(result, 2) + "\n");
}

constexpr const char* kFooter =
    R"(case: operation, width, types (-w32, -s32, -ws32: weights, states or both of f32) and feature.
ragged: a prefill of 64 sequences. run us and copy us: as bench --programmatic-launch has them, cold.)";

}  // namespace

void add_costs_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "costs", "Kernel and time of every kind of call on a GPU, beside a copy of the same bytes");
  auto options = std::make_shared<CostsOptions>();
  command->add_option("parts", options->parts, "Only cases whose names have one of these parts")
      ->type_name("PART");
  command->add_flag("--kernels-only", options->kernels_only,
                    "Print the kernels that an H200 would run, without a GPU");
  add_measuring_options(*command, options->repeats, options->json);
  command->footer(kFooter);
  command->callback([command, options] { run_costs(*options, given_arguments(*command)); });
}

}  // namespace shortconv::tools
