#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace shortconv::tools {

/// "0.1.0"
[[nodiscard]] std::string library_version();

/// What a measurement depends on besides its arguments: processor, cores, compiler, library, kernel
/// target.
[[nodiscard]] nlohmann::ordered_json describe_host();

/// The same with describe_gpu() as "gpu".
[[nodiscard]] nlohmann::ordered_json describe_host_and_gpu();

}  // namespace shortconv::tools
