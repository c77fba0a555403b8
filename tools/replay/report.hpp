#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "replay/engine.hpp"
#include "replay/models.hpp"
#include "replay/requests.hpp"
#include "replay/verification.hpp"

namespace shortconv::tools {

/// All that a replay did and found.
struct ReplayReport {
  std::vector<std::string> arguments;
  std::string source;
  std::int64_t requests = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::string_view model;
  std::int64_t ranks = 1;
  std::uint64_t seed = 0;
  LayerConfig config;
  SchedulerOptions scheduler;
  std::string_view backend;
  std::string backend_detail;
  std::int32_t threads = 0;
  nlohmann::ordered_json host{};  ///< describe_host or, where the layers ran on a GPU,
                                  ///< describe_host_and_gpu
  StreamOutline outline{};
  std::vector<StreamResult> runs{};
  Verification verification{};

  [[nodiscard]] bool on_gpu() const { return host.contains("gpu"); }
};

/// What was replayed, one table per run, and the verdict; ends with a newline.
[[nodiscard]] std::string to_text(const ReplayReport& report);

[[nodiscard]] nlohmann::ordered_json to_json(const ReplayReport& report);

}  // namespace shortconv::tools
