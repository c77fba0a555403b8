#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include "common/statistics.hpp"
#include "report/drawing.hpp"
#include "report/plots.hpp"

namespace shortconv::tools::report {
namespace {

// A box that a label or a point takes up.
struct Box {
  double left, top, right, bottom;

  [[nodiscard]] bool overlaps(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

// Puts a label as close to its point as earlier labels and all points allow, or nowhere: far from
// its point a label says nothing.
std::optional<Box> place_label(Point point, double width, const Box& area,
                               const std::vector<Box>& taken) {
  constexpr double kHeight = 15, kFarthest = 36;
  constexpr int kDirections = 16;
  for (double distance = 10; distance < kFarthest; distance += 6) {
    for (int i = 0; i < kDirections; ++i) {
      const double angle = 2 * std::numbers::pi * i / kDirections;
      const double left =
          point.x + distance * std::cos(angle) - (0.5 - 0.5 * std::cos(angle)) * width;
      const double middle = point.y + distance * std::sin(angle);
      const Box box{left, middle - kHeight / 2, left + width, middle + kHeight / 2};
      const bool inside = box.left >= area.left && box.right <= area.right && box.top >= area.top &&
                          box.bottom <= area.bottom;
      const bool free =
          std::ranges::none_of(taken, [&](const Box& other) { return box.overlaps(other); });
      if (inside && free) return box;
    }
  }
  return std::nullopt;
}

// The copy's speed by size: calls of nearly one size share a point.
std::vector<Point> copy_line(std::vector<BenchRow> rows) {
  constexpr double kSameSize = 1.08;
  std::ranges::sort(rows, {}, &BenchRow::bytes);
  std::vector<Point> line;
  for (std::size_t first = 0; first < rows.size();) {
    std::vector<double> sizes, speeds;
    for (std::size_t i = first; i < rows.size() && rows[i].bytes <= kSameSize * rows[first].bytes;
         ++i) {
      sizes.push_back(rows[i].bytes);
      speeds.push_back(rows[i].copy_gb_per_s);
    }
    first += sizes.size();
    line.push_back({median(std::move(sizes)), median(std::move(speeds))});
  }
  return line;
}

void draw_legend(Svg& svg, Point at, const std::vector<BenchRow>& rows) {
  std::vector<std::string> schedules;
  for (const BenchRow& row : rows) add_new(schedules, row.schedule);
  at.x = draw_schedule_names(svg, at, schedules);
  svg.line({at.x, at.y - 4}, {at.x + 22, at.y - 4}, kCopy, 2, "5 4");
  svg.text({at.x + 28, at.y}, "copy of the same bytes", Anchor::kStart, kCopy, Svg::kTextSize,
           true);
}

// A copy from a cache is another yardstick: rows of one cache mode only, the file's first.
std::vector<BenchRow> rows_of_first_mode(const Result& bench) {
  std::vector<BenchRow> rows = bench.rows;
  std::erase_if(rows, [&](const BenchRow& row) { return row.mode != bench.rows.front().mode; });
  return rows;
}

struct ShareBar {
  std::string schedule;
  double ratio;  // run time / copy time, 0 where there was no copy
  double run_us;

  [[nodiscard]] double share() const { return ratio > 0 ? 1 / ratio : 0; }
};

struct ShareGroup {
  std::string label;
  std::vector<ShareBar> bars;
};

void add_bar(std::vector<ShareGroup>& groups, const std::string& label, ShareBar bar) {
  auto group = std::ranges::find(groups, label, &ShareGroup::label);
  if (group == groups.end()) group = groups.insert(group, {.label = label, .bars = {}});
  group->bars.push_back(std::move(bar));
}

// One group per case of a bench, or per kind of call of a replay.
std::vector<ShareGroup> share_groups(const Result& result) {
  std::vector<ShareGroup> groups;
  const bool has_modes = rows_of_first_mode(result).size() < result.rows.size();
  for (const BenchRow& row : result.rows) {
    add_bar(groups, has_modes ? fmt::format("{}, {}", row.name, row.mode) : row.name,
            {row.schedule, row.ratio, row.run_us});
  }
  for (const std::string& kind_name : kind_names(result)) {
    for (const Run& run : result.runs) {
      const Kind* kind = find_kind(run, kind_name);
      if (kind == nullptr) continue;
      add_bar(groups, kind_name, {run.schedule, kind->copy_ratio, kind->run_us.p50});
    }
  }
  return groups;
}

}  // namespace

std::string bandwidth_figure(const Result& bench) {
  constexpr double kHeight = 480;
  Svg svg(kWidth, kHeight);
  std::vector<BenchRow> rows = rows_of_first_mode(bench);
  if (rows.empty()) return svg.element("No rows");
  const Frame frame{.left = 60, .top = 44, .right = kWidth - 20, .bottom = kHeight - 60};
  double low = 1e18, high = 1, fastest = 0;
  for (const BenchRow& row : rows) {
    low = std::min(low, row.bytes);
    high = std::max(high, row.bytes);
    fastest = std::max({fastest, row.gb_per_s, row.copy_gb_per_s});
  }
  // A little room beside the outermost points.
  const Scale size(Scale::Kind::kLog, low / 1.3, high * 1.3, frame.left, frame.right);
  const Scale speed(Scale::Kind::kLinear, 0, fastest, frame.bottom, frame.top);
  frame.draw_y(svg, speed, plain_number);
  frame.draw_x(svg, size, format_bytes);
  draw_legend(svg, {frame.left, 20}, rows);
  svg.text({frame.left, kHeight - 18},
           fmt::format("Bytes of inputs, outputs and states, logarithmic; up: GB/s{}. Where it is "
                       "crowded, the next figure has the names.",
                       rows.front().mode.empty() ? "" : ", " + rows.front().mode),
           Anchor::kStart, kAxis);

  std::vector<Box> taken;
  std::vector<Point> line;
  for (const Point& point : copy_line(rows)) line.push_back({size(point.x), speed(point.y)});
  svg.polyline(line, kCopy, 2, "5 4");
  for (const BenchRow& row : rows) {
    const Point at{size(row.bytes), speed(row.gb_per_s)};
    taken.push_back({at.x - 6, at.y - 6, at.x + 6, at.y + 6});
  }
  const Box area{frame.left, frame.top - 6, frame.right, frame.bottom};
  std::ranges::sort(rows, std::ranges::greater{}, &BenchRow::ratio);  // outliers get their labels
  for (const BenchRow& row : rows) {
    const Point at{size(row.bytes), speed(row.gb_per_s)};
    const auto box = place_label(at, Svg::text_width(row.name, 12) + 6, area, taken);
    if (!box) continue;
    taken.push_back(*box);
    const Point near{std::clamp(at.x, box->left, box->right),
                     std::clamp(at.y, box->top, box->bottom)};
    if (std::hypot(near.x - at.x, near.y - at.y) > 12) svg.line(at, near, "#aaa");
    svg.text({box->left + 4, box->bottom - 3.5}, row.name, Anchor::kStart, colour_of(row.schedule),
             12);
  }
  for (const BenchRow& row : rows) {
    svg.circle({size(row.bytes), speed(row.gb_per_s)}, 4, colour_of(row.schedule));
  }
  return svg.element("Bandwidth against size");
}

std::string copy_share_figure(const Result& result) {
  constexpr double kBar = 13, kPitch = 16, kGap = 10, kLeft = 190;
  const std::vector<ShareGroup> groups = share_groups(result);
  std::vector<std::string> schedules;
  double height = 0, most = 1;
  for (const ShareGroup& group : groups) {
    height += kPitch * static_cast<double>(group.bars.size()) + kGap;
    for (const ShareBar& bar : group.bars) {
      add_new(schedules, bar.schedule);
      most = std::max(most, bar.share());
    }
  }
  const bool has_legend = schedules.size() > 1;
  const double top = has_legend ? 62 : 34, bottom = top + height;
  Svg svg(kWidth, bottom + 56);
  if (has_legend) draw_schedule_names(svg, {kLeft, 20}, schedules);
  const Frame frame{.left = kLeft, .top = top - 6, .right = kWidth - 190, .bottom = bottom};
  const Scale scale(Scale::Kind::kLinear, 0, most, frame.left, frame.right);
  frame.draw_x(svg, scale, percent);
  double y = top;
  for (const ShareGroup& group : groups) {
    const double middle = y + kPitch * static_cast<double>(group.bars.size()) / 2;
    svg.text({kLeft - 8, middle + 3}, group.label, Anchor::kEnd, kText);
    for (const ShareBar& bar : group.bars) {
      svg.rectangle({kLeft, y}, scale(bar.share()) - kLeft, kBar, colour_of(bar.schedule));
      const std::pair<double, std::string> columns[] = {
          {kWidth - 135, percent(bar.share())},
          {kWidth - 75, fmt::format("{:.2f}", bar.ratio)},
          {kWidth - 5, format_us(bar.run_us)}};
      for (const auto& [x, text] : columns) {
        svg.text({x, y + kBar - 2}, text, Anchor::kEnd, kText, 12);
      }
      y += kPitch;
    }
    y += kGap;
  }
  svg.line({scale(1), top - 10}, {scale(1), bottom}, kText, 1.5);
  svg.text({scale(1), top - 16}, "copy", Anchor::kMiddle, kText, Svg::kTextSize, true);
  svg.text({kLeft, bottom + 42},
           "Copy time / run time. At the right: that share, run time / copy time, run time.",
           Anchor::kStart, kAxis);
  return svg.element("Speed as a share of the copy's");
}

}  // namespace shortconv::tools::report
