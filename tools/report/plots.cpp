#include "report/plots.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>

#include "common/statistics.hpp"
#include "report/svg.hpp"

namespace shortconv::tools::report {
namespace {

constexpr double kWidth = 960;
constexpr std::string_view kText = "#222";
constexpr std::string_view kAxis = "#555";
constexpr std::string_view kGrid = "#dedede";
constexpr std::string_view kCopy = "#6b6b6b";

// From the palette of Okabe and Ito, which stays apart under every common colour blindness.
std::string_view colour_of(std::string_view schedule) {
  if (schedule == "flat") return "#0072B2";
  if (schedule == "block-list") return "#C04A00";  // their vermillion, darker: it colours text too
  if (schedule == "sequence-grid") return "#00795A";
  return "#8A4B7A";
}

// A plotting area with a value axis below and one at the left.
struct Frame {
  double left, top, right, bottom;

  void draw_x(Svg& svg, const Scale& scale, std::string (*label)(double)) const {
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
  void draw_y(Svg& svg, const Scale& scale, std::string (*label)(double)) const {
    for (const double tick : scale.ticks()) {
      svg.line({left, scale(tick)}, {right, scale(tick)}, kGrid);
      svg.text({left - 8, scale(tick) + 4.5}, label(tick), Anchor::kEnd, kAxis);
    }
  }
};

std::string plain_number(double value) {
  return fmt::format("{:g}", std::round(value * 1e6) / 1e6);
}
std::string percent(double share) { return fmt::format("{:.0f}%", 100 * share); }

std::vector<std::string> kind_names(const Result& replay) {
  std::vector<std::string> names;
  for (const Run& run : replay.runs) {
    for (const Kind& kind : run.kinds) {
      if (std::ranges::find(names, kind.name) == names.end()) names.push_back(kind.name);
    }
  }
  return names;
}

const Kind* find_kind(const Run& run, std::string_view name) {
  const auto found = std::ranges::find(run.kinds, name, &Kind::name);
  return found == run.kinds.end() ? nullptr : &*found;
}

// One curve: share of samples that took at most x.
struct Curve {
  std::string label;
  std::string_view colour;
  bool dashed = false;
  std::vector<double> samples;
};

std::vector<Curve> latency_curves(const Result& replay, std::string_view kind_name) {
  std::vector<Curve> curves;
  Curve copy{.label = "copy", .colour = kCopy, .dashed = true, .samples = {}};
  for (const Run& run : replay.runs) {
    const Kind* kind = find_kind(run, kind_name);
    if (kind == nullptr) continue;
    if (!kind->run_us_samples.empty()) {
      curves.push_back({run.schedule, colour_of(run.schedule), false, kind->run_us_samples});
    }
    copy.samples.insert(copy.samples.end(), kind->copy_us_samples.begin(),
                        kind->copy_us_samples.end());
  }
  if (!copy.samples.empty()) curves.push_back(std::move(copy));
  for (Curve& curve : curves) std::ranges::sort(curve.samples);
  return curves;
}

void draw_curve(Svg& svg, const Curve& curve, const Scale& time, const Scale& share) {
  constexpr std::size_t kMostSteps = 400;  // finer than a pixel
  const std::vector<double> samples = thin_out(curve.samples, kMostSteps);
  std::vector<Point> points{{time(samples.front()), share(0)}};
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const double x = time(samples[i]);
    points.push_back({x, points.back().y});
    points.push_back({x, share(static_cast<double>(i + 1) / static_cast<double>(samples.size()))});
  }
  points.push_back({time(curve.samples.back()), share(1)});
  svg.polyline(points, curve.colour, 2, curve.dashed ? "5 4" : "");
}

void draw_latency_panel(Svg& svg, const Frame& frame, std::string_view name,
                        const std::vector<Curve>& curves) {
  double low = 1e18, high = 0;
  for (const Curve& curve : curves) {
    low = std::min(low, curve.samples.front());
    high = std::max(high, curve.samples.back());
  }
  svg.text({frame.left, frame.top - 10}, name, Anchor::kStart, kText, 15, true);
  if (curves.empty()) {
    svg.text({frame.left, frame.top + 20}, "no samples", Anchor::kStart, kAxis);
    return;
  }
  const Scale time(Scale::Kind::kLog, low, high, frame.left, frame.right);
  const Scale share(Scale::Kind::kLinear, 0, 1, frame.bottom, frame.top);
  frame.draw_y(svg, share, percent);
  frame.draw_x(svg, time, format_us);
  double y = frame.top + 14;
  for (const Curve& curve : curves) {
    draw_curve(svg, curve, time, share);
    const double x = frame.right + 16;
    svg.line({x, y - 4}, {x + 22, y - 4}, curve.colour, 2.5, curve.dashed ? "5 4" : "");
    svg.text({x + 28, y}, curve.label, Anchor::kStart, curve.colour, Svg::kTextSize, true);
    svg.text({x + 28, y + 16}, "median " + format_us(percentile(curve.samples, 0.5)),
             Anchor::kStart, kText);
    y += 40;
  }
}

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

bool several_schedules(const Result& bench) {
  return std::ranges::any_of(
      bench.rows, [&](const BenchRow& row) { return row.schedule != bench.rows.front().schedule; });
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

std::vector<std::string> schedules_of(const Result& bench) {
  std::vector<std::string> names;
  for (const BenchRow& row : bench.rows) {
    if (std::ranges::find(names, row.schedule) == names.end()) names.push_back(row.schedule);
  }
  return names;
}

void draw_legend(Svg& svg, Point at, const Result& bench) {
  for (const std::string& schedule : schedules_of(bench)) {
    svg.circle({at.x + 5, at.y - 4}, 4, colour_of(schedule));
    svg.text({at.x + 15, at.y}, schedule, Anchor::kStart, colour_of(schedule), Svg::kTextSize,
             true);
    at.x += 40 + Svg::text_width(schedule);
  }
  svg.line({at.x, at.y - 4}, {at.x + 22, at.y - 4}, kCopy, 2, "5 4");
  svg.text({at.x + 28, at.y}, "copy of the same bytes", Anchor::kStart, kCopy, Svg::kTextSize,
           true);
}

}  // namespace

std::string latency_figure(const Result& replay) {
  constexpr double kPanel = 225;
  const std::vector<std::string> names = kind_names(replay);
  Svg svg(kWidth, kPanel * static_cast<double>(names.size()) + 30);
  double top = 30;
  for (const std::string& name : names) {
    const Frame frame{.left = 56, .top = top, .right = kWidth - 185, .bottom = top + 150};
    draw_latency_panel(svg, frame, name, latency_curves(replay, name));
    top += kPanel;
  }
  svg.text({56, top - 12}, "Time of one call, logarithmic; up: share of calls that took no longer.",
           Anchor::kStart, kAxis);
  return svg.element("Distribution of call times by kind of call");
}

std::string schedule_figure(const Result& replay) {
  constexpr double kBar = 15, kPitch = 20, kLeft = 205, kRight = kWidth - 235;
  const std::vector<std::string> names = kind_names(replay);
  double height = 40;
  for (const std::string& name : names) {
    height += 64;
    for (const Run& run : replay.runs) height += find_kind(run, name) != nullptr ? 2 * kPitch : 0;
  }
  Svg svg(kWidth, height);
  double y = 24;
  for (const std::string& name : names) {
    double longest = 0;
    for (const Run& run : replay.runs) {
      const Kind* kind = find_kind(run, name);
      if (kind == nullptr) continue;
      longest = std::max(
          {longest, kind->host_us.p50 + kind->run_us.p50, kind->host_us.mean + kind->run_us.mean});
    }
    svg.text({20, y}, name, Anchor::kStart, kText, 15, true);
    const Scale time(Scale::Kind::kLinear, 0, longest, kLeft, kRight);
    const double top = y + 10;
    y = top;
    for (const Run& run : replay.runs) {
      const Kind* kind = find_kind(run, name);
      if (kind == nullptr) continue;
      const std::string_view colour = colour_of(run.schedule);
      const std::array<std::pair<std::string_view, std::pair<double, double>>, 2> bars{{
          {"median", {kind->host_us.p50, kind->run_us.p50}},
          {"mean", {kind->host_us.mean, kind->run_us.mean}},
      }};
      svg.text({20, y + kBar - 3}, run.schedule, Anchor::kStart, colour, Svg::kTextSize, true);
      for (const auto& [label, times] : bars) {
        const auto [host, work] = times;
        svg.text({kLeft - 8, y + kBar - 3}, label, Anchor::kEnd, kAxis);
        svg.rectangle({kLeft, y}, time(host) - kLeft, kBar, colour, 0.45);
        svg.rectangle({time(host), y}, time(host + work) - time(host), kBar, colour);
        svg.text({time(host + work) + 8, y + kBar - 3},
                 fmt::format("{} host + {}", format_us(host), format_us(work)), Anchor::kStart,
                 kText);
        y += kPitch;
      }
    }
    svg.line({kLeft, top - 3}, {kLeft, y}, kAxis);
    y += 44;
  }
  svg.text(
      {20, y - 12},
      "Pale: host time before the call can start. Full: the call, one layer. Each kind of call "
      "has its own scale.",
      Anchor::kStart, kAxis);
  return svg.element("Host and run time by schedule and kind of call");
}

std::string bandwidth_figure(const Result& bench) {
  constexpr double kHeight = 480;
  Svg svg(kWidth, kHeight);
  if (bench.rows.empty()) return svg.element("No rows");
  const Frame frame{.left = 60, .top = 44, .right = kWidth - 20, .bottom = kHeight - 60};
  double low = 1e18, high = 1, fastest = 0;
  for (const BenchRow& row : bench.rows) {
    low = std::min(low, row.bytes);
    high = std::max(high, row.bytes);
    fastest = std::max({fastest, row.gb_per_s, row.copy_gb_per_s});
  }
  // A little room beside the outermost points.
  const Scale size(Scale::Kind::kLog, low / 1.3, high * 1.3, frame.left, frame.right);
  const Scale speed(Scale::Kind::kLinear, 0, fastest, frame.bottom, frame.top);
  frame.draw_y(svg, speed, plain_number);
  frame.draw_x(svg, size, format_bytes);
  draw_legend(svg, {frame.left, 20}, bench);
  svg.text(
      {frame.left, kHeight - 18},
      "Bytes of inputs, outputs and states, logarithmic; up: GB/s. Where it is crowded, the next "
      "figure has the names.",
      Anchor::kStart, kAxis);

  std::vector<Box> taken;
  std::vector<Point> line;
  for (const Point& point : copy_line(bench.rows)) line.push_back({size(point.x), speed(point.y)});
  svg.polyline(line, kCopy, 2, "5 4");
  for (const BenchRow& row : bench.rows) {
    const Point at{size(row.bytes), speed(row.gb_per_s)};
    taken.push_back({at.x - 6, at.y - 6, at.x + 6, at.y + 6});
  }
  const Box area{frame.left, frame.top - 6, frame.right, frame.bottom};
  std::vector<BenchRow> rows = bench.rows;
  std::ranges::sort(rows, std::ranges::greater{}, &BenchRow::ratio);  // outliers get their labels
  for (const BenchRow& row : rows) {
    const Point at{size(row.bytes), speed(row.gb_per_s)};
    const auto box = place_label(at, Svg::text_width(row.name, 12), area, taken);
    if (!box) continue;
    taken.push_back(*box);
    const Point near{std::clamp(at.x, box->left, box->right),
                     std::clamp(at.y, box->top, box->bottom)};
    if (std::hypot(near.x - at.x, near.y - at.y) > 12) svg.line(at, near, "#aaa");
    svg.text({box->left + 1, box->bottom - 3.5}, row.name, Anchor::kStart, colour_of(row.schedule),
             12);
  }
  for (const BenchRow& row : bench.rows) {
    svg.circle({size(row.bytes), speed(row.gb_per_s)}, 4, colour_of(row.schedule));
  }
  return svg.element("Bandwidth against size");
}

std::string copy_share_figure(const Result& bench) {
  constexpr double kBar = 15, kPitch = 21, kTop = 34;
  const bool name_schedules = several_schedules(bench);
  const double left = name_schedules ? 250 : 140;
  const double bottom = kTop + kPitch * static_cast<double>(bench.rows.size());
  Svg svg(kWidth, bottom + 56);
  double most = 1;
  for (const BenchRow& row : bench.rows) {
    if (row.ratio > 0) most = std::max(most, 1 / row.ratio);
  }
  const Frame frame{.left = left, .top = kTop - 6, .right = kWidth - 130, .bottom = bottom};
  const Scale share(Scale::Kind::kLinear, 0, most, frame.left, frame.right);
  frame.draw_x(svg, share, percent);
  double y = kTop;
  for (const BenchRow& row : bench.rows) {
    const double value = row.ratio > 0 ? 1 / row.ratio : 0;
    const std::string_view colour = colour_of(row.schedule);
    const std::string label =
        name_schedules ? fmt::format("{}, {}", row.name, row.schedule) : row.name;
    svg.text({left - 8, y + kBar - 3}, label, Anchor::kEnd, kText);
    svg.rectangle({left, y}, share(value) - left, kBar, colour);
    svg.text({kWidth - 80, y + kBar - 3}, percent(value), Anchor::kEnd, kText);
    svg.text({kWidth - 5, y + kBar - 3}, format_us(row.run_us), Anchor::kEnd, kText);
    y += kPitch;
  }
  svg.line({share(1), kTop - 10}, {share(1), bottom}, kText, 1.5);
  svg.text({share(1), kTop - 16}, "copy", Anchor::kMiddle, kText, Svg::kTextSize, true);
  svg.text({left, bottom + 42},
           "Copy time / run time. At the right: that share, and the time of a call.",
           Anchor::kStart, kAxis);
  return svg.element("Speed as a share of the copy's");
}

}  // namespace shortconv::tools::report
