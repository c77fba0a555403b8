// Memory, streams and timing on a GPU, for the commands that run there. In a build without CUDA, or
// on a machine without a GPU, gpu_count() is 0 and everything else throws CommandError. Device 0 is
// used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace shortconv::tools {

[[nodiscard]] int gpu_count();

/// What a measurement depends on: name of the GPU, driver and runtime versions, multiprocessors,
/// bytes of the level-2 cache.
struct GpuDescription {
  std::string name;
  std::string driver;
  std::string runtime;
  int multiprocessors = 0;
  std::int64_t l2_bytes = 0;
};
[[nodiscard]] GpuDescription describe_gpu();

/// Device memory of its own; not initialised.
class GpuBuffer {
 public:
  GpuBuffer() = default;
  explicit GpuBuffer(std::int64_t bytes);

  [[nodiscard]] void* data() const { return data_.get(); }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  std::int64_t bytes_ = 0;
};

/// Host memory that the GPU reads and writes by itself, so that copies need no detour and can run
/// beside the host; not initialised.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::int64_t bytes);

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  std::int64_t bytes_ = 0;
};

/// Waits for the copy. `bytes` may be 0.
void copy_to_gpu(void* device, const void* host, std::int64_t bytes);
void copy_from_gpu(void* host, const void* device, std::int64_t bytes);

/// The same on a stream and without waiting; `host` is memory of a PinnedBuffer.
void start_copy_to_gpu(void* device, const void* host, std::int64_t bytes, void* stream);
void start_copy_from_gpu(void* host, const void* device, std::int64_t bytes, void* stream);

/// Repeats the first `table_bytes` bytes of `device` through the whole buffer, on the device.
void repeat_on_gpu(const GpuBuffer& device, std::int64_t table_bytes);

/// A stream that does not synchronise with the default one. `handle()` is a cudaStream_t.
class GpuStream {
 public:
  GpuStream();
  ~GpuStream();
  GpuStream(const GpuStream&) = delete;
  GpuStream& operator=(const GpuStream&) = delete;

  [[nodiscard]] void* handle() const { return handle_; }
  /// Returns when all work of the stream is done; throws what went wrong in it.
  void wait() const;

 private:
  void* handle_ = nullptr;
};

/// What `record` puts on the stream, captured once. replay() runs it once and returns the
/// microseconds between events before and after it; the stream is held up until all of that is
/// queued, so that the host's part of the launch is not in them.
class GpuGraph {
 public:
  GpuGraph(const GpuStream& stream, const std::function<void(void*)>& record);
  ~GpuGraph();
  GpuGraph(const GpuGraph&) = delete;
  GpuGraph& operator=(const GpuGraph&) = delete;

  double replay() const;

 private:
  // Without CUDA there is nothing to do with them.
  [[maybe_unused]] const GpuStream& stream_;
  [[maybe_unused]] void* graph_ = nullptr;
  [[maybe_unused]] void* start_ = nullptr;
  [[maybe_unused]] void* stop_ = nullptr;
};

/// The yardstick: copies `bytes` (a multiple of 16, both sides aligned to 16) on the stream with
/// one 16-byte vector a thread, 256 threads a block, which measured best on an H200 (64.1 us for 2
/// x 128 MiB; 4 vectors a thread: 67.7; a pipeline of bulk copies through shared memory: 71).
void gpu_copy(void* dst, const void* src, std::int64_t bytes, void* stream);

/// The same with programmatic dependent launch, as the library's kernels have it: it may start
/// while the kernel before is ending, and its last blocks let the next one start.
void gpu_overlapped_copy(void* dst, const void* src, std::int64_t bytes, void* stream);

/// A second yardstick: dst = a xor b, which reads two arrays of `bytes` and writes one, in the same
/// way as gpu_copy.
void gpu_combine(void* dst, const void* a, const void* b, std::int64_t bytes, void* stream);

/// A kernel that does nothing, to know what a launch costs.
void gpu_empty_kernel(void* stream);

/// An empty kernel that takes a structure of at least `parameter_bytes` (at most 2048) by value:
/// what a launch with such parameters costs the host at the least.
void gpu_launch_baseline(std::int64_t parameter_bytes, void* stream);

/// Keeps the stream busy for about that long without touching memory.
void gpu_delay(double microseconds, void* stream);

}  // namespace shortconv::tools
