#include "report/drawing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace shortconv::tools::report {

// From the palette of Okabe and Ito, which stays apart under every common colour blindness.
std::string_view colour_of(std::string_view schedule) {
  if (schedule == "flat") return "#0072B2";
  if (schedule == "block-list") return "#C04A00";  // their vermillion, darker: it colours text too
  if (schedule == "sequence-grid") return "#00795A";
  return "#8A4B7A";
}

void Frame::draw_x(Svg& svg, const Scale& scale, std::string (*label)(double)) const {
  double label_end = 0;
  for (const double tick : scale.ticks()) {
    const double x = scale(tick);
    svg.line({x, top}, {x, bottom}, kGrid);
    const std::string text = label(tick);
    const double width = Svg::text_width(text);
    if (x - width / 2 < label_end + 6) continue;
    svg.text({x, bottom + 18}, text, Anchor::kMiddle, kAxis);
    label_end = x + width / 2;
  }
  svg.line({left, bottom}, {right, bottom}, kAxis);
}

void Frame::draw_y(Svg& svg, const Scale& scale, std::string (*label)(double)) const {
  for (const double tick : scale.ticks()) {
    svg.line({left, scale(tick)}, {right, scale(tick)}, kGrid);
    svg.text({left - 8, scale(tick) + 4.5}, label(tick), Anchor::kEnd, kAxis);
  }
}

std::string plain_number(double value) {
  return fmt::format("{:g}", std::round(value * 1e6) / 1e6);
}
std::string percent(double share) { return fmt::format("{:.0f}%", 100 * share); }

double draw_schedule_names(Svg& svg, Point at, const std::vector<std::string>& schedules) {
  for (const std::string& schedule : schedules) {
    svg.circle({at.x + 5, at.y - 4}, 4, colour_of(schedule));
    svg.text({at.x + 15, at.y}, schedule, Anchor::kStart, colour_of(schedule), Svg::kTextSize,
             true);
    at.x += 40 + Svg::text_width(schedule);
  }
  return at.x;
}

void add_new(std::vector<std::string>& names, const std::string& name) {
  if (std::ranges::find(names, name) == names.end()) names.push_back(name);
}

std::vector<std::string> kind_names(const Result& replay) {
  std::vector<std::string> names;
  for (const Run& run : replay.runs) {
    for (const Kind& kind : run.kinds) add_new(names, kind.name);
  }
  return names;
}

const Kind* find_kind(const Run& run, std::string_view name) {
  const auto found = std::ranges::find(run.kinds, name, &Kind::name);
  return found == run.kinds.end() ? nullptr : &*found;
}

}  // namespace shortconv::tools::report
