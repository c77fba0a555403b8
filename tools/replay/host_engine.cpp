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
      : CallEngine(setup, schedule, recorded_requests, outline), workspace_(std::move(workspace)) {
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      states_.emplace_back(setup.scheduler.max_running * config_.state_bytes());
    }
  }

  void execute(const Call& call) override;

 private:
  Plan make_host_plan(const Call& call);
  double measure_copy(std::int64_t bytes);

  std::shared_ptr<Workspace> workspace_;
  std::vector<Buffer> states_;  // one per layer: [max_running, width - 1, channels]
  CallLists lists_;
  BlockList blocks_;
  Addresses addresses_;
};

void HostEngine::execute(const Call& call) {
  KindMeasurement& kind = measured(call);
  lists_.assign(call);
  const Plan plan = make_host_plan(call);
  const std::int64_t sample = copy_sample(call.kind);

  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    gather_inputs(setup_, layer, lists_.rows, workspace_->x.data());
    addresses_.weight = setup_.weights[layer].weight.data();
    addresses_.bias = setup_.weights[layer].bias.data();
    addresses_.state = states_[layer].data();

    const Clock::time_point start = Clock::now();
    const Status status = run(plan, addresses_);
    const double run_us = microseconds_since(start);
    require(status);

    kind.run_us.push_back(run_us);
    if (sample >= 0 && layer == sample % config_.layers) {
      const double copy_us = measure_copy(moved_bytes(config_, call));
      kind.copy_us.push_back(copy_us);
      kind.copy_ratio.push_back(run_us / copy_us);
    }
    record(call, layer, workspace_->out.data(), states_[layer].data(), copy_within_host);
  }
  count(call);
}

// The timed part is what the chosen schedule makes the host do before the first layer can start.
Plan HostEngine::make_host_plan(const Call& call) {
  ForwardArgs args = call_arguments(setup_, schedule(), call,
                                    {.x = workspace_->x.data(),
                                     .out = workspace_->out.data(),
                                     .weight = setup_.weights[0].weight.data(),
                                     .bias = setup_.weights[0].bias.data(),
                                     .state = states_[0].data(),
                                     .query_start_loc = lists_.query_start_loc.data(),
                                     .slots = lists_.slots.data(),
                                     .has_initial_state = lists_.has_initial_state.data()});
  Problem problem;
  Plan plan;

  const Clock::time_point start = Clock::now();
  if (args.schedule == Schedule::kBlockList) {
    blocks_ = plan_block_list(lists_.lengths);
    const std::int64_t count = std::ssize(blocks_.sequence);
    args.block_sequence = TensorRef::contiguous(blocks_.sequence.data(), DType::kI32, {count});
    args.block_offset = TensorRef::contiguous(blocks_.offset.data(), DType::kI32, {count});
  } else if (args.schedule == Schedule::kSequenceGrid) {
    args.longest_sequence = *std::max_element(lists_.lengths.begin(), lists_.lengths.end());
  }
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  measured(call).host_us.push_back(microseconds_since(start));

  require(status);
  addresses_ = addresses(args);
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
