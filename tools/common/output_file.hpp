#pragma once

#include <span>
#include <string>
#include <string_view>

namespace shortconv::tools {

/// Refuses a path that could not be written later, so that long work is not lost at its end, and
/// one that is the same file as an input. "-" (standard output) and the empty path (none) are fine.
void check_writable(const std::string& path, std::span<const std::string> inputs = {});

/// Writes through a temporary file beside `path`, so that the file is there in full or not at all.
/// "-" is standard output; devices and pipes are written to as they are.
void write_output(const std::string& path, std::string_view text);

/// To standard output at once. Throws CommandError when it cannot be written to.
void write_stdout(std::string_view text);

}  // namespace shortconv::tools
