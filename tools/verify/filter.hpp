// Selection of cases by `shortconv verify --only`.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shortconv::tools::verify {

/// Keys and values that a case must have.
using Filter = std::vector<std::pair<std::string, std::string>>;

/// From texts "KEY=VALUE". Throws CommandError for keys that no case has, and for values that no
/// random case can have, each for itself or all together.
[[nodiscard]] Filter parse_filter(const std::vector<std::string>& only);

[[nodiscard]] bool matches(const std::vector<std::pair<std::string_view, std::string>>& traits,
                           const Filter& filter);

}  // namespace shortconv::tools::verify
