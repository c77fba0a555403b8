// Calls are timed as graphs of many, so that the time of launching is not in them, and a copy of
// the same bytes on the same memory in the same way beside each.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "bench/gpu_call.hpp"
#include "bench/measure.hpp"
#include "common/gpu.hpp"
#include "common/host.hpp"
#include "common/statistics.hpp"

namespace shortconv::tools::bench {
namespace {

constexpr int kWarmups = 3;
constexpr int kFewest = 15, kMost = 2000;
constexpr double kEnoughMicroseconds = 0.15e6;

constexpr int kHostCalls = 320;
constexpr int kCallsBetweenWaits = 64;  // far below the length of a launch queue, which would block
constexpr double kHoldMicroseconds = 500;
constexpr std::int64_t kParameterBytes = 768;  // about what the kernels of the library take

// Host time of something that puts work on the stream. As in an engine, the GPU is behind: it is
// held up while the host goes on. Not so where the work itself waits for the stream: then there is
// nothing on it, which shows the least that waiting costs.
template <typename Work>
double host_microseconds(const GpuStream& stream, bool waits, Work&& work) {
  std::vector<double> samples;
  for (int i = 0; i < kHostCalls; ++i) {
    if (waits || i % kCallsBetweenWaits == 0) {
      stream.wait();
      if (!waits) gpu_delay(kHoldMicroseconds, stream.handle());
    }
    samples.push_back(wall_microseconds(work));
  }
  stream.wait();
  return median(std::move(samples));
}

class GpuMeasurement : public Measurement {
 public:
  GpuMeasurement(std::vector<CacheMode> modes, int repeats);

  std::string place() override { return fmt::format("{}, driver {}", gpu_.name, gpu_.driver); }
  std::string preface() override;
  nlohmann::ordered_json describe() override { return describe_host_and_gpu(); }
  std::vector<Row> measure(const Shape& shape, const CallOptions& options) override;

 private:
  void measure_host(GpuCall& call, Row& row) const;
  void measure_mode(const GpuCall& call, CacheMode mode, Row& row);
  double empty_us(int kernels);

  std::vector<CacheMode> modes_;
  int repeats_;
  GpuDescription gpu_;
  GpuStream stream_;
  double bare_launch_us_ = 0;
  std::map<int, double> empty_us_;  // by the number of kernels in a graph
};

GpuMeasurement::GpuMeasurement(std::vector<CacheMode> modes, int repeats)
    : modes_(std::move(modes)), repeats_(repeats), gpu_(describe_gpu()) {
  gpu_empty_kernel(stream_.handle());
  stream_.wait();
  bare_launch_us_ = host_microseconds(
      stream_, false, [&] { gpu_launch_baseline(kParameterBytes, stream_.handle()); });
}

std::string GpuMeasurement::preface() {
  constexpr int kKernels = 100;
  return fmt::format(
      "empty kernel among {} in a graph: {:.2f} us; host time of a bare launch with {} bytes of "
      "parameters: {:.2f} us\n",
      kKernels, empty_us(kKernels), kParameterBytes, bare_launch_us_);
}

double GpuMeasurement::empty_us(int kernels) {
  const auto known = empty_us_.find(kernels);
  if (known != empty_us_.end()) return known->second;
  const GpuGraph graph(stream_, [&](void* stream) {
    for (int i = 0; i < kernels; ++i) gpu_empty_kernel(stream);
  });
  std::vector<double> samples;
  for (int i = -kWarmups; i < kFewest; ++i) {
    const double graph_us = graph.replay();
    if (i >= 0) samples.push_back(graph_us / kernels);
  }
  return empty_us_[kernels] = median(std::move(samples));
}

void GpuMeasurement::measure_host(GpuCall& call, Row& row) const {
  const bool waits = call.prepare_waits();
  const auto plan = [&] { call.prepare(stream_); };
  const auto launch = [&] { call.run(0, stream_.handle()); };
  row.gpu->plan_us = host_microseconds(stream_, waits, plan);
  row.gpu->launch_us = host_microseconds(stream_, false, launch);
  row.host_us = host_microseconds(stream_, waits, [&] {
    plan();
    launch();
  });
  row.gpu->bare_launch_us = bare_launch_us_;
}

// Calls and copies take turns, so that both see the same clocks.
void GpuMeasurement::measure_mode(const GpuCall& call, CacheMode mode, Row& row) {
  const int calls = calls_of_graph(call.sets());
  const int sets = mode == CacheMode::kCold ? call.sets() : 1;
  const GpuGraph run_graph(stream_, [&](void* stream) {
    for (int i = 0; i < calls; ++i) call.run(i % sets, stream);
  });
  const GpuGraph copy_graph(stream_, [&](void* stream) {
    for (int i = 0; i < calls; ++i) call.copy(i % sets, stream);
  });
  std::optional<GpuGraph> overlapped_graph;
  if (row.options.programmatic_launch) {
    overlapped_graph.emplace(stream_, [&](void* stream) {
      for (int i = 0; i < calls; ++i) call.overlapped_copy(i % sets, stream);
    });
  }

  std::optional<GpuGraph> two_reads_graph;
  if (call.layout().is_backward()) {
    two_reads_graph.emplace(stream_, [&](void* stream) {
      for (int i = 0; i < calls; ++i) call.combine(i % sets, stream);
    });
  }

  std::vector<double> run, copy, overlapped_copy, two_reads;
  double spent = 0;
  const int fewest = repeats_ > 0 ? repeats_ : kFewest;
  const int most = repeats_ > 0 ? repeats_ : kMost;
  for (int i = -kWarmups; i < fewest || (i < most && spent < kEnoughMicroseconds); ++i) {
    const double run_graph_us = run_graph.replay();
    const double copy_graph_us = copy_graph.replay();
    const double overlapped_graph_us = overlapped_graph ? overlapped_graph->replay() : 0;
    const double two_reads_graph_us = two_reads_graph ? two_reads_graph->replay() : 0;
    if (i < 0) continue;
    run.push_back(run_graph_us / calls);
    copy.push_back(copy_graph_us / calls);
    overlapped_copy.push_back(overlapped_graph_us / calls);
    two_reads.push_back(two_reads_graph_us / calls);
    spent += run_graph_us + copy_graph_us;
  }
  row.run_us = median(std::move(run));
  row.copy_us = median(std::move(copy));
  if (overlapped_graph) row.gpu->overlapped_copy_us = median(std::move(overlapped_copy));
  if (two_reads_graph) row.gpu->two_reads_us = median(std::move(two_reads));
  row.gpu->mode = mode;
  row.gpu->sets = sets;
  row.gpu->calls = calls;
  row.gpu->past_cache = sets * call.layout().touched_bytes() > 3 * gpu_.l2_bytes;
  row.gpu->empty_us = empty_us(calls);
}

std::vector<Row> GpuMeasurement::measure(const Shape& shape, const CallOptions& options) {
  GpuCall call(shape, options, gpu_.l2_bytes);
  Row row{
      .shape = &shape, .options = options, .bytes = call.layout().moved_bytes(), .gpu = GpuTimes{}};
  // The first of each kind of launch, before one is timed or captured: it may load code.
  call.prepare(stream_);
  call.run(0, stream_.handle());
  call.copy(0, stream_.handle());
  stream_.wait();

  measure_host(call, row);
  std::vector<Row> rows;
  for (const CacheMode mode : modes_) {
    measure_mode(call, mode, row);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

int calls_of_graph(int sets) {
  constexpr int kFewestCalls = 20;
  return std::max(2, (kFewestCalls + sets - 1) / sets) * sets;
}

std::unique_ptr<Measurement> measure_on_gpu(std::vector<CacheMode> modes, int repeats) {
  return std::make_unique<GpuMeasurement>(std::move(modes), repeats);
}

}  // namespace shortconv::tools::bench
