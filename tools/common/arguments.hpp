#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace shortconv::tools {

/// The options given to a parsed subcommand, its name first, in a form that can be given again.
[[nodiscard]] std::vector<std::string> given_arguments(const CLI::App& command);

}  // namespace shortconv::tools
