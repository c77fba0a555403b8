#include "verify/compare.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace shortconv::tools {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(Compare, RoundsOnceToNearestEven) {
  EXPECT_EQ(rounded_to(DType::kBF16, 1 + 0x1p-8), 1.0);             // tie, to even
  EXPECT_EQ(rounded_to(DType::kBF16, 1 + 3 * 0x1p-8), 1 + 0x1p-6);  // tie, to even
  EXPECT_EQ(rounded_to(DType::kBF16, 1 + 0x1p-8 + 0x1p-50), 1 + 0x1p-7);
  EXPECT_EQ(rounded_to(DType::kF16, 65519.0), 65504.0);
  EXPECT_EQ(rounded_to(DType::kF16, 65520.0), kInfinity);
}

TEST(Compare, CorrectlyRoundedMeansThatElementAlone) {
  EXPECT_TRUE(correctly_rounded(DType::kBF16, 1.0, 1 + 0x1p-9));
  EXPECT_FALSE(correctly_rounded(DType::kBF16, 1 + 0x1p-7, 1 + 0x1p-9));
  EXPECT_TRUE(correctly_rounded(DType::kBF16, kNan, kNan));
  EXPECT_FALSE(correctly_rounded(DType::kBF16, 0.0, kNan));
}

TEST(Compare, TheBoundCoversTheWorstCaseOfAnFp32Chain) {
  // 1 and then steps that are just under half a unit in the last place: fp32 loses all of them.
  const double step = 0x1p-24 * (1 - 0x1p-20);
  for (int width = 2; width <= 64; ++width) {
    float sum = 1;
    double exact = 1;
    for (int tap = 0; tap < width; ++tap) {
      sum = std::fma(1.0f, static_cast<float>(step), sum);
      exact += static_cast<float>(step);
    }
    EXPECT_EQ(sum, 1.0f);
    EXPECT_TRUE(within_bound(DType::kF32, width, Activation::kNone, sum, exact, exact));
    EXPECT_FALSE(
        within_bound(DType::kF32, width, Activation::kNone, sum, exact + 8 * width * step, exact));
  }
}

TEST(Compare, TheBoundOfAWideTypeIsNotLoosenedByRounding) {
  // bf16 neighbours of 1 are 2^-7 apart, so an exact result far from the middle has one answer.
  EXPECT_TRUE(within_bound(DType::kBF16, 4, Activation::kNone, 1.0, 1 + 0x1p-10, 4.0));
  EXPECT_FALSE(within_bound(DType::kBF16, 4, Activation::kNone, 1 + 0x1p-7, 1 + 0x1p-10, 4.0));
  // In the middle the fp32 error decides, and either neighbour is right.
  EXPECT_TRUE(within_bound(DType::kBF16, 4, Activation::kNone, 1.0, 1 + 0x1p-8, 4.0));
  EXPECT_TRUE(within_bound(DType::kBF16, 4, Activation::kNone, 1 + 0x1p-7, 1 + 0x1p-8, 4.0));
}

TEST(Compare, NanAndInfinityAreRightOnlyWhereTheReferenceHasThem) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_TRUE(within_bound(dtype, 4, Activation::kSilu, kNan, kNan, kNan));
    EXPECT_TRUE(within_bound(dtype, 4, Activation::kSilu, kInfinity, kInfinity, kInfinity));
    EXPECT_FALSE(within_bound(dtype, 4, Activation::kSilu, -kInfinity, kInfinity, kInfinity));
    EXPECT_FALSE(within_bound(dtype, 4, Activation::kSilu, kNan, 1.0, 1.0));
    EXPECT_FALSE(within_bound(dtype, 4, Activation::kSilu, kInfinity, 1.0, 1.0));
    EXPECT_FALSE(within_bound(dtype, 4, Activation::kSilu, 0.0, kNan, kNan));
    EXPECT_FALSE(within_bound(dtype, 4, Activation::kSilu, 1.0, 1.0, kNan));
  }
  // Where rounding overflows, infinity is the finite result's rounding.
  EXPECT_TRUE(within_bound(DType::kF16, 4, Activation::kNone, kInfinity, 70000.0, 70000.0));
  EXPECT_FALSE(within_bound(DType::kF16, 4, Activation::kNone, 65504.0, 70000.0, 70000.0));
}

TEST(Compare, AnEpilogueEnlargesTheErrorAndAddsARoundingOfItsOwn) {
  EXPECT_EQ(epilogue_error(Epilogue::kNone, 0.25, 7.0, 3.0), 0.25);
  const double sum = epilogue_error(Epilogue::kResidual, 0.25, 7.0, 3.0);
  EXPECT_EQ(sum, 0.25 + 0x1p-24 * 3.25 + 0x1p-150);
  const double product = epilogue_error(Epilogue::kOutputGate, 0.25, -8.0, 3.0);
  EXPECT_EQ(product, 2.0 + 0x1p-24 * 5.0 + 0x1p-150);
  // The worst case of the sum: 1 and just under half a unit in its last place.
  const double step = 0x1p-24 * (1 - 0x1p-20);
  EXPECT_EQ(1.0f + static_cast<float>(step), 1.0f);
  EXPECT_TRUE(within_error(DType::kF32, 1.0, 1 + step,
                           epilogue_error(Epilogue::kResidual, 0, step, 1 + step)));
  EXPECT_FALSE(within_error(DType::kF32, 1.0, 1 + 4 * step,
                            epilogue_error(Epilogue::kResidual, 0, 4 * step, 1 + 4 * step)));
}

TEST(Compare, SiluMayEndInAnyTail) {
  const double at_minus_85 = -85 * std::exp(-85.0);
  EXPECT_TRUE(within_bound(DType::kF32, 4, Activation::kSilu, -0.0, at_minus_85, 85));
  EXPECT_FALSE(within_bound(DType::kF32, 4, Activation::kSilu, -1e-4, at_minus_85, 85));
}

TEST(Compare, TheBoundOfAMessageContainsTheRoundingOfTheType) {
  const double computing = computing_error(4, Activation::kSilu, 1.0, 2.0);
  EXPECT_EQ(error_bound(DType::kBF16, 4, Activation::kSilu, 1.0, 2.0), computing + 0x1p-8);
  EXPECT_EQ(error_bound(DType::kF16, 4, Activation::kSilu, 1.0, 2.0), computing + 0x1p-11);
  EXPECT_EQ(error_bound(DType::kF32, 4, Activation::kSilu, 1.0, 2.0), computing + 0x1p-24);
  EXPECT_GT(error_bound(DType::kF32, 4, Activation::kNone, 0.0, 0.0), 0.0);
}

}  // namespace
}  // namespace shortconv::tools
