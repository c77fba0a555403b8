// What the figures share: colours, axes, and the names of things.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "report/results.hpp"
#include "report/svg.hpp"

namespace shortconv::tools::report {

inline constexpr double kWidth = 960;
inline constexpr std::string_view kText = "#222";
inline constexpr std::string_view kAxis = "#555";
inline constexpr std::string_view kGrid = "#dedede";
inline constexpr std::string_view kCopy = "#6b6b6b";

[[nodiscard]] std::string_view colour_of(std::string_view schedule);

/// A plotting area with a value axis below and one at the left.
struct Frame {
  double left, top, right, bottom;

  void draw_x(Svg& svg, const Scale& scale, std::string (*label)(double)) const;
  void draw_y(Svg& svg, const Scale& scale, std::string (*label)(double)) const;
};

[[nodiscard]] std::string plain_number(double value);
[[nodiscard]] std::string percent(double share);

/// Each in its colour; returns where the next one would stand.
double draw_schedule_names(Svg& svg, Point at, const std::vector<std::string>& schedules);

void add_new(std::vector<std::string>& names, const std::string& name);

/// The kinds of call of all runs.
[[nodiscard]] std::vector<std::string> kind_names(const Result& replay);
/// Null if the run has none of that kind.
[[nodiscard]] const Kind* find_kind(const Run& run, std::string_view name);

}  // namespace shortconv::tools::report
