// A build without CUDA: there is no GPU.
#include "common/error.hpp"
#include "common/gpu.hpp"

namespace shortconv::tools {
namespace {

[[noreturn]] void refuse() {
  throw CommandError(kExitUsage, "CUDA: this build of shortconv is without it");
}

}  // namespace

int gpu_count() { return 0; }

GpuDescription describe_gpu() { refuse(); }

GpuBuffer::GpuBuffer(std::int64_t) { refuse(); }
void GpuBuffer::Free::operator()(void*) const {}

PinnedBuffer::PinnedBuffer(std::int64_t) { refuse(); }
void PinnedBuffer::Free::operator()(void*) const {}

void copy_to_gpu(void*, const void*, std::int64_t) { refuse(); }
void copy_from_gpu(void*, const void*, std::int64_t) { refuse(); }
void start_copy_to_gpu(void*, const void*, std::int64_t, void*) { refuse(); }
void start_copy_from_gpu(void*, const void*, std::int64_t, void*) { refuse(); }
void repeat_on_gpu(const GpuBuffer&, std::int64_t) { refuse(); }

GpuStream::GpuStream() { refuse(); }
GpuStream::~GpuStream() = default;
void GpuStream::wait() const { refuse(); }

GpuGraph::GpuGraph(const GpuStream& stream, const std::function<void(void*)>&) : stream_(stream) {
  refuse();
}
GpuGraph::~GpuGraph() = default;
double GpuGraph::replay() const { refuse(); }

void gpu_copy(void*, const void*, std::int64_t, void*) { refuse(); }
void gpu_overlapped_copy(void*, const void*, std::int64_t, void*) { refuse(); }
void gpu_combine(void*, const void*, const void*, std::int64_t, void*) { refuse(); }
void gpu_empty_kernel(void*) { refuse(); }
void gpu_launch_baseline(std::int64_t, void*) { refuse(); }
void gpu_delay(double, void*) { refuse(); }

}  // namespace shortconv::tools
