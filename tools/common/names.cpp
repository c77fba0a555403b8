#include "common/names.hpp"

namespace shortconv::tools {

void require_available(BackendId backend) {
  for (const BackendInfo& info : backend_info()) {
    if (info.name != name(backend) || info.available) continue;
    throw CommandError(
        kExitUsage, "--backend: '" + std::string(info.name) + "' is not available: " + info.detail);
  }
}

std::vector<std::string> split_commas(std::string_view text) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    if (comma != 0) parts.emplace_back(text.substr(0, comma));
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
  }
  return parts;
}

}  // namespace shortconv::tools
