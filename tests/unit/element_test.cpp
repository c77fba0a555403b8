#include "core/element.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "common/random.hpp"

namespace shortconv {
namespace {

struct Format {
  const char* name;
  DType dtype;
  int mantissa_bits;
  int min_exponent;  // of the smallest normal number
  double max;
};
const Format kFormats[] = {
    {"f16", DType::kF16, 10, -14, 65504.0},
    {"bf16", DType::kBF16, 7, -126, 0x1.fep127},
};

double round_trip(DType dtype, double value) {
  char bytes[8] = {};
  store_element(dtype, bytes, value);
  return load_element(dtype, bytes);
}

// Round to nearest even from the definition of the format, without touching its bits.
double rounded(const Format& format, double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double nearest =
      std::nearbyint(value / unit) * unit;  // the default mode is to nearest even
  if (std::fabs(nearest) > format.max)
    return std::copysign(std::numeric_limits<double>::infinity(), value);
  return nearest;
}

TEST(Element, EveryPatternSurvivesTheWayThroughDouble) {
  for (const Format& format : kFormats) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      const auto pattern = static_cast<std::uint16_t>(bits);
      char bytes[8] = {};
      std::memcpy(bytes, &pattern, sizeof pattern);
      const double value = load_element(format.dtype, bytes);
      store_element(format.dtype, bytes, value);
      std::uint16_t back = 0;
      std::memcpy(&back, bytes, sizeof back);
      if (std::isnan(value)) {
        EXPECT_TRUE(std::isnan(load_element(format.dtype, bytes)));
      } else {
        ASSERT_EQ(back, pattern) << format.name << " " << bits;
      }
    }
  }
}

TEST(Element, RoundsOnceFromDouble) {
  tools::Random random(7);
  for (const Format& format : kFormats) {
    const int smallest = format.min_exponent - format.mantissa_bits - 3;
    for (int i = 0; i < 300000; ++i) {
      const double mantissa = 1.0 + random.uniform();
      double value = std::ldexp(mantissa, static_cast<int>(random.between(smallest, 17)));
      if (i % 3 == 1) {  // exactly half-way between two neighbours, and a hair beside it
        value = rounded(format, value);
        const int unit = std::max(std::ilogb(value == 0 ? 1.0 : value), format.min_exponent) -
                         format.mantissa_bits;
        value += std::ldexp(0.5, unit);
        if (i % 2 == 0) value = std::nextafter(value, i % 4 == 0 ? 0.0 : 1e30);
      }
      if (i % 5 == 0) value = -value;
      ASSERT_EQ(round_trip(format.dtype, value), rounded(format, value))
          << format.name << " " << value;
    }
  }
}

TEST(Element, OverflowsToInfinityWhereNearestSaysSo) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(round_trip(DType::kF16, 65519.99), 65504.0);
  EXPECT_EQ(round_trip(DType::kF16, 65520.0), inf);
  EXPECT_EQ(round_trip(DType::kF16, -1e300), -inf);
  EXPECT_EQ(round_trip(DType::kBF16, 0x1.fefffp127), 0x1.fep127);
  EXPECT_EQ(round_trip(DType::kBF16, 0x1.ffp127), inf);
  EXPECT_TRUE(std::isnan(round_trip(DType::kBF16, std::nan(""))));
  EXPECT_TRUE(std::isnan(round_trip(DType::kF16, std::nan(""))));
}

// A NaN whose payload would round up past the exponent must not become a zero.
TEST(Element, AnyNanStaysNan) {
  for (const std::uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7f800001u, 0xffc00000u}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_from_f32(nan)))) << bits;
    EXPECT_TRUE(std::isnan(f32_from_f16(f16_from_f32(nan)))) << bits;
  }
}

TEST(Element, IndicesOfBothWidths) {
  const std::int32_t narrow[] = {1, -1, 2147483647};
  const std::int64_t wide[] = {1, -1, std::int64_t{1} << 40};
  EXPECT_EQ(load_index(DType::kI32, narrow, 1), -1);
  EXPECT_EQ(load_index(DType::kI32, narrow, 2), 2147483647);
  EXPECT_EQ(load_index(DType::kI64, wide, 2), std::int64_t{1} << 40);
}

}  // namespace
}  // namespace shortconv
