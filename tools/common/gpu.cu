#include <cuda_runtime.h>

#include <algorithm>
#include <fstream>
#include <type_traits>

#include "common/error.hpp"
#include "common/gpu.hpp"

namespace shortconv::tools {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kVectorBytes = 16;

// Longer than the host takes to queue a graph of some hundred nodes.
constexpr double kQueueMicroseconds = 100;

// No GPU is a matter of the machine, anything else went wrong while working.
int exit_code_of(cudaError_t result) {
  const bool no_gpu = result == cudaErrorNoDevice || result == cudaErrorInsufficientDriver ||
                      result == cudaErrorStubLibrary || result == cudaErrorSystemDriverMismatch;
  return no_gpu ? kExitUsage : kExitFailed;
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  (void)cudaGetLastError();  // it is reported here, so nobody else should find it
  throw CommandError(exit_code_of(result), std::string("CUDA: ") + what + ": " +
                                               cudaGetErrorString(result) + " (" +
                                               cudaGetErrorName(result) + ")");
}

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }

__global__ void copy_vectors(uint4* __restrict__ dst, const uint4* __restrict__ src,
                             std::int64_t vectors) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < vectors) dst[at] = src[at];
}

// Blocks of a multiprocessor that let the next kernel start: as many warps as of the library's
// kernels, pdl_last_blocks in src/cuda/host/policy.hpp.
constexpr int kLastBlocks = 16 * 32 / kThreads;

__global__ void copy_vectors_overlapped(uint4* __restrict__ dst, const uint4* __restrict__ src,
                                        std::int64_t vectors, unsigned launch_from) {
#if __CUDA_ARCH__ >= 900
  if (blockIdx.x >= launch_from) asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < vectors) dst[at] = src[at];
}

__global__ void combine_vectors(uint4* __restrict__ dst, const uint4* __restrict__ a,
                                const uint4* __restrict__ b, std::int64_t vectors) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= vectors) return;
  const uint4 one = a[at], other = b[at];
  dst[at] = make_uint4(one.x ^ other.x, one.y ^ other.y, one.z ^ other.z, one.w ^ other.w);
}

__global__ void do_nothing() {}

template <std::int64_t kBytes>
struct Parameters {
  std::byte bytes[kBytes];
};

template <std::int64_t kBytes>
__global__ void take_parameters(const __grid_constant__ Parameters<kBytes>) {}

__device__ std::uint64_t global_nanoseconds() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void spin(std::uint64_t nanoseconds) {
  const std::uint64_t start = global_nanoseconds();
  while (global_nanoseconds() - start < nanoseconds) continue;
}

// Reports the error of this launch, not one that some other call left behind.
template <typename... Expected, typename... Given>
void launch(const char* what, void* stream, std::int64_t blocks, int threads,
            void (*kernel)(Expected...), const Given&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream_of(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

struct Destroy {
  void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
template <typename Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

// The driver loads a kernel when it is first asked for, which should not be inside a capture.
void load_kernels() {
  cudaFuncAttributes attributes;
  for (const void* kernel :
       {reinterpret_cast<const void*>(copy_vectors),
        reinterpret_cast<const void*>(copy_vectors_overlapped),
        reinterpret_cast<const void*>(combine_vectors), reinterpret_cast<const void*>(do_nothing),
        reinterpret_cast<const void*>(spin)}) {
    check(cudaFuncGetAttributes(&attributes, kernel), "loading a kernel");
  }
}

// The capture has to end whatever `record` does, or the stream stays unusable.
Owned<cudaGraph_t> capture(cudaStream_t stream, const std::function<void(void*)>& record) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of a capture");
  cudaGraph_t graph = nullptr;
  try {
    record(stream);
  } catch (...) {
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &graph), "end of a capture");
  return Owned<cudaGraph_t>(graph);
}

Owned<cudaEvent_t> make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "creating an event");
  return Owned<cudaEvent_t>(event);
}

std::string version_text(int version) {  // 13020 is 13.2
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The runtime knows only which CUDA version the driver supports.
std::string kernel_module_version() {
  std::string version;
  std::ifstream("/sys/module/nvidia/version") >> version;
  return version.empty() ? "unknown" : version;
}

void wait_for_default_stream() {
  check(cudaStreamSynchronize(cudaStreamLegacy), "waiting for a copy");
}

}  // namespace

int gpu_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

GpuDescription describe_gpu() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "properties of the GPU");
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "version of the driver");
  check(cudaRuntimeGetVersion(&runtime), "version of the runtime");
  return {.name = properties.name,
          .driver = kernel_module_version() + " (CUDA " + version_text(driver) + ")",
          .runtime = version_text(runtime),
          .multiprocessors = properties.multiProcessorCount,
          .l2_bytes = properties.l2CacheSize};
}

GpuBuffer::GpuBuffer(std::int64_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<std::size_t>(bytes)), "allocating memory of the GPU");
  data_.reset(data);
}

void GpuBuffer::Free::operator()(void* data) const { (void)cudaFree(data); }

PinnedBuffer::PinnedBuffer(std::int64_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  check(cudaMallocHost(&data, static_cast<std::size_t>(bytes)), "allocating pinned memory");
  data_.reset(data);
}

void PinnedBuffer::Free::operator()(void* data) const { (void)cudaFreeHost(data); }

// cudaMemcpy from pageable memory may return before the last bytes have arrived, and streams that
// do not synchronise with the default one would not wait for them.
void copy_to_gpu(void* device, const void* host, std::int64_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpy(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice),
        "copying to the GPU");
  wait_for_default_stream();
}

void copy_from_gpu(void* host, const void* device, std::int64_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpy(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost),
        "copying from the GPU");
}

void start_copy_to_gpu(void* device, const void* host, std::int64_t bytes, void* stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice,
                        stream_of(stream)),
        "copying to the GPU");
}

void start_copy_from_gpu(void* host, const void* device, std::int64_t bytes, void* stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost,
                        stream_of(stream)),
        "copying from the GPU");
}

void repeat_on_gpu(const GpuBuffer& device, std::int64_t table_bytes) {
  if (table_bytes <= 0) return;
  auto* data = static_cast<std::byte*>(device.data());
  // What is filled doubles with each copy and stays a multiple of the table until the last one.
  for (std::int64_t filled = table_bytes; filled < device.bytes();) {
    const std::int64_t bytes = std::min(filled, device.bytes() - filled);
    check(cudaMemcpyAsync(data + filled, data, static_cast<std::size_t>(bytes),
                          cudaMemcpyDeviceToDevice, cudaStreamLegacy),
          "filling memory of the GPU");
    filled += bytes;
  }
  wait_for_default_stream();
}

GpuStream::GpuStream() {
  load_kernels();
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  handle_ = stream;
}

GpuStream::~GpuStream() { (void)cudaStreamDestroy(stream_of(handle_)); }

void GpuStream::wait() const {
  check(cudaStreamSynchronize(stream_of(handle_)), "waiting for a stream");
}

GpuGraph::GpuGraph(const GpuStream& stream, const std::function<void(void*)>& record)
    : stream_(stream) {
  const Owned<cudaGraph_t> recorded = capture(stream_of(stream.handle()), record);
  cudaGraphExec_t instance = nullptr;
  check(cudaGraphInstantiateWithFlags(&instance, recorded.get(), 0), "instantiating a graph");
  Owned<cudaGraphExec_t> graph(instance);
  check(cudaGraphUpload(instance, stream_of(stream.handle())), "uploading a graph");
  stream.wait();
  Owned<cudaEvent_t> start = make_event();
  stop_ = make_event().release();
  start_ = start.release();
  graph_ = graph.release();
}

GpuGraph::~GpuGraph() {
  const Destroy destroy;
  destroy(static_cast<cudaEvent_t>(stop_));
  destroy(static_cast<cudaEvent_t>(start_));
  destroy(static_cast<cudaGraphExec_t>(graph_));
}

double GpuGraph::replay() const {
  const cudaStream_t stream = stream_of(stream_.handle());
  const auto start = static_cast<cudaEvent_t>(start_);
  const auto stop = static_cast<cudaEvent_t>(stop_);
  gpu_delay(kQueueMicroseconds, stream);
  check(cudaEventRecord(start, stream), "recording an event");
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), stream), "launching a graph");
  check(cudaEventRecord(stop, stream), "recording an event");
  check(cudaEventSynchronize(stop), "waiting for a graph");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start, stop), "timing a graph");
  return 1e3 * static_cast<double>(milliseconds);
}

void gpu_copy(void* dst, const void* src, std::int64_t bytes, void* stream) {
  const std::int64_t vectors = bytes / kVectorBytes;
  if (vectors == 0) return;
  launch("a copy", stream, (vectors + kThreads - 1) / kThreads, kThreads, copy_vectors,
         static_cast<uint4*>(dst), static_cast<const uint4*>(src), vectors);
}

void gpu_combine(void* dst, const void* a, const void* b, std::int64_t bytes, void* stream) {
  const std::int64_t vectors = bytes / kVectorBytes;
  if (vectors == 0) return;
  launch("a combination of two arrays", stream, (vectors + kThreads - 1) / kThreads, kThreads,
         combine_vectors, static_cast<uint4*>(dst), static_cast<const uint4*>(a),
         static_cast<const uint4*>(b), vectors);
}

void gpu_overlapped_copy(void* dst, const void* src, std::int64_t bytes, void* stream) {
  const std::int64_t vectors = bytes / kVectorBytes;
  if (vectors == 0) return;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "multiprocessors");
  const std::int64_t blocks = (vectors + kThreads - 1) / kThreads;
  const auto launch_from = static_cast<unsigned>(
      std::max<std::int64_t>(blocks - std::int64_t{kLastBlocks} * multiprocessors, 0));
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream_of(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, copy_vectors_overlapped, static_cast<uint4*>(dst),
                           static_cast<const uint4*>(src), vectors, launch_from),
        "an overlapped copy");
}

void gpu_empty_kernel(void* stream) { launch("an empty kernel", stream, 1, 32, do_nothing); }

void gpu_launch_baseline(std::int64_t parameter_bytes, void* stream) {
  const auto launch_with = [&]<std::int64_t kBytes>(const Parameters<kBytes>& parameters) {
    if (parameter_bytes > kBytes) return false;
    launch("an empty kernel with parameters", stream, 1, 32, take_parameters<kBytes>, parameters);
    return true;
  };
  static constexpr Parameters<256> kSmall{};
  static constexpr Parameters<768> kMedium{};
  static constexpr Parameters<2048> kLarge{};
  if (launch_with(kSmall) || launch_with(kMedium) || launch_with(kLarge)) return;
  throw CommandError(kExitFailed,
                     "no empty kernel takes " + std::to_string(parameter_bytes) + " bytes");
}

void gpu_delay(double microseconds, void* stream) {
  launch("a delay", stream, 1, 1, spin, static_cast<std::uint64_t>(1e3 * microseconds));
}

}  // namespace shortconv::tools
