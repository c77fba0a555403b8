#include <fmt/format.h>

#include <utility>

#include "bench/cpu_call.hpp"
#include "bench/measure.hpp"
#include "bench/random_buffer.hpp"
#include "common/copy.hpp"
#include "common/host.hpp"
#include "common/statistics.hpp"

namespace shortconv::tools::bench {
namespace {

class CpuMeasurement : public Measurement {
 public:
  CpuMeasurement(int threads, int repeats) : threads_(threads), repeats_(repeats) {}

  std::string place() override { return fmt::format("{} threads", threads_); }
  nlohmann::ordered_json describe() override { return describe_host(); }
  std::vector<Row> measure(const Shape& shape, const CallOptions& options) override;

 private:
  int threads_;
  int repeats_;
};

// Calls and copies take turns, so that both see the same machine: clocks, neighbours, page tables.
std::vector<Row> CpuMeasurement::measure(const Shape& shape, const CallOptions& options) {
  constexpr int kWarmups = 2;
  constexpr int kFewest = 15, kMost = 2000;
  constexpr double kEnoughMicroseconds = 1e6;

  CpuCall call(shape, options);
  Row row{.shape = &shape, .options = options, .bytes = call.bytes()};
  row.options.threads = threads_;
  const RandomBuffer source(DType::kF32, row.bytes / 8 + 1, threads_);
  const RandomBuffer target(DType::kF32, row.bytes / 8 + 1, threads_);

  std::vector<double> host, run, copy;
  double spent = 0;
  const int fewest = repeats_ > 0 ? repeats_ : kFewest;
  const int most = repeats_ > 0 ? repeats_ : kMost;
  for (int i = -kWarmups; i < fewest || (i < most && spent < kEnoughMicroseconds); ++i) {
    const double host_us = wall_microseconds([&] { call.prepare(); });
    const double run_us = wall_microseconds([&] { call.run(); });
    const double copy_us = wall_microseconds([&] {
      parallel_copy(target.data(), source.data(), static_cast<std::size_t>(row.bytes / 2),
                    threads_);
    });
    if (i < 0) continue;
    host.push_back(host_us);
    run.push_back(run_us);
    copy.push_back(copy_us);
    spent += run_us + copy_us;
  }
  row.host_us = median(std::move(host));
  row.run_us = median(std::move(run));
  row.copy_us = median(std::move(copy));
  return {row};
}

}  // namespace

std::unique_ptr<Measurement> measure_on_cpu(int threads, int repeats) {
  return std::make_unique<CpuMeasurement>(threads, repeats);
}

}  // namespace shortconv::tools::bench
