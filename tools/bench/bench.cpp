// shortconv bench: named shapes on this machine, each beside a copy of the same number of bytes.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/call_layout.hpp"
#include "bench/measure.hpp"
#include "bench/shapes.hpp"
#include "bench/table.hpp"
#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/error.hpp"
#include "common/host.hpp"
#include "common/json_text.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "common/progress.hpp"
#include "common/text.hpp"
#include "core/thread_count.hpp"
#include "core/thread_pool.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

using bench::CacheMode;
using bench::CallOptions;
using bench::Columns;
using bench::Measurement;
using bench::Row;
using bench::Shape;

struct BenchOptions {
  std::vector<std::string> shapes;
  std::string dtype = "bf16";
  std::string state_dtype;
  std::string weight_dtype;
  int width = 4;
  std::string activation = "silu";
  std::string schedules = "flat";
  std::string backend = "cpu";
  int threads = 0;
  double pitch = 1;
  bool bias = false;
  bool slots_in_order = false;
  bool programmatic_launch = false;
  std::string mode;
  int repeats = 0;
  std::string json;
  bool list = false;
};

std::string shape_list() {
  std::string text;
  for (const Shape& shape : bench::shapes()) {
    text += fmt::format("  {:<20} {:>5} tokens x {:>5} channels: {}{}\n", shape.name,
                        shape.tokens(), shape.channels, shape.description,
                        shape.gpu_only ? " (on a CPU only if named)" : "");
  }
  return text;
}

std::vector<const Shape*> chosen_shapes(const std::vector<std::string>& names, bool on_gpu) {
  std::vector<const Shape*> chosen;
  if (names.empty()) {
    for (const Shape& shape : bench::shapes()) {
      if (on_gpu || !shape.gpu_only) chosen.push_back(&shape);
    }
  }
  for (const std::string& wanted : names) {
    const auto found = std::ranges::find(bench::shapes(), wanted, &Shape::name);
    if (found == bench::shapes().end()) {
      throw CommandError(kExitUsage, fmt::format("--shape: no {}; there are\n{}", in_quotes(wanted),
                                                 shape_list()));
    }
    chosen.push_back(&*found);
  }
  return chosen;
}

using CacheModes = std::vector<CacheMode>;

CacheModes parse_modes(const std::string& text) {
  if (text.empty() || text == "cold") return {CacheMode::kCold};
  if (text == "warm") return {CacheMode::kWarm};
  if (text == "both") return {CacheMode::kCold, CacheMode::kWarm};
  throw CommandError(kExitUsage,
                     fmt::format("--mode: {} is not one of cold, warm, both", in_quotes(text)));
}

CallOptions call_options(const BenchOptions& options) {
  const Capabilities& can = capabilities();
  CallOptions call{
      .dtype = parse_name(can.dtypes, "--dtype", options.dtype),
      .state_dtype = parse_name(can.dtypes, "--state-dtype",
                                options.state_dtype.empty() ? options.dtype : options.state_dtype),
      .weight_dtype =
          parse_name(can.dtypes, "--weight-dtype",
                     options.weight_dtype.empty() ? options.dtype : options.weight_dtype),
      .width = options.width,
      .activation = parse_name(can.activations, "--activation", options.activation),
      .schedule = Schedule::kFlat,
      .backend = parse_name(can.backends, "--backend", options.backend),
      .threads = 0,
      .pitch = options.pitch,
      .has_bias = options.bias,
      .slots_in_order = options.slots_in_order,
      .programmatic_launch = options.programmatic_launch,
  };
  require_available(call.backend);
  if (call.backend == BackendId::kCuda) {
    if (options.threads > 0) throw CommandError(kExitUsage, "--threads: there are none on a GPU");
  } else {
    if (!options.mode.empty()) {
      throw CommandError(kExitUsage, "--mode: goes with --backend cuda only");
    }
    if (options.programmatic_launch) {
      throw CommandError(kExitUsage, "--programmatic-launch: goes with --backend cuda only");
    }
    call.threads = options.threads;
  }
  return call;
}

struct Planned {
  const Shape* shape;
  CallOptions options;
};

// Everything of the run before anything is measured: a mistake in an option shows at once.
std::vector<Planned> plan_rows(const BenchOptions& options, CallOptions call) {
  std::vector<Schedule> schedules;
  for (const std::string& text : split_commas(options.schedules)) {
    schedules.push_back(parse_name(capabilities().schedules, "--schedule", text));
  }
  if (schedules.empty()) {
    throw CommandError(kExitUsage, fmt::format("--schedule: {} names none; expected some of {}",
                                               in_quotes(options.schedules),
                                               list_names(capabilities().schedules)));
  }
  std::vector<Planned> rows;
  for (const Shape* shape : chosen_shapes(options.shapes, call.backend == BackendId::kCuda)) {
    for (const Schedule schedule : schedules) {
      const bool choice = shape->op == Op::kForward && !shape->gradients && !shape->front &&
                          !shape->in_place && shape->snapshots() == 0;
      if (!choice && schedule != schedules.front()) continue;  // has no schedule to choose
      call.schedule = choice ? schedule : Schedule::kFlat;
      rows.push_back({shape, call});
    }
  }
  return rows;
}

Columns columns_of(const std::vector<Planned>& rows, bool on_gpu) {
  if (!on_gpu) return Columns::kCpu;
  const auto has_gradients = [](const Planned& row) { return row.shape->gradients; };
  return std::ranges::any_of(rows, has_gradients) ? Columns::kGpuWithTwoReads : Columns::kGpu;
}

std::string dtypes_text(const CallOptions& call) {
  std::string text(shortconv::name(call.dtype));
  if (call.dtype_of_states() != call.dtype) {
    text += fmt::format(" with states of {}", shortconv::name(call.dtype_of_states()));
  }
  if (call.dtype_of_weights() != call.dtype) {
    text += fmt::format(" with weights of {}", shortconv::name(call.dtype_of_weights()));
  }
  return text;
}

void run_bench(const BenchOptions& options, const std::vector<std::string>& arguments) {
  if (options.list) {
    write_stdout(shape_list());
    return;
  }
  check_writable(options.json);
  const CallOptions call = call_options(options);
  const CacheModes modes = parse_modes(options.mode);
  const std::vector<Planned> planned = plan_rows(options, call);
  const bool on_gpu = call.backend == BackendId::kCuda;
  const std::unique_ptr<Measurement> measurement =
      on_gpu ? bench::measure_on_gpu(modes, options.repeats)
             : bench::measure_on_cpu(call.threads > 0 ? call.threads : available_threads(),
                                     options.repeats);

  const bool json_on_stdout = options.json == "-";
  const Columns columns = columns_of(planned, on_gpu);
  if (!json_on_stdout) {
    write_stdout(fmt::format("{}, width {}, {}, {}; medians\n{}{}", dtypes_text(call),
                             options.width, options.activation, measurement->place(),
                             measurement->preface(), bench::table_header(columns)));
  }
  Progress progress("bench", std::ssize(planned));
  auto json_rows = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < planned.size(); ++i) {
    for (const Row& row : measurement->measure(*planned[i].shape, planned[i].options)) {
      json_rows.push_back(bench::to_json(row));
      if (!json_on_stdout) write_stdout(bench::table_line(row, columns));
    }
    progress.update(static_cast<std::int64_t>(i) + 1);
  }
  if (options.json.empty()) return;
  const nlohmann::ordered_json result = {{"command", "bench"},
                                         {"version", library_version()},
                                         {"arguments", arguments},
                                         {"host", measurement->describe()},
                                         {"rows", json_rows}};
  write_output(options.json, dump_json(result, 2) + "\n");
}

constexpr const char* kFooter =
    R"(copy us: a copy that moves the same bytes (inputs, outputs and states once each way). Shapes back-...
are gradients: of x, of the weights in fp32, and of all that the shape has besides.

On a CPU. run us: the call alone. host us: lists of the schedule, checks and plan, before it. The
copy takes turns with the call and has the same threads. x copy: copy time / run time. The buffers
stay the same, so the small shapes run from cache, and so do their copies.

On a GPU. run us and copy us: of one among many in a graph. cold: they take turns on sets of buffers
that are together more than three times the level-2 cache (cold*: would be, if 64 sets were enough);
warm: all on the same. ratio: run / copy, +us: run - copy. plan us: time of the host for lengths and
lists of the schedule, where it needs them, checks and plan; launch us: for the call itself.
2 reads us, of gradients: a pass that reads two arrays, writes one and moves the same bytes.
)";

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("bench", "Measure named shapes beside a copy of the same bytes");
  auto options = std::make_shared<BenchOptions>();
  command->add_option("--shape", options->shapes, "One or more of --list (default: all)");
  command->add_option("--dtype", options->dtype, "Of x and out")->capture_default_str();
  command->add_option("--state-dtype", options->state_dtype,
                      "Of states and windows (default: that of x)");
  command->add_option("--weight-dtype", options->weight_dtype,
                      "Of weights and bias (default: that of x)");
  command->add_option("--width", options->width, "Taps")
      ->check(whole_number(2, capabilities().max_width))
      ->capture_default_str();
  command->add_option("--activation", options->activation)->capture_default_str();
  command->add_option("--schedule", options->schedules, "One or several, with commas")
      ->capture_default_str();
  command->add_option("--backend", options->backend)->capture_default_str();
  command
      ->add_option("--threads", options->threads,
                   "0: as many as the library finds; small calls use fewer")
      ->check(whole_number(0, kMaxThreads))
      ->capture_default_str();
  command
      ->add_option("--pitch", options->pitch,
                   "Distance of the rows of x and out as a multiple of their length")
      ->check(real_number(1, 64))
      ->capture_default_str();
  command->add_option("--mode", options->mode, "GPU: cold (default), warm or both");
  command->add_flag("--bias", options->bias, "With a bias, as Mamba has one");
  command->add_flag("--slots-in-order", options->slots_in_order,
                    "State of sequence s in slot s, without an array that says so");
  command->add_flag("--programmatic-launch", options->programmatic_launch,
                    "GPU: calls start while the kernel before is ending");
  add_measuring_options(*command, options->repeats, options->json);
  command->add_flag("--list", options->list, "Print the shapes and stop");
  command->footer(kFooter);
  command->callback([command, options] { run_bench(*options, given_arguments(*command)); });
}

}  // namespace shortconv::tools
