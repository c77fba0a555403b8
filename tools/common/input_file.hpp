#pragma once

#include <string>

namespace shortconv::tools {

/// Name of an input in messages: its path, or "standard input" for "-".
[[nodiscard]] std::string input_name(const std::string& path);

/// The text of a file, or of standard input for "-", without a byte order mark. Throws CommandError
/// for what cannot be read, is no text or is larger than 2 GiB.
[[nodiscard]] std::string read_input(const std::string& path);

}  // namespace shortconv::tools
