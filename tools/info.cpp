#include "info.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <memory>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "common/host.hpp"
#include "common/json_text.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;

Rows support_rows() {
  const Capabilities& can = capabilities();
  std::vector<std::string_view> backends;
  for (const auto& [id, label] : can.backends) {
    if (id != BackendId::kAuto) backends.push_back(label);
  }
  return {
      {"width",
       fmt::format(
           "{}, on a GPU with all kernels for {}; any other up to {} by a slower general path",
           fmt::join(can.widths, ", "), fmt::join(can.model_widths, ", "), can.max_width)},
      {"dtype of inputs, outputs, weights, states", list_names(can.dtypes)},
      {"activation", list_names(can.activations)},
      {"after the activation", list_names(can.epilogues)},
      {"schedule of a ragged batch", list_names(can.schedules)},
      {"rows of padding", list_names(can.padded_rows)},
      {"backend", fmt::format("{}; cuda where it was built with nvcc", fmt::join(backends, ", "))},
  };
}

template <typename T>
nlohmann::ordered_json names_json(std::span<const Named<T>> values) {
  auto names = nlohmann::ordered_json::array();
  for (const Named<T>& entry : values) names.push_back(entry.name);
  return names;
}

struct InfoOptions {
  bool json = false;
  bool support_table = false;
};

}  // namespace

std::string support_table() {
  std::string text = "| | supported |\n|---|---|\n";
  for (const auto& [what, values] : support_rows()) {
    text += fmt::format("| {} | {} |\n", what, values);
  }
  return text;
}

std::string info_text() {
  std::string text = fmt::format("shortconv {}\n\nBackends\n", library_version());
  for (const BackendInfo& backend : backend_info()) {
    text += fmt::format("  {:<10} {:<12} {}\n", backend.name,
                        backend.available ? "available" : "unavailable", backend.detail);
  }
  text += "\nCapabilities\n";
  for (const auto& [what, values] : support_rows()) {
    text += fmt::format("  {:<42} {}\n", what, values);
  }
  return text;
}

nlohmann::ordered_json info_json() {
  const Capabilities& can = capabilities();
  auto backends = nlohmann::ordered_json::array();
  for (const BackendInfo& backend : backend_info()) {
    backends.push_back(
        {{"name", backend.name}, {"available", backend.available}, {"detail", backend.detail}});
  }
  return {{"command", "info"},
          {"version", library_version()},
          {"host", describe_host()},
          {"backends", std::move(backends)},
          {"capabilities",
           {{"widths", std::vector<int>(can.widths.begin(), can.widths.end())},
            {"model_widths", std::vector<int>(can.model_widths.begin(), can.model_widths.end())},
            {"max_width", can.max_width},
            {"dtypes", names_json(can.dtypes)},
            {"activations", names_json(can.activations)},
            {"epilogues", names_json(can.epilogues)},
            {"schedules", names_json(can.schedules)},
            {"padded_rows", names_json(can.padded_rows)},
            {"backends", names_json(can.backends)}}}};
}

void add_info_command(CLI::App& app) {
  auto options = std::make_shared<InfoOptions>();
  CLI::App* command =
      app.add_subcommand("info", "Version, backends of this machine, and what is supported.");
  auto* json = command->add_flag("--json", options->json, "As JSON");
  command->add_flag("--support-table", options->support_table, "What is supported, as markdown")
      ->excludes(json);
  command->callback([options] {
    if (options->json) {
      write_stdout(dump_json(info_json(), 2) + "\n");
    } else {
      write_stdout(options->support_table ? support_table() : info_text());
    }
  });
}

}  // namespace shortconv::tools
