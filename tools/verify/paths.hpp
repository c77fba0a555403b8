// One result, however it is reached: other layouts, schedules and thread counts, a call cut into
// several that carry the state, and token by token through decode must give the same bits.
#pragma once

#include <optional>
#include <string>

#include "verify/case.hpp"

namespace shortconv::tools::verify {

/// What differs first, or nothing. Paths that the case does not allow (no state to carry, or one
/// that cannot hold x exactly) are left out; which cuts and layouts are tried follows from the
/// case's seed.
[[nodiscard]] std::optional<std::string> check_paths(const Case& problem, BackendId backend);

}  // namespace shortconv::tools::verify
