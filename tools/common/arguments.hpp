#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace shortconv::tools {

/// The options given to a parsed subcommand, its name first, in a form that can be given again.
[[nodiscard]] std::vector<std::string> given_arguments(const CLI::App& command);

inline constexpr std::int64_t kMostCount = 1'000'000'000;  ///< of anything that is counted

/// Checks of options, for CLI::Option::check. CLI11's own accept NaN, round numbers that are too
/// large to the largest one, and print ranges with all digits of a double.
[[nodiscard]] CLI::Validator whole_number(std::int64_t least, std::int64_t most);
[[nodiscard]] CLI::Validator real_number(double least, double most);
/// Any number of 64 bits.
[[nodiscard]] CLI::Validator seed_number();
/// Refuses an empty name, as an unset variable of a shell leaves it.
[[nodiscard]] CLI::Validator file_name();

/// --repeats and --json of a command that measures rows. The references outlive the command.
void add_measuring_options(CLI::App& command, int& repeats, std::string& json);

}  // namespace shortconv::tools
