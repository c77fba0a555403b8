// The figures of a report, as SVG elements.
#pragma once

#include <string>

#include "report/results.hpp"

namespace shortconv::tools::report {

/// How long the calls of each kind took: cumulative distributions, beside that of a copy.
[[nodiscard]] std::string latency_figure(const Result& replay);

/// Host and run time of a typical call of each kind, schedule by schedule.
[[nodiscard]] std::string schedule_figure(const Result& replay);

/// Bytes moved per second against the size of the call.
[[nodiscard]] std::string bandwidth_figure(const Result& bench);

/// Speed of each case as a share of the copy's.
[[nodiscard]] std::string copy_share_figure(const Result& bench);

}  // namespace shortconv::tools::report
