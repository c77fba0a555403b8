#include "report/plots.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "common/statistics.hpp"
#include "report/drawing.hpp"

namespace shortconv::tools::report {
namespace {

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

std::vector<Figure> figures_of(const Result& result) {
  if (result.command == "replay") {
    return {{"Time of a call", "latency", latency_figure(result)},
            {"Schedules", "schedules", schedule_figure(result)},
            {"Beside a copy", "copy-share", copy_share_figure(result)}};
  }
  return {{"Bandwidth", "bandwidth", bandwidth_figure(result)},
          {"Beside a copy", "copy-share", copy_share_figure(result)}};
}

}  // namespace shortconv::tools::report
