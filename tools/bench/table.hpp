// Rows as text and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "bench/measure.hpp"

namespace shortconv::tools::bench {

[[nodiscard]] std::string_view name(CacheMode mode);

enum class Columns { kCpu, kGpu, kGpuWithTwoReads };

[[nodiscard]] std::string table_header(Columns columns);
[[nodiscard]] std::string table_line(const Row& row, Columns columns);

/// Both kinds of row have the fields that `shortconv report` reads.
[[nodiscard]] nlohmann::ordered_json to_json(const Row& row);

}  // namespace shortconv::tools::bench
