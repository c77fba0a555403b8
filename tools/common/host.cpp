#include "common/host.hpp"

#include <fmt/format.h>

#include <fstream>
#include <string_view>
#include <thread>

#include "common/gpu.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/version.h"

namespace shortconv::tools {
namespace {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  constexpr std::string_view kKey = "model name";
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(kKey)) continue;
    const std::size_t start = line.find_first_not_of(" \t", line.find(':') + 1);
    if (start != std::string::npos) return line.substr(start);
  }
  return "unknown";
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::string cpu_target() {
  for (const BackendInfo& backend : backend_info()) {
    if (backend.name == name(BackendId::kCpu)) return backend.detail;
  }
  return "none";
}

}  // namespace

std::string library_version() {
  return fmt::format("{}.{}.{}", SHORTCONV_VERSION_MAJOR, SHORTCONV_VERSION_MINOR,
                     SHORTCONV_VERSION_PATCH);
}

nlohmann::ordered_json describe_host() {
  return {{"cpu", cpu_model()},
          {"logical_cores", std::thread::hardware_concurrency()},
          {"compiler", compiler()},
          {"library_version", library_version()},
          {"cpu_target", cpu_target()}};
}

nlohmann::ordered_json describe_host_and_gpu() {
  const GpuDescription gpu = describe_gpu();
  nlohmann::ordered_json host = describe_host();
  host["gpu"] = {{"name", gpu.name},
                 {"driver", gpu.driver},
                 {"runtime", gpu.runtime},
                 {"multiprocessors", gpu.multiprocessors},
                 {"l2_bytes", gpu.l2_bytes}};
  return host;
}

}  // namespace shortconv::tools
