#include "replay/engine.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "common/copy.hpp"
#include "common/error.hpp"

namespace shortconv::tools {
namespace {

using Clock = std::chrono::steady_clock;

// Copies measured for each kind of call, spread over the run.
constexpr std::int64_t kCopySamples = 200;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Least traffic of one call in one layer: inputs and outputs once, the state of each sequence
// written, and read where the sequence is resumed.
std::int64_t moved_bytes(const LayerConfig& config, const Call& call) {
  std::int64_t bytes = 2 * call.tokens * config.row_bytes();
  for (const Segment& segment : call.segments) {
    bytes += (segment.resumed ? 2 : 1) * config.state_bytes();
  }
  return bytes;
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

/// The layers of a model under one schedule.
class Engine {
 public:
  Engine(const ReplaySetup& setup, Schedule schedule,
         std::span<const std::int64_t> recorded_requests, const StreamOutline& outline,
         Workspace& workspace);

  void execute(const Call& call);
  StreamResult take_result() { return std::move(result_); }

 private:
  struct Row {
    std::int64_t request;
    std::int64_t token;
  };

  void stage(const Call& call);
  ForwardArgs arguments(const Call& call);
  Plan make_host_plan(const Call& call, KindMeasurement& measured);
  void make_inputs(std::int64_t layer);
  double measure_copy(std::int64_t bytes);
  bool takes_copy_sample(CallKind kind, std::int64_t call, std::int64_t layer) const;
  void record(const Call& call, std::int64_t layer);

  const ReplaySetup& setup_;
  const LayerConfig& config_;
  const StreamOutline& outline_;
  Workspace& workspace_;
  std::vector<Buffer> states_;  // one per layer: [max_running, width - 1, channels]

  // The call at hand, as an engine would hand it over.
  std::vector<Row> rows_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::int32_t> query_start_loc_, slots_;
  std::vector<std::uint8_t> has_initial_state_;
  BlockList blocks_;
  Addresses addresses_;

  std::vector<std::int64_t> recorded_layers_;
  std::vector<std::int64_t> first_recording_;  // by request, -1 where nothing is recorded
  StreamResult result_;
};

Engine::Engine(const ReplaySetup& setup, Schedule schedule,
               std::span<const std::int64_t> recorded_requests, const StreamOutline& outline,
               Workspace& workspace)
    : setup_(setup),
      config_(setup.config),
      outline_(outline),
      workspace_(workspace),
      recorded_layers_(recorded_layers(config_)),
      first_recording_(setup.requests.size(), -1) {
  result_.schedule = schedule;
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    states_.emplace_back(setup.scheduler.max_running * config_.state_bytes());
  }
  for (const std::int64_t request : recorded_requests) {
    first_recording_[request] = std::ssize(result_.recordings);
    for (const std::int64_t layer : recorded_layers_) {
      result_.recordings.push_back(
          {.request = request,
           .layer = layer,
           .outputs = Buffer(setup.requests[request].tokens() * config_.row_bytes()),
           .final_state = Buffer(config_.state_bytes())});
    }
  }
}

void Engine::execute(const Call& call) {
  KindMeasurement& measured = result_.kinds[static_cast<int>(call.kind)];
  const std::int64_t bytes = moved_bytes(config_, call);
  stage(call);
  const Plan plan = make_host_plan(call, measured);

  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    make_inputs(layer);
    addresses_.weight = setup_.weights[layer].weight.data();
    addresses_.bias = setup_.weights[layer].bias.data();
    addresses_.state = states_[layer].data();

    const Clock::time_point start = Clock::now();
    const Status status = run(plan, addresses_);
    const double run_us = microseconds_since(start);
    require(status);

    measured.run_us.push_back(run_us);
    if (takes_copy_sample(call.kind, measured.calls, layer)) {
      const double copy_us = measure_copy(bytes);
      measured.copy_us.push_back(copy_us);
      measured.copy_ratio.push_back(run_us / copy_us);
    }
    record(call, layer);
  }
  measured.bytes += static_cast<double>(bytes * config_.layers);
  measured.tokens += call.tokens;
  ++measured.calls;
}

// What the engine around the operator has at hand before a call: lengths, slots, flags.
void Engine::stage(const Call& call) {
  rows_.clear();
  lengths_.clear();
  slots_.clear();
  has_initial_state_.clear();
  query_start_loc_.assign(1, 0);
  for (const Segment& segment : call.segments) {
    for (std::int64_t i = 0; i < segment.count; ++i) {
      rows_.push_back({.request = segment.request, .token = segment.first_token + i});
    }
    lengths_.push_back(segment.count);
    slots_.push_back(segment.slot);
    has_initial_state_.push_back(segment.resumed ? 1 : 0);
    query_start_loc_.push_back(static_cast<std::int32_t>(rows_.size()));
  }
}

// All but the lists of the host-planned schedules, of layer 0.
ForwardArgs Engine::arguments(const Call& call) {
  const std::int64_t sequences = std::ssize(call.segments);
  const LayerWeights& weights = setup_.weights[0];
  ForwardArgs args;
  args.x =
      TensorRef::contiguous(workspace_.x.data(), config_.dtype, {call.tokens, config_.channels});
  args.out =
      TensorRef::contiguous(workspace_.out.data(), config_.dtype, {call.tokens, config_.channels});
  args.weight = TensorRef::contiguous(weights.weight.data(), config_.weight_dtype,
                                      {config_.channels, config_.width});
  if (config_.has_bias) {
    args.bias =
        TensorRef::contiguous(weights.bias.data(), config_.weight_dtype, {config_.channels});
  }
  args.state =
      TensorRef::contiguous(states_[0].data(), config_.dtype,
                            {setup_.scheduler.max_running, config_.history(), config_.channels});
  args.read_slots = TensorRef::contiguous(slots_.data(), DType::kI32, {sequences});
  args.activation = config_.activation;
  args.backend = setup_.backend;
  args.threads = setup_.threads;
  if (call.kind == CallKind::kDecode) {
    args.op = Op::kDecode;
    return args;
  }
  args.query_start_loc =
      TensorRef::contiguous(query_start_loc_.data(), DType::kI32, {sequences + 1});
  args.has_initial_state =
      TensorRef::contiguous(has_initial_state_.data(), DType::kBool, {sequences});
  args.schedule = result_.schedule;
  return args;
}

// The timed part is what the chosen schedule makes the host do before the first layer can start.
Plan Engine::make_host_plan(const Call& call, KindMeasurement& measured) {
  ForwardArgs args = arguments(call);
  Problem problem;
  Plan plan;

  const Clock::time_point start = Clock::now();
  if (args.schedule == Schedule::kBlockList) {
    blocks_ = plan_block_list(lengths_);
    const std::int64_t count = std::ssize(blocks_.sequence);
    args.block_sequence = TensorRef::contiguous(blocks_.sequence.data(), DType::kI32, {count});
    args.block_offset = TensorRef::contiguous(blocks_.offset.data(), DType::kI32, {count});
  } else if (args.schedule == Schedule::kSequenceGrid) {
    args.longest_sequence = *std::max_element(lengths_.begin(), lengths_.end());
  }
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  measured.host_us.push_back(microseconds_since(start));

  require(status);
  addresses_ = addresses(args);
  return plan;
}

void Engine::make_inputs(std::int64_t layer) {
  const std::int64_t row_bytes = config_.row_bytes();
  const std::int64_t count = std::ssize(rows_);
#pragma omp parallel for schedule(static) num_threads(setup_.threads)
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(workspace_.x.data() + i * row_bytes,
                setup_.inputs.row(layer, rows_[i].request, rows_[i].token),
                static_cast<std::size_t>(row_bytes));
  }
}

// Copies half of `bytes`: it reads that much and writes that much. The untimed copy back first
// leaves both buffers as warm as the call finds its own.
double Engine::measure_copy(std::int64_t bytes) {
  const auto half = static_cast<std::size_t>(bytes / 2);
  parallel_copy(workspace_.copy_source.data(), workspace_.copy_target.data(), half, setup_.threads);
  const Clock::time_point start = Clock::now();
  parallel_copy(workspace_.copy_target.data(), workspace_.copy_source.data(), half, setup_.threads);
  return microseconds_since(start);
}

bool Engine::takes_copy_sample(CallKind kind, std::int64_t call, std::int64_t layer) const {
  const std::int64_t calls = outline_.calls[static_cast<int>(kind)];
  const std::int64_t every = (calls + kCopySamples - 1) / kCopySamples;
  const std::int64_t sample = call / every;
  return call % every == every / 2 && layer == sample % config_.layers;
}

void Engine::record(const Call& call, std::int64_t layer) {
  const auto recorded = std::find(recorded_layers_.begin(), recorded_layers_.end(), layer);
  if (recorded == recorded_layers_.end()) return;
  const std::int64_t row_bytes = config_.row_bytes();
  const std::int64_t state_bytes = config_.state_bytes();
  for (std::size_t i = 0; i < call.segments.size(); ++i) {
    const Segment& segment = call.segments[i];
    const std::int64_t first = first_recording_[segment.request];
    if (first < 0) continue;
    Recording& recording = result_.recordings[first + (recorded - recorded_layers_.begin())];
    std::memcpy(recording.outputs.data() + segment.first_token * row_bytes,
                workspace_.out.data() + query_start_loc_[i] * row_bytes,
                static_cast<std::size_t>(segment.count * row_bytes));
    if (!segment.finishes) continue;
    std::memcpy(recording.final_state.data(), states_[layer].data() + segment.slot * state_bytes,
                static_cast<std::size_t>(state_bytes));
  }
}

}  // namespace

StreamOutline outline_stream(const ReplaySetup& setup) {
  StreamOutline outline;
  Scheduler scheduler(setup.requests, setup.scheduler);
  for (Call call; scheduler.next(call);) {
    ++outline.calls[static_cast<int>(call.kind)];
    outline.tokens += call.tokens;
    outline.most_tokens = std::max(outline.most_tokens, call.tokens);
    outline.most_sequences = std::max(outline.most_sequences, std::ssize(call.segments));
    outline.most_bytes = std::max(outline.most_bytes, moved_bytes(setup.config, call));
  }
  return outline;
}

std::vector<std::int64_t> recorded_layers(const LayerConfig& config) {
  if (config.layers == 1) return {0};
  return {0, config.layers - 1};
}

std::vector<StreamResult> run_stream(const ReplaySetup& setup, std::span<const Schedule> schedules,
                                     std::span<const std::int64_t> recorded_requests,
                                     const std::function<void(std::int64_t)>& on_tokens) {
  const StreamOutline outline = outline_stream(setup);
  Workspace workspace(setup, outline);
  std::vector<Engine> engines;
  for (const Schedule schedule : schedules) {
    engines.emplace_back(setup, schedule, recorded_requests, outline, workspace);
  }

  Scheduler scheduler(setup.requests, setup.scheduler);
  std::int64_t tokens = 0;
  std::size_t first = 0;  // whose turn it is, so that none always follows the same other
  for (Call call; scheduler.next(call); ++first) {
    for (std::size_t i = 0; i < engines.size(); ++i) {
      engines[(first + i) % engines.size()].execute(call);
    }
    tokens += call.tokens;
    on_tokens(tokens);
  }

  std::vector<StreamResult> results;
  for (Engine& engine : engines) results.push_back(engine.take_result());
  return results;
}

}  // namespace shortconv::tools
