#pragma once

#include <string>
#include <string_view>

namespace shortconv::tools {

/// Refuses a path that could not be written later, so that long work is not lost at its end. "-"
/// (stdout) and the empty path (none) are fine.
void check_writable(const std::string& path);

/// Writes through a temporary file beside `path`, so that the file is there in full or not at all.
/// "-" is stdout; devices and pipes are written to as they are.
void write_output(const std::string& path, std::string_view text);

}  // namespace shortconv::tools
