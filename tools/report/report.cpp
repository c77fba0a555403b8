// shortconv report: one HTML page from results of replay and bench, with nothing to fetch or run.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/output_file.hpp"
#include "common/text.hpp"
#include "report/plots.hpp"
#include "report/results.hpp"
#include "report/svg.hpp"

namespace shortconv::tools {
namespace {

using report::BenchRow;
using report::escape_xml;
using report::Facts;
using report::Figure;
using report::format_us;
using report::Kind;
using report::Result;
using report::Run;

constexpr std::string_view kStyle = R"(
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff;
       max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
svg { max-width: 100%; height: auto; font-family: inherit; }
figure { margin: 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #888; font-weight: 600; }
td:first-child, th:first-child { text-align: left; }
tr:hover td { background: #f3f3f3; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: 13px;
     margin: 0; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: 13px; }
)";

using Cells = std::vector<std::string>;

std::string table(const Cells& header, const std::vector<Cells>& rows) {
  const auto line = [](const Cells& cells, std::string_view tag) {
    std::string text = "<tr>";
    for (const std::string& cell : cells)
      text += fmt::format("<{0}>{1}</{0}>", tag, escape_xml(cell));
    return text + "</tr>\n";
  };
  std::string text = "<figure><table>\n" + line(header, "th");
  for (const Cells& cells : rows) text += line(cells, "td");
  return text + "</table></figure>\n";
}

std::string facts_section(std::string_view title, const Facts& facts) {
  if (facts.empty()) return "";
  std::string text = fmt::format("<h3>{}</h3>\n<dl>\n", title);
  for (const auto& [label, value] : facts) {
    text += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape_xml(label), escape_xml(value));
  }
  return text + "</dl>\n";
}

std::string replay_table(const Result& result) {
  std::vector<Cells> rows;
  for (const Run& run : result.runs) {
    for (const Kind& kind : run.kinds) {
      rows.push_back({fmt::format("{}, {}", kind.name, run.schedule), std::to_string(kind.calls),
                      std::to_string(kind.tokens), format_us(kind.host_us.p50),
                      format_us(kind.host_us.mean), format_us(kind.host_us.p99),
                      format_us(kind.run_us.p50), format_us(kind.run_us.mean),
                      format_us(kind.run_us.p99), fmt::format("{:.1f}", kind.gb_per_s),
                      fmt::format("{:.2f}", kind.copy_ratio)});
    }
  }
  return table({"kind of call", "calls", "tokens", "host p50", "mean", "p99", "run p50", "mean",
                "p99", "GB/s", "run / copy"},
               rows);
}

std::string bench_table(const Result& result) {
  std::vector<Cells> rows;
  for (const BenchRow& row : result.rows) {
    const std::string mode = row.mode.empty() ? "" : ", " + row.mode;
    rows.push_back({fmt::format("{}, {}{}", row.name, row.schedule, mode), row.dtype,
                    std::to_string(row.tokens), std::to_string(row.channels),
                    std::to_string(row.sequences), std::to_string(row.threads),
                    report::format_bytes(row.bytes), format_us(row.host_us), format_us(row.run_us),
                    format_us(row.copy_us), fmt::format("{:.1f}", row.gb_per_s),
                    fmt::format("{:.1f}", row.copy_gb_per_s), fmt::format("{:.2f}", row.ratio)});
  }
  return table({"case", "type", "tokens", "channels", "seqs", "threads", "moved", "host", "run",
                "copy", "GB/s", "copy GB/s", "run / copy"},
               rows);
}

std::string section_of(const Result& result) {
  std::string text = fmt::format(
      "<h2>{}: {}</h2>\n<p><code>shortconv {}</code><br>shortconv {}</p>\n",
      result.command == "replay" ? "Replay" : "Bench", escape_xml(input_name(result.path)),
      escape_xml(result.command_line), escape_xml(result.version));
  for (const Figure& figure : report::figures_of(result)) {
    text += fmt::format("<h3>{}</h3>\n<figure>\n{}</figure>\n", figure.title, figure.svg);
  }
  text += "<h3>Numbers</h3>\n";
  text += result.command == "replay" ? replay_table(result) : bench_table(result);
  text += facts_section("Requests", result.workload);
  text += facts_section("Model", result.model);
  text += facts_section("Scheduler", result.scheduler);
  text += facts_section("Verification", result.verification);
  return text + facts_section("Machine", result.host);
}

std::string page(const std::vector<Result>& results) {
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width\">\n<title>shortconv report</title>\n"
      "<style>{}</style>\n</head>\n<body>\n<h1>shortconv report</h1>\n",
      kStyle);
  for (const Result& result : results) text += section_of(result);
  return text + "</body>\n</html>\n";
}

struct ReportOptions {
  std::vector<std::string> inputs;
  std::string output;
  std::string svg_folder;
};

struct Output {
  std::string path;
  std::string text;
};

// A file of its own for each figure, called after the file of the result.
std::vector<Output> figure_files(const std::string& folder, const std::vector<Result>& results) {
  std::vector<Output> files;
  std::set<std::string> stems;
  for (const Result& result : results) {
    const std::string stem =
        result.path == "-" ? "stdin" : std::filesystem::path(result.path).stem().string();
    if (!stems.insert(stem).second) {
      throw CommandError(kExitUsage,
                         fmt::format("--svg: two results are called {}", in_quotes(stem)));
    }
    for (Figure& figure : report::figures_of(result)) {
      files.push_back(
          {fmt::format("{}/{}-{}.svg", folder, stem, figure.file_name), std::move(figure.svg)});
    }
  }
  return files;
}

void make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error) return;
  throw CommandError(kExitUsage, fmt::format("--svg: {}: {}", printable(folder), error.message()));
}

// Refuses results and output files that are given twice.
void check_names(const ReportOptions& options) {
  if (options.output.empty() && options.svg_folder.empty()) {
    throw CommandError(kExitUsage, "report: give --output FILE, --svg DIR or both");
  }
  if (options.svg_folder == "-") {
    throw CommandError(kExitUsage,
                       "--svg: - (standard output) takes one file only; expected a folder");
  }
  if (std::ranges::count(options.inputs, "-") > 1) {
    throw CommandError(kExitUsage, "report: - (standard input) is given twice");
  }
}

// Everything is read and checked before anything is written.
void make_report(const ReportOptions& options) {
  check_names(options);
  check_writable(options.output, options.inputs);
  std::vector<Result> results;
  for (const std::string& path : options.inputs) results.push_back(report::read_result(path));
  std::vector<Output> files;
  if (!options.svg_folder.empty()) {
    files = figure_files(options.svg_folder, results);
    make_folder(options.svg_folder);
  }
  for (const Output& file : files) {
    check_writable(file.path, options.inputs);
    std::error_code ignored;
    const auto whole = [&](const std::string& path) {
      return std::filesystem::weakly_canonical(std::filesystem::absolute(path, ignored), ignored);
    };
    if (!options.output.empty() && whole(file.path) == whole(options.output)) {
      throw CommandError(kExitUsage, fmt::format("{}: --output and a figure of --svg are the same "
                                                 "file",
                                                 printable(options.output)));
    }
  }
  for (const Output& file : files) write_output(file.path, file.text);
  if (!options.output.empty()) write_output(options.output, page(results));
}

}  // namespace

void add_report_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("report", "Make one HTML page from results of replay and bench");
  auto options = std::make_shared<ReportOptions>();
  command->add_option("results", options->inputs, "Files written with --json; - is standard input")
      ->check(file_name())
      ->required();
  command->add_option("-o,--output", options->output, "The page; - is standard output")
      ->check(file_name());
  command->add_option("--svg", options->svg_folder, "Write each figure into a file of this folder")
      ->type_name("DIR")
      ->check(file_name());
  command->callback([options] { make_report(*options); });
}

}  // namespace shortconv::tools
