// The figures of a report, as SVG elements.
#pragma once

#include <string>
#include <vector>

#include "report/results.hpp"

namespace shortconv::tools::report {

/// A drawing, what it is called on the page, and what a file of it alone is called.
struct Figure {
  std::string title;
  std::string file_name;
  std::string svg;
};

/// All that there are of a result.
[[nodiscard]] std::vector<Figure> figures_of(const Result& result);

/// How long the calls of each kind took: cumulative distributions, beside that of a copy.
[[nodiscard]] std::string latency_figure(const Result& replay);

/// Host and run time of a typical call of each kind, schedule by schedule.
[[nodiscard]] std::string schedule_figure(const Result& replay);

/// Bytes moved per second against the size of the call.
[[nodiscard]] std::string bandwidth_figure(const Result& bench);

/// Speed of each case or kind of call as a share of the copy's, the schedules side by side.
[[nodiscard]] std::string copy_share_figure(const Result& result);

}  // namespace shortconv::tools::report
