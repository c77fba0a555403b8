// Precision of gradients against fp64, and equal bits on any number of multiprocessors.
#include <cuda.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/element.hpp"
#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

constexpr std::int64_t kWidth = 4;

/// bf16 rows and weights on a GPU and the same numbers in fp64 on the host, which are exact.
struct Layer {
  std::int64_t tokens, channels;
  std::vector<double> x, grad_out, weight, grad_x, grad_weight;
  DeviceMemory device_x, device_grad_out, device_weight, device_grad_x, device_grad_weight,
      workspace;

  Layer(std::int64_t token_count, std::int64_t channel_count, double mean)
      : tokens(token_count),
        channels(channel_count),
        x(static_cast<std::size_t>(tokens * channels)),
        grad_out(x.size()),
        weight(static_cast<std::size_t>(kWidth * channels)),
        grad_x(x.size()),
        grad_weight(weight.size()),
        device_x(tokens * channels * 2),
        device_grad_out(tokens * channels * 2),
        device_weight(channels * kWidth * 2),
        device_grad_x(tokens * channels * 2),
        device_grad_weight(channels * kWidth * 4),
        workspace(workspace_bytes_of(on_device(nullptr, 0))) {
    fill(x, device_x, 1, mean);
    fill(grad_out, device_grad_out, 2, mean);
    fill(weight, device_weight, 3, 0);
    workspace.poison();
  }

  [[nodiscard]] BackwardArgs on_host() {
    const auto tensor = [](std::vector<double>& from, std::int64_t rows, std::int64_t columns) {
      return TensorRef::contiguous(from.data(), DType::kF64, {rows, columns});
    };
    BackwardArgs args;
    args.activation = Activation::kSilu;
    args.backend = BackendId::kReference;
    args.x = tensor(x, tokens, channels);
    args.grad_out = tensor(grad_out, tokens, channels);
    args.weight = tensor(weight, channels, kWidth);
    args.grad_x = tensor(grad_x, tokens, channels);
    args.grad_weight = tensor(grad_weight, channels, kWidth);
    return args;
  }

  [[nodiscard]] BackwardArgs on_device() { return on_device(workspace.data(), workspace.bytes()); }
  [[nodiscard]] BackwardArgs on_device(void* memory, std::int64_t bytes) {
    const auto tensor = [](DeviceMemory& from, DType dtype, std::int64_t rows,
                           std::int64_t columns) {
      return TensorRef::contiguous(from.data(), dtype, {rows, columns}, kGpu);
    };
    BackwardArgs args;
    args.activation = Activation::kSilu;
    args.x = tensor(device_x, DType::kBF16, tokens, channels);
    args.grad_out = tensor(device_grad_out, DType::kBF16, tokens, channels);
    args.weight = tensor(device_weight, DType::kBF16, channels, kWidth);
    args.grad_x = tensor(device_grad_x, DType::kBF16, tokens, channels);
    args.grad_weight = tensor(device_grad_weight, DType::kF32, channels, kWidth);
    args.workspace = memory;
    args.workspace_bytes = bytes;
    return args;
  }

  template <typename T>
  [[nodiscard]] static std::vector<T> fetched(const DeviceMemory& from) {
    std::vector<T> all(static_cast<std::size_t>(from.bytes()) / sizeof(T));
    check(cudaMemcpy(all.data(), from.data(), all.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  /// Roughly normal numbers, rounded to bf16.
  static void fill(std::vector<double>& numbers, DeviceMemory& device, std::uint32_t seed,
                   double mean) {
    std::vector<std::uint16_t> bits(numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      double sum = mean;
      for (std::uint32_t part = 0; part < 4; ++part) {
        sum += static_cast<double>(bits_of(4 * i + part, seed) & 0xffffu) / 0x1p16 - 0.5;
      }
      store_element(DType::kBF16, &bits[i], sum);
      numbers[i] = load_element(DType::kBF16, &bits[i]);
    }
    check(cudaMemcpy(device.data(), bits.data(), bits.size() * 2, cudaMemcpyHostToDevice));
  }
};

class GradientSums : public GpuTest {};

TEST_F(GradientSums, GradientsOfXAreCorrectlyRounded) {
  Layer layer(4096, 64, 0);
  expect_ok(backward(layer.on_device(), stream_));
  wait();
  expect_ok(backward(layer.on_host()));
  const auto cuda = Layer::fetched<std::uint16_t>(layer.device_grad_x);
  std::int64_t rounded = 0;
  for (std::size_t i = 0; i < cuda.size(); ++i) {
    std::uint16_t expected = 0;
    store_element(DType::kBF16, &expected, layer.grad_x[i]);
    rounded += cuda[i] == expected ? 1 : 0;
  }
  const double share = static_cast<double>(rounded) / static_cast<double>(cuda.size());
  RecordProperty("share", std::to_string(share));
  EXPECT_GE(share, 0.999);
}

/// 2^20 tokens, of inputs and gradients with mean 0 and with mean 1.
TEST_F(GradientSums, GradientsOfWeightsOverAMillionTokensAreExact) {
  for (const double mean : {0.0, 1.0}) {
    Layer layer(std::int64_t{1} << 20, 8, mean);
    expect_ok(backward(layer.on_device(), stream_));
    wait();
    expect_ok(backward(layer.on_host()));
    const auto cuda = Layer::fetched<float>(layer.device_grad_weight);
    double largest = 0, error = 0;
    for (std::size_t i = 0; i < cuda.size(); ++i) {
      largest = std::max(largest, std::fabs(layer.grad_weight[i]));
      error = std::max(error, std::fabs(static_cast<double>(cuda[i]) - layer.grad_weight[i]));
    }
    RecordProperty(mean == 0 ? "error_of_mean_0" : "error_of_mean_1",
                   std::to_string(1e9 * error / largest) + "e-9");
    EXPECT_LE(error, 5e-7 * largest) << "mean " << mean;
  }
}

/// Functions of the driver, found at run time: the test links with the runtime alone.
template <typename Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  if (cudaGetDriverEntryPointByVersion(name, &found, 12040, cudaEnableDefault, &result) !=
          cudaSuccess ||
      result != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Function>(found);
}

/// A part of the GPU with at least that many multiprocessors: a green context. False where the
/// driver has none.
class Part {
 public:
  [[nodiscard]] bool create(unsigned multiprocessors) {
    const auto get = driver_function<decltype(&cuDeviceGetDevResource)>("cuDeviceGetDevResource");
    const auto split =
        driver_function<decltype(&cuDevSmResourceSplitByCount)>("cuDevSmResourceSplitByCount");
    const auto describe =
        driver_function<decltype(&cuDevResourceGenerateDesc)>("cuDevResourceGenerateDesc");
    const auto create = driver_function<decltype(&cuGreenCtxCreate)>("cuGreenCtxCreate");
    const auto context = driver_function<decltype(&cuCtxFromGreenCtx)>("cuCtxFromGreenCtx");
    push_ = driver_function<decltype(&cuCtxPushCurrent)>("cuCtxPushCurrent");
    pop_ = driver_function<decltype(&cuCtxPopCurrent)>("cuCtxPopCurrent");
    destroy_ = driver_function<decltype(&cuGreenCtxDestroy)>("cuGreenCtxDestroy");
    if (!get || !split || !describe || !create || !context || !push_ || !pop_ || !destroy_) {
      return false;
    }
    CUdevResource all{}, part{};
    unsigned groups = 1;
    CUdevResourceDesc description = nullptr;
    CUcontext current = nullptr;
    if (get(0, &all, CU_DEV_RESOURCE_TYPE_SM) != CUDA_SUCCESS ||
        split(&part, &groups, &all, nullptr, 0, multiprocessors) != CUDA_SUCCESS ||
        describe(&description, &part, 1) != CUDA_SUCCESS ||
        create(&green_, description, 0, CU_GREEN_CTX_DEFAULT_STREAM) != CUDA_SUCCESS ||
        context(&current, green_) != CUDA_SUCCESS || push_(current) != CUDA_SUCCESS) {
      return false;
    }
    multiprocessors_ = part.sm.smCount;
    return true;
  }
  ~Part() {
    CUcontext popped = nullptr;
    if (green_ == nullptr) return;
    (void)pop_(&popped);
    (void)destroy_(green_);
  }
  [[nodiscard]] unsigned multiprocessors() const { return multiprocessors_; }

 private:
  CUgreenCtx green_ = nullptr;
  unsigned multiprocessors_ = 0;
  decltype(&cuCtxPushCurrent) push_ = nullptr;
  decltype(&cuCtxPopCurrent) pop_ = nullptr;
  decltype(&cuGreenCtxDestroy) destroy_ = nullptr;
};

TEST_F(GradientSums, AnyNumberOfMultiprocessorsGivesTheSameBits) {
  Layer layer(3000, 1024, 0);
  expect_ok(backward(layer.on_device(), stream_));
  wait();
  const auto grad_x = Layer::fetched<std::uint16_t>(layer.device_grad_x);
  const auto grad_weight = Layer::fetched<float>(layer.device_grad_weight);
  for (const unsigned wanted : {16u, 64u}) {
    Part part;
    if (!part.create(wanted)) GTEST_SKIP() << "the driver has no green contexts";
    EXPECT_LE(part.multiprocessors(), wanted + 16);
    layer.device_grad_x.poison();
    layer.device_grad_weight.poison();
    check(cudaDeviceSynchronize());
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    expect_ok(backward(layer.on_device(), stream));
    check(cudaStreamSynchronize(stream));
    EXPECT_EQ(Layer::fetched<std::uint16_t>(layer.device_grad_x), grad_x) << wanted;
    EXPECT_EQ(Layer::fetched<float>(layer.device_grad_weight), grad_weight) << wanted;
    check(cudaStreamDestroy(stream));
  }
}

}  // namespace
}  // namespace shortconv::gpu_tests
