// The device's SiLU against fp64, through decode: a width-2 filter with weights 0 and 1 hands the
// input to the activation unchanged.
#include <bit>
#include <cmath>
#include <limits>

#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

class Silu : public GpuTest {
 protected:
  /// `inputs` in, silu of them out; a multiple of 4 of them.
  std::vector<float> silu(const std::vector<float>& inputs) {
    const auto channels = static_cast<std::int64_t>(inputs.size());
    const DeviceMemory x(inputs), out(channels * 4), state(std::vector<float>(inputs.size(), 0.0f));
    std::vector<float> weights(inputs.size() * 2, 0.0f);
    for (std::size_t c = 0; c < inputs.size(); ++c) weights[2 * c + 1] = 1.0f;
    const DeviceMemory weight(weights);
    ForwardArgs args;
    args.op = Op::kDecode;
    args.x = TensorRef::contiguous(x.data(), DType::kF32, {1, channels}, kGpu);
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {1, channels}, kGpu);
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {channels, 2}, kGpu);
    args.pool.state = TensorRef::contiguous(state.data(), DType::kF32, {1, 1, channels}, kGpu);
    args.epilogue.activation = Activation::kSilu;
    expect_ok(forward(args, stream_));
    wait();
    std::vector<float> results(inputs.size());
    check(cudaMemcpy(results.data(), out.data(), results.size() * 4, cudaMemcpyDeviceToHost));
    return results;
  }
};

double exact(double a) { return a / (1 + std::exp(-a)); }

TEST_F(Silu, IsWithinOneMillionthUpTo80) {
  std::vector<float> inputs;
  // Every 64th fp32 number of both signs with magnitude 2^-20 to 80.
  const auto last = std::bit_cast<std::uint32_t>(80.0f);
  for (std::uint32_t bits = std::bit_cast<std::uint32_t>(0x1p-20f); bits <= last; bits += 64) {
    inputs.push_back(std::bit_cast<float>(bits));
    inputs.push_back(-std::bit_cast<float>(bits));
  }
  inputs.resize(inputs.size() / 4 * 4);
  const std::vector<float> results = silu(inputs);
  double worst = 0;
  float at = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const double wanted = exact(static_cast<double>(inputs[i]));
    const double error = std::fabs(static_cast<double>(results[i]) - wanted) / std::fabs(wanted);
    if (!(error <= worst)) {
      worst = error;
      at = inputs[i];
    }
  }
  RecordProperty("worst_relative_error", std::to_string(worst * 1e9) + "e-9");
  EXPECT_LT(worst, 1e-6) << "at " << at;
  std::printf("largest relative error of SiLU: %.2e at %g\n", worst, static_cast<double>(at));
}

TEST_F(Silu, TailsAreMonotoneAndSpecialValuesFollowIeee) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> inputs;
  for (int i = 0; i <= 4000; ++i) inputs.push_back(-80.0f - static_cast<float>(i) * 0.01f);
  for (int i = 0; i <= 4000; ++i) inputs.push_back(80.0f + static_cast<float>(i) * 0.01f);
  const std::size_t special = inputs.size();
  for (float value : {infinity, -infinity, std::nanf(""), 0.0f, -0.0f, 3e38f, -3e38f, 1e-40f}) {
    inputs.push_back(value);
  }
  while (inputs.size() % 4 != 0) inputs.push_back(0.0f);
  const std::vector<float> y = silu(inputs);
  for (int i = 1; i <= 4000; ++i) {
    EXPECT_GE(y[i], y[i - 1]) << "at " << inputs[i];
    EXPECT_GE(y[4001 + i], y[4000 + i]) << "at " << inputs[4001 + i];
  }
  EXPECT_EQ(y[4000], 0.0f);
  EXPECT_EQ(y[special], infinity);
  EXPECT_TRUE(std::isnan(y[special + 1]));
  EXPECT_TRUE(std::isnan(y[special + 2]));
  EXPECT_EQ(y[special + 3], 0.0f);
  EXPECT_EQ(y[special + 4], 0.0f);
  EXPECT_EQ(y[special + 5], 3e38f);
  EXPECT_EQ(y[special + 6], 0.0f);
}

}  // namespace
}  // namespace shortconv::gpu_tests
