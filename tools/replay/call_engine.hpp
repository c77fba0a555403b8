// What the engines of the host and of the GPU have in common.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/gpu.hpp"
#include "replay/engine.hpp"

namespace shortconv::tools {

using Clock = std::chrono::steady_clock;

[[nodiscard]] inline double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// Least traffic of one call in one layer: inputs and outputs once, the state of each sequence
/// written, and read where the sequence is resumed.
[[nodiscard]] std::int64_t moved_bytes(const LayerConfig& config, const Call& call);

/// What the engine around the operator has at hand before a call.
struct CallLists {
  struct Row {
    std::int64_t request;
    std::int64_t token;
  };
  std::vector<Row> rows;
  std::vector<std::int64_t> lengths;
  std::vector<std::int32_t> query_start_loc, slots;
  std::vector<std::uint8_t> has_initial_state;

  void assign(const Call& call);
};

/// The inputs of all rows, one after the other.
void gather_inputs(const ReplaySetup& setup, std::int64_t layer,
                   std::span<const CallLists::Row> rows, std::byte* x);

/// The same bytes in the memory of the GPU; none for none.
[[nodiscard]] GpuBuffer copied_to_gpu(const Buffer& host);

/// Where the tensors of a call are, all in the memory of one device.
struct CallTensors {
  void* x;
  void* out;
  void* weight;
  void* bias;
  void* state;
  void* query_start_loc;
  void* slots;
  void* has_initial_state;
};

/// All but the lists of the host-planned schedules.
[[nodiscard]] ForwardArgs call_arguments(const ReplaySetup& setup, Schedule schedule,
                                         const Call& call, const CallTensors& at);

/// The layers of a model under one schedule, with states of their own.
class CallEngine {
 public:
  CallEngine(const ReplaySetup& setup, Schedule schedule,
             std::span<const std::int64_t> recorded_requests, const StreamOutline& outline);
  virtual ~CallEngine() = default;
  CallEngine(const CallEngine&) = delete;
  CallEngine& operator=(const CallEngine&) = delete;

  virtual void execute(const Call& call) = 0;

  [[nodiscard]] StreamResult take_result() { return std::move(result_); }

 protected:
  using CopyToHost = void (*)(void* host, const void* source, std::int64_t bytes);

  [[nodiscard]] Schedule schedule() const { return result_.schedule; }
  [[nodiscard]] KindMeasurement& measured(const Call& call) {
    return result_.kinds[static_cast<int>(call.kind)];
  }
  /// Which of the copy samples of its kind the call at hand takes, or -1.
  [[nodiscard]] std::int64_t copy_sample(CallKind kind) const;
  /// Keeps what the recorded requests got from a layer: rows of `out`, and of the state pool when
  /// they finish.
  void record(const Call& call, std::int64_t layer, const void* out, const void* state,
              CopyToHost copy);
  /// Ends a call.
  void count(const Call& call);

  const ReplaySetup& setup_;
  const LayerConfig& config_;

 private:
  const StreamOutline& outline_;
  std::vector<std::int64_t> recorded_layers_;
  std::vector<std::int64_t> first_recording_;  // by request, -1 where nothing is recorded
  StreamResult result_;
};

/// One engine per schedule; `setup` and `outline` must outlive them.
[[nodiscard]] std::vector<std::unique_ptr<CallEngine>> make_host_engines(
    const ReplaySetup& setup, std::span<const Schedule> schedules,
    std::span<const std::int64_t> recorded_requests, const StreamOutline& outline);
[[nodiscard]] std::vector<std::unique_ptr<CallEngine>> make_gpu_engines(
    const ReplaySetup& setup, std::span<const Schedule> schedules,
    std::span<const std::int64_t> recorded_requests, const StreamOutline& outline);

}  // namespace shortconv::tools
