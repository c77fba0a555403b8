#include "report/svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "common/text.hpp"

namespace shortconv::tools::report {
namespace {

struct Unit {
  double size;
  std::string_view name;
};

// Three digits in the largest unit that leaves something before the point.
std::string with_unit(double value, std::initializer_list<Unit> units) {
  const Unit* unit = units.begin();
  // 999.6 would be written as 1e+03.
  while (unit + 1 != units.end() && value >= 0.9995 * unit[1].size) ++unit;
  return fmt::format("{:.3g} {}", value / unit->size, unit->name);
}

std::string dash_attribute(std::string_view dashes) {
  return dashes.empty() ? "" : fmt::format(" stroke-dasharray=\"{}\"", dashes);
}

std::string_view anchor_name(Anchor anchor) {
  switch (anchor) {
    case Anchor::kStart:
      return "start";
    case Anchor::kMiddle:
      return "middle";
    case Anchor::kEnd:
      break;
  }
  return "end";
}

// 1, 2 or 5 times a power of ten, for at most `most` steps.
double round_step(double range, int most) {
  const double rough = range / most;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

// Whether XML 1.0 lets a character stand in a text.
bool is_xml(const Character& character) {
  const char32_t code = character.code;
  const bool blank = code == '\t' || code == '\n' || code == '\r';
  const bool control = (code < 0x20 && !blank) || (code >= 0x7f && code < 0xa0);
  return character.valid && !control && code != 0xfffe && code != 0xffff;
}

}  // namespace

std::string escape_xml(std::string_view text) {
  std::string escaped;
  while (!text.empty()) {
    const Character character = first_character(text);
    const std::string_view bytes = text.substr(0, character.bytes);
    text.remove_prefix(character.bytes);
    if (!is_xml(character)) {
      escaped += "\xef\xbf\xbd";  // U+FFFD, which stands for what cannot be shown
      continue;
    }
    switch (character.code) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += bytes;
    }
  }
  return escaped;
}

std::string format_us(double us) {
  return with_unit(us, {{1e-3, "ns"}, {1, "µs"}, {1e3, "ms"}, {1e6, "s"}});
}

std::string format_bytes(double bytes) {
  return with_unit(bytes, {{1, "B"}, {1e3, "KB"}, {1e6, "MB"}, {1e9, "GB"}});
}

void Svg::line(Point from, Point to, std::string_view colour, double width,
               std::string_view dashes) {
  body_ += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
      "stroke-width=\"{}\"{}/>\n",
      from.x, from.y, to.x, to.y, colour, width, dash_attribute(dashes));
}

void Svg::polyline(std::span<const Point> points, std::string_view colour, double width,
                   std::string_view dashes) {
  body_ += "<polyline fill=\"none\" points=\"";
  for (const Point& point : points) body_ += fmt::format("{:.1f},{:.1f} ", point.x, point.y);
  body_ += fmt::format("\" stroke=\"{}\" stroke-width=\"{}\" stroke-linejoin=\"round\"{}/>\n",
                       colour, width, dash_attribute(dashes));
}

void Svg::rectangle(Point corner, double width, double height, std::string_view colour,
                    double opacity) {
  body_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" "
      "fill-opacity=\"{}\"/>\n",
      corner.x, corner.y, width, height, colour, opacity);
}

void Svg::circle(Point centre, double radius, std::string_view colour, bool filled) {
  body_ += fmt::format(
      "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\" stroke=\"{}\" "
      "stroke-width=\"1.5\"/>\n",
      centre.x, centre.y, radius, filled ? colour : "white", colour);
}

void Svg::text(Point at, std::string_view text, Anchor anchor, std::string_view colour, double size,
               bool bold) {
  body_ += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\" font-size=\"{}\" "
      "paint-order=\"stroke\" stroke=\"white\" stroke-width=\"3\"{}>{}"
      "</text>\n",
      at.x, at.y, anchor_name(anchor), colour, size, bold ? " font-weight=\"600\"" : "",
      escape_xml(text));
}

std::string Svg::element(std::string_view title) const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" role=\"img\" font-family=\"system-ui, sans-serif\">\n<title>{2}</title>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{3}</svg>\n",
      width_, height_, escape_xml(title), body_);
}

Scale::Scale(Kind kind, double low, double high, double first_pixel, double last_pixel)
    : kind_(kind), first_pixel_(first_pixel), last_pixel_(last_pixel) {
  if (kind == Kind::kLinear) {
    constexpr int kMostSteps = 6;
    high = std::max(high, low + 1e-9);
    const double step = round_step(high - low, kMostSteps);
    low_ = std::floor(low / step) * step;
    high_ = std::ceil(high / step) * step;
    for (int i = 0; low_ + i * step <= high_ + step / 2; ++i) ticks_.push_back(low_ + i * step);
    return;
  }
  constexpr double kSmallest = 1e-3;
  low = std::max(low, kSmallest);
  high = std::max(high, low);
  // Whole decades if there are several of them, otherwise 1, 2 and 5 of each.
  const int first = static_cast<int>(std::floor(std::log10(low)));
  const int last = static_cast<int>(std::ceil(std::log10(high) + 1e-12));
  const bool decades_only = last - first > 3;
  low_ = 0;
  for (int exponent = first; exponent <= last; ++exponent) {
    for (double factor : {1.0, 2.0, 5.0}) {
      if (decades_only && factor != 1) continue;
      const double tick = factor * std::pow(10, exponent);
      if (tick <= low * (1 + 1e-12)) {  // the last tick at or below the values is the lower end
        ticks_.assign(1, tick);
      } else if (ticks_.back() < high) {
        ticks_.push_back(tick);
      }
    }
  }
  low_ = ticks_.front();
  high_ = ticks_.size() > 1 ? ticks_.back() : 10 * low_;
}

double Scale::operator()(double value) const {
  const double share = kind_ == Kind::kLinear
                           ? (value - low_) / (high_ - low_)
                           : std::log(std::max(value, low_) / low_) / std::log(high_ / low_);
  return first_pixel_ + std::clamp(share, 0.0, 1.0) * (last_pixel_ - first_pixel_);
}

}  // namespace shortconv::tools::report
