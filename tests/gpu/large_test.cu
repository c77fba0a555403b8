// Tensors of more than 2^31 and 2^32 elements: what lies behind those bounds is computed like what
// lies before. A small call on the last rows, with the rows before them as its state, must give the
// same bits.
#include <algorithm>

#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

constexpr std::int64_t kRows = 40;  // compared at the end

class Large : public GpuTest, public ::testing::WithParamInterface<std::int64_t> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    if (free < static_cast<std::size_t>(GetParam()) * 4 + (std::size_t{2} << 30)) {
      GTEST_SKIP() << "needs " << GetParam() * 4 / (1 << 30) + 2 << " GiB of GPU memory";
    }
  }
};

TensorRef rows(void* data, std::int64_t tokens, std::int64_t channels) {
  return TensorRef::contiguous(data, DType::kBF16, {tokens, channels}, kGpu);
}

// x and out as [tokens, channels] or, transposed, as [channels, tokens].
void expect_same_end(std::int64_t elements, bool columns, cudaStream_t stream) {
  const std::int64_t channels = columns ? elements / 65536 : 16384;
  const std::int64_t tokens = elements / channels + kRows;
  DeviceMemory x(tokens * channels * 2), out(tokens * channels * 2), weight(channels * 4 * 2);
  x.fill(5);
  weight.fill(6);
  ForwardArgs args;
  args.x = rows(x.data(), tokens, channels);
  args.out = rows(out.data(), tokens, channels);
  if (columns) {
    args.x = rows(x.data(), channels, tokens).transposed(0, 1);
    args.out = rows(out.data(), channels, tokens).transposed(0, 1);
  }
  args.weight = TensorRef::contiguous(weight.data(), DType::kBF16, {channels, 4}, kGpu);
  args.epilogue.activation = Activation::kSilu;
  const Status whole = forward(args, stream);
  ASSERT_TRUE(whole.ok()) << whole.message();

  // The last rows again, into memory of their own, from a state that is the 3 rows before them.
  DeviceMemory end(kRows * channels * 2);
  ForwardArgs small = args;
  const std::int64_t first = tokens - kRows;
  small.x.data = static_cast<char*>(args.x.data) + first * args.x.strides[0] * 2;
  small.x.shape[0] = small.out.shape[0] = kRows;
  small.out = rows(end.data(), kRows, channels);
  DeviceMemory state(3 * channels * 2);
  const char* before = static_cast<const char*>(args.x.data) + (first - 3) * args.x.strides[0] * 2;
  check(cudaMemcpy2D(state.data(), columns ? 6 : static_cast<std::size_t>(channels) * 2, before,
                     static_cast<std::size_t>(columns ? args.x.strides[1] : channels) * 2,
                     columns ? 6 : static_cast<std::size_t>(channels) * 2,
                     static_cast<std::size_t>(columns ? channels : 3), cudaMemcpyDeviceToDevice));
  check(cudaDeviceSynchronize());
  small.pool.state =
      columns ? TensorRef::contiguous(state.data(), DType::kBF16, {1, channels, 3}, kGpu)
                    .transposed(1, 2)
              : TensorRef::contiguous(state.data(), DType::kBF16, {1, 3, channels}, kGpu);
  small.sequences.initial_state = InitialState::kAll;
  const Status part = forward(small, stream);
  ASSERT_TRUE(part.ok()) << part.message();

  std::vector<std::uint16_t> expected(static_cast<std::size_t>(kRows * channels));
  std::vector<std::uint16_t> got(expected.size());
  check(cudaDeviceSynchronize());
  check(cudaMemcpy(expected.data(), end.data(), expected.size() * 2, cudaMemcpyDeviceToHost));
  const char* last = static_cast<const char*>(args.out.data) + first * args.out.strides[0] * 2;
  if (columns) {
    std::vector<std::uint16_t> turned(expected.size());
    check(cudaMemcpy2D(turned.data(), kRows * 2, last,
                       static_cast<std::size_t>(args.out.strides[1]) * 2, kRows * 2,
                       static_cast<std::size_t>(channels), cudaMemcpyDeviceToHost));
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t t = 0; t < kRows; ++t) got[t * channels + c] = turned[c * kRows + t];
    }
  } else {
    check(cudaMemcpy(got.data(), last, got.size() * 2, cudaMemcpyDeviceToHost));
  }
  EXPECT_EQ(got, expected);
  EXPECT_EQ(std::count(expected.begin(), expected.end(), 0xffff), 0) << "poison is left";
}

TEST_P(Large, TokenMajorRowsBehindTheBound) { expect_same_end(GetParam(), false, stream_); }

TEST_P(Large, ChannelMajorRowsBehindTheBound) { expect_same_end(GetParam(), true, stream_); }

TEST_P(Large, StatesBehindTheBound) {
  // One sequence decodes from and to the last slot of a pool that large.
  constexpr std::int64_t kChannels = 8192;
  const std::int64_t slots = GetParam() / (3 * kChannels) + 2;
  DeviceMemory pool(slots * 3 * kChannels * 2), x(kChannels * 2), weight(kChannels * 8);
  DeviceMemory far(kChannels * 2), near(kChannels * 2), small(3 * kChannels * 2);
  x.fill(1);
  weight.fill(2);
  small.fill(3);
  auto* last = static_cast<char*>(pool.data()) + (slots - 1) * 3 * kChannels * 2;
  check(cudaMemcpy(last, small.data(), 3 * kChannels * 2, cudaMemcpyDeviceToDevice));
  check(cudaDeviceSynchronize());
  const DeviceMemory slot(std::vector<std::int64_t>{slots - 1});
  const auto decode = [&](void* state, std::int64_t count, const DeviceMemory* index, void* out) {
    ForwardArgs args;
    args.op = Op::kDecode;
    args.x = rows(x.data(), 1, kChannels);
    args.out = rows(out, 1, kChannels);
    args.weight = TensorRef::contiguous(weight.data(), DType::kBF16, {kChannels, 4}, kGpu);
    args.pool.state = TensorRef::contiguous(state, DType::kBF16, {count, 3, kChannels}, kGpu);
    if (index != nullptr) {
      args.pool.read_slots = TensorRef::contiguous(index->data(), DType::kI64, {1}, kGpu);
    }
    expect_ok(forward(args, stream_));
  };
  decode(pool.data(), slots, &slot, far.data());
  decode(small.data(), 1, nullptr, near.data());
  Differences differences;
  differences.add(far, near, stream_);
  differences.add(last, small.data(), 3 * kChannels * 2, stream_);
  EXPECT_EQ(differences.total(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Elements, Large,
                         ::testing::Values(std::int64_t{1} << 31, std::int64_t{1} << 32),
                         [](const auto& info) {
                           return info.param == std::int64_t{1} << 31 ? "MoreThan2To31"
                                                                      : "MoreThan2To32";
                         });

}  // namespace
}  // namespace shortconv::gpu_tests
