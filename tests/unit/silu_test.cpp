#include "op/silu.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cpu/kernels.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

double exact(double a) { return a / (1 + std::exp(-a)); }

// Every 97th fp32 number with magnitude up to 80: some 46 million of both signs would be slow,
// 500,000 are not.
std::vector<float> samples() {
  std::vector<float> values;
  for (std::uint32_t bits = 1; bits <= std::bit_cast<std::uint32_t>(80.0f); bits += 4447) {
    values.push_back(std::bit_cast<float>(bits));
    values.push_back(-std::bit_cast<float>(bits));
  }
  return values;
}

TEST(Silu, RelativeErrorBelowOneMillionth) {
  double worst = 0;
  for (const float a : samples()) {
    const double expected = exact(a);
    if (std::fabs(expected) < 0x1p-126)
      continue;  // a subnormal result has fewer digits to be right in
    worst = std::max(worst, std::fabs(silu(a) - expected) / std::fabs(expected));
  }
  EXPECT_LT(worst, 7e-7);  // the specification asks for 1e-6
  EXPECT_GT(worst, 1e-8);  // or the test looked at nothing
}

TEST(Silu, MonotoneAtTheTails) {
  // Below its minimum at -1.278 the function falls as a rises; above it rises. Steps of 2^-10 are
  // larger than the error.
  for (float a = -200; a < -2; a += 0x1p-10f) {
    ASSERT_GE(silu(a), silu(a + 0x1p-10f)) << a;
  }
  for (float a = -1; a < 200; a += 0x1p-10f) {
    ASSERT_LE(silu(a), silu(a + 0x1p-10f)) << a;
  }
  for (const float a : {-1e3f, -1e10f, -std::numeric_limits<float>::max()}) {
    EXPECT_EQ(silu(a), 0.0f) << a;
    EXPECT_TRUE(std::signbit(silu(a))) << a;
  }
}

TEST(Silu, SpecialValuesFollowIeee) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(silu(inf), inf);
  EXPECT_TRUE(std::isnan(silu(-inf)));  // -inf / inf
  EXPECT_TRUE(std::isnan(silu(std::nanf(""))));
  EXPECT_EQ(silu(0.0f), 0.0f);
  EXPECT_TRUE(std::signbit(silu(-0.0f)));
  EXPECT_EQ(silu(std::numeric_limits<float>::max()), std::numeric_limits<float>::max());
}

// The vectors of whatever instruction set runs here do what the scalar form does, bit for bit.
TEST(Silu, VectorsGiveTheBitsOfTheScalarForm) {
  std::vector<float> x = samples();
  for (const float special :
       {0.0f, -0.0f, 88.4f, -88.4f, 1e30f, -1e30f, std::numeric_limits<float>::infinity()}) {
    x.push_back(special);
  }
  x.resize(x.size() / 64 * 64);
  std::vector<float> out(x.size()), weight(x.size() * 2);
  for (std::size_t i = 0; i < x.size(); ++i) weight[2 * i + 1] = 1.0f;  // the current token alone
  const auto channels = static_cast<std::int64_t>(x.size());
  ForwardArgs args;
  args.x = TensorRef::contiguous(x.data(), DType::kF32, {1, channels});
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {1, channels});
  args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {channels, 2});
  args.epilogue.activation = Activation::kSilu;
  const Status status = forward(args);
  ASSERT_TRUE(status.ok()) << status.message();
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(silu(x[i] + 0.0f)))
        << x[i];
  }
}

}  // namespace
}  // namespace shortconv
