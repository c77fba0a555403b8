// Drawings as SVG text: shapes in pixels, and axes that turn values into pixels.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shortconv::tools::report {

/// As text or attribute of XML and HTML. What XML 1.0 forbids, even escaped, becomes U+FFFD.
[[nodiscard]] std::string escape_xml(std::string_view text);

/// "850 ns", "12.3 µs", "3.45 ms", "1.2 s"
[[nodiscard]] std::string format_us(double microseconds);
/// "96 KB", "268 MB", in powers of 1000
[[nodiscard]] std::string format_bytes(double bytes);

struct Point {
  double x = 0;
  double y = 0;
};

enum class Anchor { kStart, kMiddle, kEnd };

class Svg {
 public:
  Svg(double width, double height) : width_(width), height_(height) {}

  void line(Point from, Point to, std::string_view colour, double width = 1,
            std::string_view dashes = "");
  void polyline(std::span<const Point> points, std::string_view colour, double width = 2,
                std::string_view dashes = "");
  void rectangle(Point corner, double width, double height, std::string_view colour,
                 double opacity = 1);
  void circle(Point centre, double radius, std::string_view colour, bool filled = true);
  void text(Point at, std::string_view text, Anchor anchor = Anchor::kStart,
            std::string_view colour = "#222", double size = kTextSize, bool bold = false);

  /// The whole element; `title` is what a screen reader says.
  [[nodiscard]] std::string element(std::string_view title) const;

  static constexpr double kTextSize = 13;
  /// Generous enough for the sans-serif fonts that browsers fall back to.
  [[nodiscard]] static double text_width(std::string_view text, double size = kTextSize) {
    return 0.62 * size * static_cast<double>(text.size());
  }

 private:
  double width_, height_;
  std::string body_;
};

/// Values to pixels along one direction.
class Scale {
 public:
  enum class Kind { kLinear, kLog };

  /// `low` and `high` are widened to where ticks are.
  Scale(Kind kind, double low, double high, double first_pixel, double last_pixel);

  [[nodiscard]] double operator()(double value) const;
  [[nodiscard]] const std::vector<double>& ticks() const { return ticks_; }

 private:
  Kind kind_;
  double low_, high_, first_pixel_, last_pixel_;
  std::vector<double> ticks_;
};

}  // namespace shortconv::tools::report
