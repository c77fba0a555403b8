#include "report/results.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/json_text.hpp"
#include "common/text.hpp"

namespace shortconv::tools::report {
namespace {

using Json = nlohmann::ordered_json;

// A value of the file that knows where it stands, for messages.
class Node {
 public:
  Node(const Json& value, std::string file, std::string where)
      : value_(value), file_(std::move(file)), where_(std::move(where)) {}

  [[nodiscard]] Node at(std::string_view key) const {
    expect(value_.is_object(), "an object");
    const auto found = value_.find(std::string(key));
    const std::string where = where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key);
    if (found == value_.end()) throw failure(where, "is missing");
    return {*found, file_, where};
  }

  [[nodiscard]] bool has(std::string_view key) const {
    return value_.is_object() && value_.contains(std::string(key));
  }

  [[nodiscard]] std::vector<Node> items() const {
    expect(value_.is_array(), "an array");
    std::vector<Node> items;
    for (const Json& item : value_) {
      items.emplace_back(item, file_, fmt::format("{}[{}]", where_, items.size()));
    }
    return items;
  }

  [[nodiscard]] std::string text() const {
    expect(value_.is_string(), "a string");
    return value_.get<std::string>();
  }

  [[nodiscard]] double number() const {
    expect(value_.is_number() && std::isfinite(value_.get<double>()), "a number");
    return value_.get<double>();
  }

  // A figure that cannot be negative; also keeps the conversion to an integer defined.
  [[nodiscard]] double amount() const {
    expect(number() >= 0 && number() < 1e18, "a number from 0 on");
    return number();
  }
  [[nodiscard]] std::int64_t count() const { return static_cast<std::int64_t>(amount()); }

  [[nodiscard]] std::vector<double> amounts() const {
    std::vector<double> amounts;
    for (const Node& item : items()) amounts.push_back(item.amount());
    return amounts;
  }

  [[nodiscard]] Facts facts() const {
    expect(value_.is_object(), "an object");
    Facts facts;
    flatten(value_, "", facts);
    return facts;
  }

 private:
  void expect(bool condition, std::string_view what) const {
    if (!condition) throw failure(where_, fmt::format("expected {}", what));
  }
  [[nodiscard]] CommandError failure(const std::string& where, std::string_view what) const {
    return {kExitUsage, fmt::format("{}{}{}: {}", file_, where.empty() ? "" : ": ", where, what)};
  }

  static void flatten(const Json& object, const std::string& prefix, Facts& facts) {
    for (const auto& [key, value] : object.items()) {
      std::string label = prefix + key;
      for (char& c : label) c = c == '_' ? ' ' : c;
      if (value.is_object()) {
        flatten(value, label + " ", facts);
      } else if (value.is_string()) {
        facts.emplace_back(label, value.get<std::string>());
      } else {
        facts.emplace_back(label, dump_json(value));
      }
    }
  }

  const Json& value_;
  std::string file_;
  std::string where_;
};

Times read_times(const Node& node) {
  return {.p50 = node.at("p50").amount(),
          .mean = node.at("mean").amount(),
          .p99 = node.at("p99").amount()};
}

Kind read_kind(const Node& node) {
  return {.name = node.at("kind").text(),
          .calls = node.at("calls").count(),
          .tokens = node.at("tokens").count(),
          .host_us = read_times(node.at("host_us")),
          .run_us = read_times(node.at("run_us")),
          .gb_per_s = node.at("gb_per_s").amount(),
          .copy_ratio = node.at("copy_ratio").amount(),
          .run_us_samples = node.at("run_us_samples").amounts(),
          .copy_us_samples = node.at("copy_us_samples").amounts()};
}

Run read_run(const Node& node) {
  Run run{.schedule = node.at("schedule").text(), .kinds = {}};
  for (const Node& kind : node.at("kinds").items()) run.kinds.push_back(read_kind(kind));
  return run;
}

BenchRow read_row(const Node& node) {
  return {.name = node.at("case").text(),
          .schedule = node.at("schedule").text(),
          .dtype = node.at("dtype").text(),
          .mode = node.has("mode") ? node.at("mode").text() : "",
          .tokens = node.at("tokens").count(),
          .channels = node.at("channels").count(),
          .sequences = node.at("sequences").count(),
          .threads = node.at("threads").count(),
          .bytes = node.at("bytes").amount(),
          .run_us = node.at("run_us").amount(),
          .host_us = node.at("host_us").amount(),
          .copy_us = node.at("copy_us").amount(),
          .gb_per_s = node.at("gb_per_s").amount(),
          .copy_gb_per_s = node.at("copy_gb_per_s").amount(),
          .ratio = node.at("ratio").amount()};
}

}  // namespace

Result read_result(const std::string& path) {
  const std::string name = input_name(path);
  const Json json = parse_json_object<Json>(read_input(path), name);
  const Node root(json, name, "");
  Result result;
  result.path = path;
  result.command = root.at("command").text();
  result.version = root.at("version").text();
  for (const Node& argument : root.at("arguments").items()) {
    if (!result.command_line.empty()) result.command_line += ' ';
    result.command_line += argument.text();
  }
  result.host = root.at("host").facts();
  if (result.command == "replay") {
    result.workload = root.at("workload").facts();
    result.model = root.at("model").facts();
    result.scheduler = root.at("scheduler").facts();
    result.verification = root.at("verification").facts();
    for (const Node& run : root.at("runs").items()) result.runs.push_back(read_run(run));
  } else if (result.command == "bench") {
    for (const Node& row : root.at("rows").items()) result.rows.push_back(read_row(row));
  } else {
    throw CommandError(kExitUsage,
                       fmt::format("{}: command: {} has no results to show; expected replay or "
                                   "bench",
                                   name, in_quotes(result.command)));
  }
  return result;
}

}  // namespace shortconv::tools::report
