// Gradients on a GPU: random calls against the reference, the same bits from every kernel, on every
// run and beside other work, graphs replayed with other lengths, more than 2^32 elements.
#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/backward_case.hpp"
#include "fixture.cuh"
#include "shortconv/argument_table.hpp"

namespace shortconv::gpu_tests {
namespace {

using tests::BackwardCase;
using tests::BackwardResults;

/// The tensors of a call in device memory. Those of floating type start `offset` bytes after an
/// aligned address.
class DeviceCall {
 public:
  explicit DeviceCall(const BackwardArgs& host, std::int64_t offset = 0) : host_(host), args(host) {
    visit_backward_tensors(
        [&](const Argument&, auto& from, auto& to) {
          if constexpr (std::is_same_v<decltype(to), TensorRef&>) {
            move(from, to, offset);
          } else if (to) {
            move(*from, *to, offset);
          }
        },
        host_, args);
    args.backend = BackendId::kCuda;
  }

  /// Runs the call with a workspace full of NaN.
  void run(cudaStream_t stream) {
    const DeviceMemory workspace(workspace_bytes_of(args));
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    const Status status = backward(args, stream);
    ASSERT_TRUE(status.ok()) << status.message();
    check(cudaStreamSynchronize(stream));
  }

  /// Copies the results to the host's tensors.
  void fetch() {
    for (const Copy& copy : copies_) {
      check(cudaMemcpy(copy.host, copy.device, copy.bytes, cudaMemcpyDeviceToHost));
    }
  }

 private:
  struct Copy {
    void* host;
    char* device;
    std::size_t bytes;
  };

  static std::size_t bytes_of(const TensorRef& tensor) {
    std::int64_t last = 0;
    for (int axis = 0; axis < tensor.ndim; ++axis) {
      if (tensor.shape[axis] == 0) return 0;
      last += (tensor.shape[axis] - 1) * tensor.strides[axis];
    }
    return static_cast<std::size_t>((last + 1) * element_bytes(tensor.dtype));
  }

  void move(const TensorRef& from, TensorRef& to, std::int64_t offset) {
    const std::size_t bytes = bytes_of(from);
    if (from.dtype == DType::kI32 || from.dtype == DType::kI64) offset = 0;
    memory_.push_back(std::make_unique<DeviceMemory>(static_cast<std::int64_t>(bytes) + 16));
    to.data = static_cast<char*>(memory_.back()->data()) + offset;
    to.device = kGpu;
    check(cudaMemcpy(to.data, from.data, bytes, cudaMemcpyHostToDevice));
    copies_.push_back({from.data, static_cast<char*>(to.data), bytes});
  }

  BackwardArgs host_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
  std::vector<Copy> copies_;

 public:
  BackwardArgs args;
};

class GpuBackward : public GpuTest {
 protected:
  void run_on_gpu(BackwardCase& one, BackwardResults& to, std::int64_t offset = 0) {
    DeviceCall call(one.args_to(to, BackendId::kReference), offset);
    call.run(stream_);
    call.fetch();
  }
};

TEST_F(GpuBackward, AgreesWithTheReference) {
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    tools::Random random(seed);
    BackwardCase one = seed % 4 == 3
                           ? BackwardCase::any(random)
                           : BackwardCase::with_strips(random, tests::kRowDTypes[seed % 3]);
    BackwardResults cuda = one.results, reference = one.results;
    run_on_gpu(one, cuda);
    if (HasFatalFailure()) return;
    expect_ok(backward(one.args_to(reference, BackendId::kReference)));
    tests::expect_close(cuda, reference, "seed " + std::to_string(seed) + ": " + one.text());
    if (HasFatalFailure()) return;
  }
}

TEST_F(GpuBackward, AllKernelsGiveTheSameBits) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    tools::Random random(5000 + seed);
    BackwardCase one = BackwardCase::with_strips(random, tests::kRowDTypes[seed % 3]);
    BackwardResults strips = one.results, shorter = one.results, general = one.results;
    run_on_gpu(one, strips);
    run_on_gpu(one, shorter, 8);  // copies of 8 bytes
    run_on_gpu(one, general, 4);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(shorter == strips) << "seed " << seed << ": " << one.text();
    ASSERT_TRUE(general == strips) << "seed " << seed << ": " << one.text();
  }
}

/// A large call of its own: bf16, width 4, SiLU.
struct LargeCall {
  std::int64_t tokens, channels;
  DeviceMemory x, grad_out, weight, grad_x, grad_weight, bounds, workspace;

  LargeCall(std::int64_t token_count, std::int64_t channel_count,
            const std::vector<std::int64_t>& lengths)
      : tokens(token_count),
        channels(channel_count),
        x(tokens * channels * 2),
        grad_out(tokens * channels * 2),
        weight(channels * 4 * 2),
        grad_x(tokens * channels * 2),
        grad_weight(channels * 4 * 4),
        bounds(Batch::bounds_of(lengths)),
        workspace(workspace_bytes_of(args(nullptr, 0))) {
    x.fill(1);
    grad_out.fill(2);
    weight.fill(3);
  }
  [[nodiscard]] BackwardArgs args() const { return args(workspace.data(), workspace.bytes()); }
  [[nodiscard]] BackwardArgs args(void* memory, std::int64_t bytes) const {
    BackwardArgs args;
    args.activation = Activation::kSilu;
    args.x = TensorRef::contiguous(x.data(), DType::kBF16, {tokens, channels}, kGpu);
    args.grad_out = TensorRef::contiguous(grad_out.data(), DType::kBF16, {tokens, channels}, kGpu);
    args.weight = TensorRef::contiguous(weight.data(), DType::kBF16, {channels, 4}, kGpu);
    args.grad_x = TensorRef::contiguous(grad_x.data(), DType::kBF16, {tokens, channels}, kGpu);
    args.grad_weight = TensorRef::contiguous(grad_weight.data(), DType::kF32, {channels, 4}, kGpu);
    args.query_start_loc =
        TensorRef::contiguous(bounds.data(), DType::kI32, {bounds.bytes() / 4}, kGpu);
    args.workspace = memory;
    args.workspace_bytes = bytes;
    return args;
  }
};

TEST_F(GpuBackward, RepeatedRunsBesideOtherWorkGiveTheSameBits) {
  const std::vector<std::int64_t> lengths{700, 0, 1, 2, 3, 1200, 64, 64, 5, 2057};
  LargeCall call(4096, 2048, lengths);
  expect_ok(backward(call.args(), stream_));
  wait();
  DeviceMemory grad_x(call.grad_x.bytes()), grad_weight(call.grad_weight.bytes());
  grad_x.copy_from(call.grad_x, stream_);
  grad_weight.copy_from(call.grad_weight, stream_);
  wait();
  // The other stream keeps multiprocessors busy, so blocks run in another order and number.
  cudaStream_t other = nullptr;
  check(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  DeviceMemory noise(64 << 20);
  Differences differences;
  for (int repetition = 0; repetition < 1000; ++repetition) {
    if (repetition % 3 == 0) {
      fill_words<<<64, 256, 0, other>>>(static_cast<std::uint32_t*>(noise.data()),
                                        noise.bytes() / 4, 7);
    }
    check(cudaMemsetAsync(call.grad_x.data(), 0xff, static_cast<std::size_t>(grad_x.bytes()),
                          stream_));
    check(cudaMemsetAsync(call.grad_weight.data(), 0xff,
                          static_cast<std::size_t>(grad_weight.bytes()), stream_));
    expect_ok(backward(call.args(), stream_));
    differences.add(call.grad_x, grad_x, stream_);
    differences.add(call.grad_weight, grad_weight, stream_);
  }
  EXPECT_EQ(differences.total(), 0u);
  check(cudaStreamDestroy(other));
}

TEST_F(GpuBackward, GraphsReplayWithOtherLengths) {
  const std::vector<std::int64_t> first{100, 200, 1, 211}, second{3, 0, 500, 9};
  LargeCall captured(512, 256, first), eager(512, 256, second);
  expect_ok(backward(captured.args(), stream_));  // loads the kernels
  const Replayable graph(stream_, [&] { return backward(captured.args(), stream_); });
  const auto bounds = Batch::bounds_of(second);
  check(
      cudaMemcpy(captured.bounds.data(), bounds.data(), bounds.size() * 4, cudaMemcpyHostToDevice));
  captured.grad_x.poison();
  captured.grad_weight.poison();
  graph.replay();
  expect_ok(backward(eager.args(), stream_));
  Differences differences;
  differences.add(captured.grad_x, eager.grad_x, stream_);
  differences.add(captured.grad_weight, eager.grad_weight, stream_);
  EXPECT_EQ(differences.total(), 0u);
}

TEST_F(GpuBackward, CallsReturnWhileAKernelBeforeThemIsStillRunning) {
  LargeCall call(512, 256, {100, 200, 212});
  expect_ok(backward(call.args(), stream_));
  wait();
  int* flag = nullptr;
  check(cudaMallocHost(&flag, sizeof *flag));
  *flag = 0;
  wait_for_flag<<<1, 1, 0, stream_>>>(flag);
  expect_ok(backward(call.args(), stream_));
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  *const_cast<volatile int*>(flag) = 1;
  wait();
  check(cudaFreeHost(flag));
}

/// The last rows of a call with more than 2^32 elements are those of a call with only them.
TEST_F(GpuBackward, MoreThanTwoToThe32Elements) {
  constexpr std::int64_t kTokens = 1100000, kChannels = 4096, kLast = 1000;
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total));
  if (free < std::size_t{32} << 30) GTEST_SKIP() << "needs 32 GiB of device memory";
  LargeCall call(kTokens, kChannels, {kTokens - kLast, kLast});
  expect_ok(backward(call.args(), stream_));
  LargeCall last(kLast, kChannels, {kLast});
  const std::int64_t offset = (kTokens - kLast) * kChannels * 2;
  for (const auto& [to, from] : {std::pair{&last.x, &call.x}, {&last.grad_out, &call.grad_out}}) {
    check(cudaMemcpyAsync(to->data(), static_cast<char*>(from->data()) + offset,
                          static_cast<std::size_t>(to->bytes()), cudaMemcpyDeviceToDevice,
                          stream_));
  }
  expect_ok(backward(last.args(), stream_));
  Differences differences;
  differences.add(static_cast<char*>(call.grad_x.data()) + offset, last.grad_x.data(),
                  last.grad_x.bytes(), stream_);
  EXPECT_EQ(differences.total(), 0u);
}

/// |error| <= 5e-7 * (s + |a| s (1 - s)) for the derivative of SiLU.
TEST_F(GpuBackward, SlopeOfSiluIsAsPreciseAsPromised) {
  constexpr std::int64_t kCount = 200000;
  std::vector<float> a(2 * kCount), ones(2 * kCount, 1.0f), slope(2 * kCount), weight{0, 1, 0, 1};
  for (std::int64_t i = 0; i < 2 * kCount; ++i) {
    a[static_cast<std::size_t>(i)] = static_cast<float>(-100 + 0.0005 * static_cast<double>(i));
  }
  BackwardArgs args;
  args.activation = Activation::kSilu;
  args.x = TensorRef::contiguous(a.data(), DType::kF32, {kCount, 2});
  args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {2, 2});
  args.grad_out = TensorRef::contiguous(ones.data(), DType::kF32, {kCount, 2});
  args.grad_x = TensorRef::contiguous(slope.data(), DType::kF32, {kCount, 2});
  DeviceCall call(args);
  call.run(stream_);
  call.fetch();
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double value = a[i], s = 1 / (1 + std::exp(-value));
    // Where s is below the normal numbers, at -87.4 and below, it counts as 0: 87 * 2^-126.
    const double bound = 5e-7 * (s + std::fabs(value) * s * (1 - s)) + 87 * 0x1p-126;
    ASSERT_NEAR(slope[i], s * (1 + value * (1 - s)), bound) << value;
  }
}

}  // namespace
}  // namespace shortconv::gpu_tests
