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
#include "shortconv/plan.hpp"
#include "shortconv/prepare.hpp"

namespace shortconv::tools {

using Clock = std::chrono::steady_clock;

[[nodiscard]] inline double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// Least traffic of one call in one layer: inputs and outputs once, the state of each sequence
/// written, and read where the sequence is resumed; snapshots written; drafts write windows instead
/// of a state; a commit reads one of them and writes it.
[[nodiscard]] std::int64_t moved_bytes(const ReplaySetup& setup, const Call& call);

/// Bytes of one layer's states, and of its drafts' windows.
[[nodiscard]] std::int64_t layer_state_bytes(const ReplaySetup& setup);
[[nodiscard]] std::int64_t layer_window_bytes(const ReplaySetup& setup);

/// Into how many layers one call of the library goes.
[[nodiscard]] inline std::int64_t layers_at_once(const ReplaySetup& setup, const Call& call) {
  return call.kind == CallKind::kCommit ? setup.config.layers : 1;
}

/// Full blocks of the longest sequence, after the call.
[[nodiscard]] std::int64_t blocks_of(const ReplaySetup& setup, const Call& call);

/// What the engine around the operator has at hand before a call.
struct CallLists {
  struct Row {
    std::int64_t request;
    std::int64_t token;
    std::int64_t wrong_draft = -1;  // which one of the step that begins with `token`
  };
  std::vector<Row> rows;
  std::vector<std::int64_t> lengths;
  std::vector<std::int32_t> query_start_loc, read_slots, write_slots;
  std::vector<std::uint8_t> has_initial_state;
  std::vector<std::int32_t> intermediate_slots, parents;        // of drafts
  std::vector<std::int32_t> accepted;                           // of a commit
  std::vector<std::int32_t> num_computed_tokens, prefix_slots;  // of snapshots

  void assign(const ReplaySetup& setup, const Call& call);

 private:
  void add_rows(const ReplaySetup& setup, const Segment& segment);
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
  void* state;    ///< of one layer; of the first one for a commit
  void* windows;  ///< the same: [max_running, window_rows, channels] for each layer
  void* query_start_loc;
  void* read_slots;
  void* write_slots;
  void* has_initial_state;
  void* intermediate_slots;
  void* parents;
  void* accepted;
  void* num_computed_tokens;
  void* prefix_slots;
  void* snapshots;
};

/// All but the lists of the host-planned schedules. Not for a commit.
[[nodiscard]] ForwardArgs call_arguments(const ReplaySetup& setup, Schedule schedule,
                                         const Call& call, const CallTensors& at);

/// Of a commit: all layers.
[[nodiscard]] CommitArgs commit_arguments(const ReplaySetup& setup, const Call& call,
                                          const CallTensors& at);

/// The list that a call with snapshots needs, made where the call runs.
[[nodiscard]] BlockSnapshotsArgs snapshot_arguments(const ReplaySetup& setup, const Call& call,
                                                    const CallTensors& at);
[[nodiscard]] bool takes_snapshots(const ReplaySetup& setup, const Call& call);
/// How long that list is.
[[nodiscard]] std::int64_t snapshot_rows(const ReplaySetup& setup, const Call& call);

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
  /// they finish. A commit has no `out`.
  void record(const Call& call, std::int64_t layer, const void* out, const void* state,
              CopyToHost copy);
  /// One call for all layers, in microseconds; and beside a copy of all it moves.
  void add_commit_time(double run_us, KindMeasurement& kind) const;
  void add_commit_copy(double run_us, double copy_us, KindMeasurement& kind) const;
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
