// The layers in host memory: every call waits for its work.
#include <algorithm>
#include <cstring>

#include "common/copy.hpp"
#include "common/error.hpp"
#include "replay/call_engine.hpp"

namespace shortconv::tools {
namespace {

void copy_within_host(void* target, const void* source, std::int64_t bytes) {
  std::memcpy(target, source, static_cast<std::size_t>(bytes));
}

/// Memory for the largest call, used by all calls of all engines.
struct Workspace {
  Workspace(const ReplaySetup& setup, const StreamOutline& outline)
      : x(outline.most_tokens * setup.config.row_bytes()),
        out(outline.most_tokens * setup.config.row_bytes()),
        copy_source(outline.most_bytes / 2),
        copy_target(outline.most_bytes / 2) {}

  Buffer x, out, copy_source, copy_target;
};

class HostEngine : public CallEngine {
 public:
  HostEngine(const ReplaySetup& setup, Schedule schedule,
             std::span<const std::int64_t> recorded_requests, const StreamOutline& outline,
             std::shared_ptr<Workspace> workspace)
      : CallEngine(setup, schedule, recorded_requests, outline),
        workspace_(std::move(workspace)),
        states_(config_.layers * layer_state_bytes(setup)),
        windows_(config_.layers * layer_window_bytes(setup)) {}

  void execute(const Call& call) override;

 private:
  void run_layers(const Call& call);
  void run_commit(const Call& call);
  CallTensors tensors(std::int64_t layer);
  Plan make_host_plan(const Call& call);
  double measure_copy(std::int64_t bytes);

  std::shared_ptr<Workspace> workspace_;
  Buffer states_;   // [layers, slots, width - 1, channels]
  Buffer windows_;  // [layers, max_running, window_rows, channels]
  CallLists lists_;
  BlockList blocks_;
  std::vector<std::int32_t> snapshots_;
  TensorPointers addresses_;
};

void HostEngine::execute(const Call& call) {
  lists_.assign(setup_, call);
  if (call.kind == CallKind::kCommit) {
    run_commit(call);
  } else {
    run_layers(call);
  }
  count(call);
}

void HostEngine::run_layers(const Call& call) {
  KindMeasurement& kind = measured(call);
  const Plan plan = make_host_plan(call);
  const std::int64_t sample = copy_sample(call.kind);

  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    gather_inputs(setup_, layer, lists_.rows, workspace_->x.data());
    const CallTensors at = tensors(layer);
    addresses_.weight = at.weight;
    addresses_.bias = at.bias;
    addresses_.state = at.state;
    if (addresses_.intermediate_states != nullptr) addresses_.intermediate_states = at.windows;

    const Clock::time_point start = Clock::now();
    const Status status = run(plan, addresses_);
    const double run_us = microseconds_since(start);
    require(status);

    kind.run_us.push_back(run_us);
    if (sample >= 0 && layer == sample % config_.layers) {
      const double copy_us = measure_copy(moved_bytes(setup_, call));
      kind.copy_us.push_back(copy_us);
      kind.copy_ratio.push_back(run_us / copy_us);
    }
    record(call, layer, workspace_->out.data(), at.state, copy_within_host);
  }
}

void HostEngine::run_commit(const Call& call) {
  KindMeasurement& kind = measured(call);
  const CommitArgs args = commit_arguments(setup_, call, tensors(0));
  CommitProblem problem;
  CommitPlan plan;

  Clock::time_point start = Clock::now();
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  kind.host_us.push_back(microseconds_since(start));
  require(status);

  start = Clock::now();
  status = run(plan, pointers(args));
  const double run_us = microseconds_since(start);
  require(status);
  add_commit_time(run_us, kind);

  if (copy_sample(call.kind) >= 0) {
    const double copy_us = measure_copy(moved_bytes(setup_, call) * layers_at_once(setup_, call));
    add_commit_copy(run_us, copy_us, kind);
  }
  for (const std::int64_t layer : recorded_layers(config_)) {
    record(call, layer, nullptr, tensors(layer).state, copy_within_host);
  }
}

CallTensors HostEngine::tensors(std::int64_t layer) {
  return {.x = workspace_->x.data(),
          .out = workspace_->out.data(),
          .weight = setup_.weights[layer].weight.data(),
          .bias = setup_.weights[layer].bias.data(),
          .state = states_.data() + layer * layer_state_bytes(setup_),
          .windows = windows_.data() + layer * layer_window_bytes(setup_),
          .query_start_loc = lists_.query_start_loc.data(),
          .read_slots = lists_.read_slots.data(),
          .write_slots = lists_.write_slots.data(),
          .has_initial_state = lists_.has_initial_state.data(),
          .intermediate_slots = lists_.intermediate_slots.data(),
          .parents = lists_.parents.data(),
          .accepted = lists_.accepted.data(),
          .num_computed_tokens = lists_.num_computed_tokens.data(),
          .prefix_slots = lists_.prefix_slots.data(),
          .snapshots = snapshots_.data()};
}

// The timed part is what the call makes the host do before the first layer can start.
Plan HostEngine::make_host_plan(const Call& call) {
  const bool with_snapshots = takes_snapshots(setup_, call);
  if (with_snapshots) snapshots_.resize(static_cast<std::size_t>(3 * snapshot_rows(setup_, call)));
  const CallTensors at = tensors(0);
  ForwardArgs args = call_arguments(setup_, schedule(), call, at);
  Problem problem;
  Plan plan;
  Status status;

  const Clock::time_point start = Clock::now();
  if (args.options.schedule == Schedule::kBlockList) {
    require(plan_block_list(lists_.lengths, blocks_));
    const std::int64_t count = std::ssize(blocks_.sequence);
    args.options.block_sequence =
        TensorRef::contiguous(blocks_.sequence.data(), DType::kI32, {count});
    args.options.block_offset = TensorRef::contiguous(blocks_.offset.data(), DType::kI32, {count});
  } else if (args.options.schedule == Schedule::kSequenceGrid) {
    args.options.max_seqlen = *std::max_element(lists_.lengths.begin(), lists_.lengths.end());
  }
  if (with_snapshots) status = block_snapshots(snapshot_arguments(setup_, call, at));
  if (status.ok()) status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  measured(call).host_us.push_back(microseconds_since(start));

  require(status);
  addresses_ = pointers(args);
  return plan;
}

// Copies half of `bytes`: it reads that much and writes that much. The untimed copy back first
// leaves both buffers as warm as the call finds its own.
double HostEngine::measure_copy(std::int64_t bytes) {
  const auto half = static_cast<std::size_t>(bytes / 2);
  const Buffer& source = workspace_->copy_source;
  const Buffer& target = workspace_->copy_target;
  parallel_copy(source.data(), target.data(), half, setup_.threads);
  const Clock::time_point start = Clock::now();
  parallel_copy(target.data(), source.data(), half, setup_.threads);
  return microseconds_since(start);
}

}  // namespace

std::vector<std::unique_ptr<CallEngine>> make_host_engines(
    const ReplaySetup& setup, std::span<const Schedule> schedules,
    std::span<const std::int64_t> recorded_requests, const StreamOutline& outline) {
  const auto workspace = std::make_shared<Workspace>(setup, outline);
  std::vector<std::unique_ptr<CallEngine>> engines;
  for (const Schedule schedule : schedules) {
    engines.push_back(
        std::make_unique<HostEngine>(setup, schedule, recorded_requests, outline, workspace));
  }
  return engines;
}

}  // namespace shortconv::tools
