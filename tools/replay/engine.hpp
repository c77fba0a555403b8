#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/buffer.hpp"
#include "replay/inputs.hpp"
#include "replay/models.hpp"
#include "replay/scheduler.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::tools {

/// What is replayed, whatever the schedule of the kernels.
struct ReplaySetup {
  std::span<const Request> requests;
  SchedulerOptions scheduler;
  LayerConfig config;
  const InputTable& inputs;
  std::span<const LayerWeights> weights;  ///< one per layer
  BackendId backend = BackendId::kAuto;
  std::int32_t threads = 1;

  /// What goes into a layer as that token of a request: that of the first request with this prompt.
  [[nodiscard]] const std::byte* input_row(std::int64_t layer, std::int64_t request,
                                           std::int64_t token) const {
    return inputs.row(layer, first_with_prefix(requests, request, token + 1), token);
  }
  /// Of windows, that one request's drafts take in one layer: those of a chain overlap.
  [[nodiscard]] std::int64_t window_rows() const {
    const DraftTree& tree = scheduler.tree;
    return tree.is_chain() ? tree.rows() + config.history() - 1 : tree.rows() * config.history();
  }

  [[nodiscard]] bool on_gpu() const { return backend == BackendId::kCuda; }
  /// Where the tensors of a call have to be.
  [[nodiscard]] Device device() const {
    return {.type = on_gpu() ? DeviceType::kCuda : DeviceType::kCpu};
  }
};

/// What the calls of one kind cost.
struct KindMeasurement {
  std::int64_t calls = 0;
  std::int64_t tokens = 0;
  double bytes = 0;                ///< read and written in all calls and layers
  std::vector<double> host_us;     ///< one per call: everything that precedes the work
  std::vector<double> run_us;      ///< one per call and layer: the work; on a GPU every layer of a
                                   ///< call has the mean of its layers, and everywhere those of a
                                   ///< commit, which is one call for all
  std::vector<double> copy_us;     ///< of sampled calls: a copy that moves the same bytes
  std::vector<double> copy_ratio;  ///< of sampled calls: run time / copy time

  // On a GPU only.
  std::vector<double> lengths_us{};  ///< one per call: the part of host_us that brings the lengths
                                     ///< from the device to the host; 0 where none are needed
  std::vector<double> launch_us{};   ///< one per call: how long `run` of one layer keeps the host
};

/// All that one request left in one layer.
struct Recording {
  std::int64_t request = 0;
  std::int64_t layer = 0;
  std::int64_t first_token = 0;  ///< the first one computed: behind the prefix of a snapshot
  Buffer outputs;                ///< [tokens, channels]; nothing before first_token
  Buffer final_state;            ///< [width - 1, channels], at the moment the request finished
};

/// One pass of the stream under one schedule.
struct StreamResult {
  Schedule schedule = Schedule::kFlat;
  std::array<KindMeasurement, kCallKinds> kinds;
  std::vector<Recording> recordings;
};

/// What the scheduler will ask for, found by letting it run without doing the work.
struct StreamOutline {
  std::array<std::int64_t, kCallKinds> calls{};
  std::int64_t tokens = 0;             ///< by which requests advance, those of snapshots included
  std::int64_t most_tokens = 0;        ///< rows of one call
  std::int64_t most_sequences = 0;     ///< in one call
  std::int64_t most_prefix_slots = 0;  ///< entries of the table that names the slots of snapshots
  std::int64_t most_bytes = 0;         ///< of one copy that a call is compared with

  std::int64_t verified_steps = 0;  ///< of requests
  std::int64_t accepted_tokens = 0;
  std::int64_t snapshots = 0;
  std::int64_t begun_from_snapshots = 0;  ///< requests
  std::int64_t tokens_of_snapshots = 0;   ///< that these did not have to compute
};
[[nodiscard]] StreamOutline outline_stream(const ReplaySetup& setup);

/// The layers that are recorded: the first and the last.
[[nodiscard]] std::vector<std::int64_t> recorded_layers(const LayerConfig& config);

/// Runs every call of the stream through every layer under each schedule, each with states of its
/// own. The schedules take turns call by call rather than one after the other, so that what else
/// the machine does in the meantime falls on all of them alike. `on_tokens(n)` is told after each
/// call how many tokens of the stream have been through.
[[nodiscard]] std::vector<StreamResult> run_stream(
    const ReplaySetup& setup, std::span<const Schedule> schedules,
    std::span<const std::int64_t> recorded_requests,
    const std::function<void(std::int64_t)>& on_tokens);

}  // namespace shortconv::tools
