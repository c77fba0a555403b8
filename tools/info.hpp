#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace shortconv::tools {

/// What the library supports, as a markdown table.
[[nodiscard]] std::string support_table();

/// Version, backends and capabilities.
[[nodiscard]] std::string info_text();
[[nodiscard]] nlohmann::ordered_json info_json();

}  // namespace shortconv::tools
