// What the tests on a GPU share: device memory with known contents and calls on it. Without a GPU
// every test is skipped, which ctest counts.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "shortconv/plan.hpp"

namespace shortconv::gpu_tests {

/// Bytes of workspace that the call needs; at least 4, because there is no memory of 0 bytes.
inline std::int64_t workspace_bytes_of(const BackwardArgs& args) {
  BackwardProblem problem;
  const Status made = make_problem(args, problem);
  EXPECT_TRUE(made.ok()) << made.message();
  BackwardPlan plan;
  const Status planned = make_plan(problem, plan);
  EXPECT_TRUE(planned.ok()) << planned.message();
  return std::max<std::int64_t>(workspace_bytes(plan), 4);
}

inline void check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      (void)cudaGetLastError();
      GTEST_SKIP() << "there is no GPU";
    }
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_ != nullptr) check(cudaStreamDestroy(stream_));
  }
  void wait() { check(cudaStreamSynchronize(stream_)); }
  void expect_ok(const Status& status) { ASSERT_TRUE(status.ok()) << status.message(); }

  cudaStream_t stream_ = nullptr;
};

/// What `work` puts on a stream, captured once.
class Replayable {
 public:
  template <typename Work>
  Replayable(cudaStream_t stream, Work&& work) : stream_(stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const Status status = work();
    check(cudaStreamEndCapture(stream, &graph_));
    EXPECT_TRUE(status.ok()) << status.message();
    check(cudaGraphInstantiate(&executable_, graph_, 0));
  }
  ~Replayable() {
    (void)cudaGraphExecDestroy(executable_);
    (void)cudaGraphDestroy(graph_);
  }
  Replayable(const Replayable&) = delete;
  Replayable& operator=(const Replayable&) = delete;

  void replay() const { check(cudaGraphLaunch(executable_, stream_)); }
  [[nodiscard]] std::size_t nodes() const {
    std::size_t count = 0;
    check(cudaGraphGetNodes(graph_, nullptr, &count));
    return count;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

/// Different bits for every index and seed; as bf16 or fp32 finite, of magnitude 0.5 to 2.
__host__ __device__ inline std::uint32_t bits_of(std::uint64_t index, std::uint32_t seed) {
  std::uint64_t h = (index + 1) * 0x9e3779b97f4a7c15ull + seed;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h ^= h >> 27;
  const auto bits = static_cast<std::uint32_t>(h);
  // Sign and mantissa are random in both halves, so are two of the exponents.
  return (bits & 0x80ff80ffu) | 0x3f003f00u;
}

static __global__ void fill_words(std::uint32_t* words, std::int64_t count, std::uint32_t seed) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    words[i] = bits_of(static_cast<std::uint64_t>(i), seed);
  }
}

static __global__ void count_differences(const std::uint32_t* a, const std::uint32_t* b,
                                         std::int64_t count, unsigned long long* differences) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    if (a[i] != b[i]) atomicAdd(differences, 1ull);
  }
}

/// Keeps a stream busy until the host sets the flag.
static __global__ void wait_for_flag(const volatile int* flag) {
  while (*flag == 0) continue;
}

/// Device memory, poisoned with bytes of ones (a NaN in every type) or filled.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::int64_t bytes) : bytes_((bytes + 3) / 4 * 4) {
    check(cudaMalloc(&data_, static_cast<std::size_t>(bytes_)));
    poison();
  }
  template <typename T>
  explicit DeviceMemory(const std::vector<T>& values)
      : DeviceMemory(static_cast<std::int64_t>(values.size() * sizeof(T))) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceMemory() { (void)cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void poison() {
    check(cudaMemset(data_, 0xff, static_cast<std::size_t>(bytes_)));
    check(cudaDeviceSynchronize());  // the streams of the tests do not wait for the default one
  }
  DeviceMemory& fill(std::uint32_t seed) {
    fill_words<<<1024, 256>>>(static_cast<std::uint32_t*>(data_), bytes_ / 4, seed);
    check(cudaDeviceSynchronize());
    return *this;
  }
  void copy_from(const DeviceMemory& other, cudaStream_t stream) {
    check(cudaMemcpyAsync(data_, other.data_, static_cast<std::size_t>(bytes_),
                          cudaMemcpyDeviceToDevice, stream));
  }
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_;
};

/// Counts on the stream, so that thousands of comparisons cost no copies.
class Differences {
 public:
  Differences() : count_(std::vector<std::uint64_t>{0}) {}
  void add(const void* a, const void* b, std::int64_t bytes, cudaStream_t stream) {
    count_differences<<<264, 256, 0, stream>>>(static_cast<const std::uint32_t*>(a),
                                               static_cast<const std::uint32_t*>(b), bytes / 4,
                                               static_cast<unsigned long long*>(count_.data()));
  }
  void add(const DeviceMemory& a, const DeviceMemory& b, cudaStream_t stream) {
    ASSERT_EQ(a.bytes(), b.bytes());
    add(a.data(), b.data(), a.bytes(), stream);
  }
  [[nodiscard]] std::uint64_t total() const {
    std::uint64_t total = 0;
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(&total, count_.data(), sizeof total, cudaMemcpyDeviceToHost));
    return total;
  }

 private:
  DeviceMemory count_;
};

inline constexpr Device kGpu{DeviceType::kCuda, 0};

/// A packed bf16 batch of width 4 with states, every second sequence resumed.
struct Batch {
  std::vector<std::int64_t> lengths;
  std::int64_t channels, tokens;
  DeviceMemory x, out, weight, state, bounds, flags;

  Batch(std::vector<std::int64_t> sequence_lengths, std::int64_t channel_count,
        std::int64_t capacity = 0)
      : lengths(std::move(sequence_lengths)),
        channels(channel_count),
        tokens(
            std::max(capacity, std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}))),
        x(tokens * channels * 2),
        out(tokens * channels * 2),
        weight(channels * 4 * 2),
        state(sequences() * 3 * channels * 2),
        bounds(bounds_of(lengths)),
        flags(std::vector<std::uint8_t>(lengths.size(), 1)) {
    x.fill(1);
    weight.fill(2);
    state.fill(3);
    std::vector<std::uint8_t> resumed(lengths.size());
    for (std::size_t s = 0; s < resumed.size(); ++s) resumed[s] = s % 2 == 0;
    check(cudaMemcpy(flags.data(), resumed.data(), resumed.size(), cudaMemcpyHostToDevice));
  }

  static std::vector<std::int32_t> bounds_of(const std::vector<std::int64_t>& lengths) {
    std::vector<std::int32_t> bounds{0};
    for (const std::int64_t length : lengths) {
      bounds.push_back(bounds.back() + static_cast<std::int32_t>(length));
    }
    return bounds;
  }
  void set_lengths(const std::vector<std::int64_t>& other) {
    lengths = other;
    const auto values = bounds_of(other);
    check(cudaMemcpy(bounds.data(), values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  }

  [[nodiscard]] std::int64_t sequences() const { return static_cast<std::int64_t>(lengths.size()); }

  [[nodiscard]] ForwardArgs args() const {
    ForwardArgs args;
    args.x = TensorRef::contiguous(x.data(), DType::kBF16, {tokens, channels}, kGpu);
    args.out = TensorRef::contiguous(out.data(), DType::kBF16, {tokens, channels}, kGpu);
    args.weight = TensorRef::contiguous(weight.data(), DType::kBF16, {channels, 4}, kGpu);
    args.pool.state =
        TensorRef::contiguous(state.data(), DType::kBF16, {sequences(), 3, channels}, kGpu);
    args.sequences.query_start_loc =
        TensorRef::contiguous(bounds.data(), DType::kI32, {sequences() + 1}, kGpu);
    args.sequences.has_initial_state =
        TensorRef::contiguous(flags.data(), DType::kBool, {sequences()}, kGpu);
    args.epilogue.activation = Activation::kSilu;
    return args;
  }

  /// The same memory as one token for each sequence.
  [[nodiscard]] ForwardArgs decode_args() const {
    ForwardArgs args = this->args();
    args.op = Op::kDecode;
    args.x.shape[0] = args.out.shape[0] = sequences();
    args.sequences.query_start_loc.reset();
    args.sequences.has_initial_state.reset();
    return args;
  }
};

}  // namespace shortconv::gpu_tests
