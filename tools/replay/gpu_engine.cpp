// The layers in the memory of a GPU.
//
// A call goes in three steps. Inputs and lists are brought to the device, once for all schedules
// and untimed. Then the host does what the schedule makes it do before the first layer can be
// launched; the stream is idle meanwhile, so waiting for it costs the least it can. Then the layers
// run from a graph captured for this call: the time between two events is the GPU's own.
//
// The schedules differ in the second step. block-list is what SGLang's kernel did before its pull
// request 10552, and what others still do: copy query_start_loc to the host, wait for it, make the
// lists there, copy them back. sequence-grid is what it has done since: the host needs the longest
// length only. There the lengths come from the scheduler's own list; here they are copied back like
// before, which is what an engine has to do that knows them on the device alone (after a draft was
// verified, or when the next batch is prepared before the last one is done), and that part is also
// given on its own (lengths_us). flat needs nothing from the device.
#include <algorithm>
#include <cstring>
#include <utility>

#include "common/error.hpp"
#include "replay/call_engine.hpp"

namespace shortconv::tools {
namespace {

// Layers between the first and the last share inputs and outputs in turn, as all layers of an
// engine do; only those two are recorded.
constexpr std::int64_t kMostRows = 6;

constexpr std::int64_t kCopyUnit = 16;  // gpu_copy's

std::int64_t round_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

template <typename T>
void upload(const GpuBuffer& device, const std::vector<T>& values) {
  copy_to_gpu(device.data(), values.data(), std::ssize(values) * std::int64_t{sizeof(T)});
}

/// What the engines share: weights, memory for the largest call, and the call at hand.
class GpuWorkspace {
 public:
  GpuWorkspace(const ReplaySetup& setup, const StreamOutline& outline);

  /// Brings inputs and lists of the `number`th call to the device unless they are there.
  void load(const Call& call, std::int64_t number);
  /// Those of one layer.
  [[nodiscard]] CallTensors tensors(std::int64_t layer, const GpuBuffer& state) const;
  /// Empties the level-2 cache of everything a call will read: between two calls of one layer a
  /// serving engine reads the weights of all others.
  void cool() const;
  /// Microseconds of one out of `layers` copies of `bytes` / 2, which read and write `bytes`, in
  /// the same conditions as the layers.
  double time_copies(std::int64_t bytes) const;

  GpuStream stream;
  PinnedBuffer lengths, sent_blocks;  // lists on their way
  GpuBuffer query_start_loc, slots, has_initial_state, blocks;
  GpuBuffer spare_states;  // for runs whose results are of no use

 private:
  struct Rows {
    GpuBuffer x, out;
  };
  [[nodiscard]] const Rows& rows_of(std::int64_t layer) const;

  const ReplaySetup& setup_;
  std::vector<GpuBuffer> weights_, biases_;  // one per layer
  std::vector<Rows> rows_;                   // of the first layers and, at the end, of the last one
  GpuBuffer copy_source_, copy_target_, cold_source_, cold_target_;
  PinnedBuffer host_x_;
  CallLists lists_;
  std::int64_t loaded_ = -1;
};

GpuWorkspace::GpuWorkspace(const ReplaySetup& setup, const StreamOutline& outline)
    : setup_(setup), host_x_(outline.most_tokens * setup.config.row_bytes()) {
  const LayerConfig& config = setup.config;
  for (const LayerWeights& layer : setup.weights) {
    weights_.push_back(copied_to_gpu(layer.weight));
    biases_.push_back(copied_to_gpu(layer.bias));
  }
  for (std::int64_t i = 0; i < std::min(config.layers, kMostRows); ++i) {
    rows_.push_back({.x = GpuBuffer(host_x_.bytes()), .out = GpuBuffer(host_x_.bytes())});
  }
  spare_states = GpuBuffer(setup.scheduler.max_running * config.state_bytes());

  constexpr std::int64_t kWord = sizeof(std::int32_t);
  const std::int64_t sequences = outline.most_sequences;
  query_start_loc = GpuBuffer((sequences + 1) * kWord);
  slots = GpuBuffer(sequences * kWord);
  has_initial_state = GpuBuffer(sequences);
  lengths = PinnedBuffer((sequences + 1) * kWord);
  sent_blocks = PinnedBuffer(2 * outline.most_tokens * kWord);  // no more blocks than tokens
  blocks = GpuBuffer(sent_blocks.bytes());

  // The first copy in a direction sets something up that is not to be in the first host time.
  start_copy_to_gpu(query_start_loc.data(), lengths.data(), lengths.bytes(), stream.handle());
  start_copy_from_gpu(lengths.data(), query_start_loc.data(), lengths.bytes(), stream.handle());
  stream.wait();

  constexpr std::int64_t kCacheSizes = 2;
  const std::int64_t cold_bytes = round_up(kCacheSizes * describe_gpu().l2_bytes, kCopyUnit);
  cold_source_ = GpuBuffer(cold_bytes);
  cold_target_ = GpuBuffer(cold_bytes);
  // Room for several small copies that do not meet in the cache.
  const std::int64_t copy_bytes =
      std::max(round_up(outline.most_bytes / 2, kCopyUnit), 2 * cold_bytes);
  copy_source_ = GpuBuffer(copy_bytes);
  copy_target_ = GpuBuffer(copy_bytes);
}

const GpuWorkspace::Rows& GpuWorkspace::rows_of(std::int64_t layer) const {
  const std::int64_t last = std::ssize(rows_) - 1;
  if (layer == 0) return rows_.front();
  if (layer == setup_.config.layers - 1) return rows_.back();
  return rows_[1 + (layer - 1) % (last - 1)];
}

void GpuWorkspace::load(const Call& call, std::int64_t number) {
  if (number == loaded_) return;
  loaded_ = number;
  lists_.assign(call);
  upload(query_start_loc, lists_.query_start_loc);
  upload(slots, lists_.slots);
  upload(has_initial_state, lists_.has_initial_state);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const bool is_last = i + 1 == rows_.size();
    gather_inputs(setup_, is_last ? setup_.config.layers - 1 : static_cast<std::int64_t>(i),
                  lists_.rows, host_x_.data());
    copy_to_gpu(rows_[i].x.data(), host_x_.data(), call.tokens * setup_.config.row_bytes());
  }
}

CallTensors GpuWorkspace::tensors(std::int64_t layer, const GpuBuffer& state) const {
  return {.x = rows_of(layer).x.data(),
          .out = rows_of(layer).out.data(),
          .weight = weights_[layer].data(),
          .bias = biases_[layer].data(),
          .state = state.data(),
          .query_start_loc = query_start_loc.data(),
          .slots = slots.data(),
          .has_initial_state = has_initial_state.data()};
}

void GpuWorkspace::cool() const {
  gpu_copy(cold_target_.data(), cold_source_.data(), cold_source_.bytes(), stream.handle());
}

double GpuWorkspace::time_copies(std::int64_t bytes) const {
  const std::int64_t layers = setup_.config.layers;
  const std::int64_t half = round_up(bytes / 2, kCopyUnit);
  const std::int64_t places = copy_source_.bytes() / half;
  const GpuGraph copies(stream, [&](void* captured) {
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const std::int64_t offset = layer % places * half;
      gpu_copy(static_cast<std::byte*>(copy_target_.data()) + offset,
               static_cast<const std::byte*>(copy_source_.data()) + offset, half, captured);
    }
  });
  cool();
  return copies.replay() / static_cast<double>(layers);
}

class GpuEngine : public CallEngine {
 public:
  GpuEngine(const ReplaySetup& setup, Schedule schedule,
            std::span<const std::int64_t> recorded_requests, const StreamOutline& outline,
            std::shared_ptr<GpuWorkspace> workspace)
      : CallEngine(setup, schedule, recorded_requests, outline), workspace_(std::move(workspace)) {
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      states_.emplace_back(setup.scheduler.max_running * config_.state_bytes());
    }
  }

  void execute(const Call& call) override;

 private:
  Plan prepare(const Call& call);
  void fetch_lengths(std::int64_t sequences);
  void send_blocks(ForwardArgs& args);
  Addresses layer_addresses(std::int64_t layer, const GpuBuffer& state) const;
  double time_launch(const Plan& plan) const;
  double run_layers(const Plan& plan) const;

  std::shared_ptr<GpuWorkspace> workspace_;
  std::vector<GpuBuffer> states_;  // one per layer: [max_running, width - 1, channels]
  std::vector<std::int64_t> lengths_;
  Addresses call_addresses_;  // of layer 0
  std::int64_t calls_ = 0;
};

void GpuEngine::execute(const Call& call) {
  KindMeasurement& kind = measured(call);
  workspace_->load(call, calls_++);
  const Plan plan = prepare(call);
  kind.launch_us.push_back(time_launch(plan));
  const double run_us = run_layers(plan);
  kind.run_us.insert(kind.run_us.end(), static_cast<std::size_t>(config_.layers), run_us);

  if (copy_sample(call.kind) >= 0) {
    const double copy_us = workspace_->time_copies(moved_bytes(config_, call));
    kind.copy_us.push_back(copy_us);
    kind.copy_ratio.push_back(run_us / copy_us);
  }
  for (const std::int64_t layer : recorded_layers(config_)) {
    record(call, layer, workspace_->tensors(layer, states_[layer]).out, states_[layer].data(),
           copy_from_gpu);
  }
  count(call);
}

// Everything that the host does before the first layer can be launched.
Plan GpuEngine::prepare(const Call& call) {
  ForwardArgs args =
      call_arguments(setup_, schedule(), call, workspace_->tensors(0, states_.front()));
  KindMeasurement& kind = measured(call);
  const bool needs_lengths = args.schedule != Schedule::kFlat;
  Problem problem;
  Plan plan;

  const Clock::time_point start = Clock::now();
  if (needs_lengths) fetch_lengths(std::ssize(call.segments));
  const double lengths_us = needs_lengths ? microseconds_since(start) : 0;
  if (args.schedule == Schedule::kBlockList) {
    send_blocks(args);
  } else if (args.schedule == Schedule::kSequenceGrid) {
    args.longest_sequence = *std::max_element(lengths_.begin(), lengths_.end());
  }
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  kind.host_us.push_back(microseconds_since(start));
  kind.lengths_us.push_back(lengths_us);

  require(status);
  call_addresses_ = addresses(args);
  return plan;
}

void GpuEngine::fetch_lengths(std::int64_t sequences) {
  const std::int64_t bytes = (sequences + 1) * std::int64_t{sizeof(std::int32_t)};
  start_copy_from_gpu(workspace_->lengths.data(), workspace_->query_start_loc.data(), bytes,
                      workspace_->stream.handle());
  workspace_->stream.wait();
  const auto* bounds = reinterpret_cast<const std::int32_t*>(workspace_->lengths.data());
  lengths_.clear();
  for (std::int64_t i = 0; i < sequences; ++i) lengths_.push_back(bounds[i + 1] - bounds[i]);
}

// Both lists in one copy, which is in front of the layers in the same stream, so that nothing waits
// for it.
void GpuEngine::send_blocks(ForwardArgs& args) {
  const BlockList list = plan_block_list(lengths_);
  const std::int64_t count = std::ssize(list.sequence);
  const std::int64_t bytes = count * std::int64_t{sizeof(std::int32_t)};
  std::byte* sent = workspace_->sent_blocks.data();
  std::memcpy(sent, list.sequence.data(), static_cast<std::size_t>(bytes));
  std::memcpy(sent + bytes, list.offset.data(), static_cast<std::size_t>(bytes));
  auto* blocks = static_cast<std::byte*>(workspace_->blocks.data());
  start_copy_to_gpu(blocks, sent, 2 * bytes, workspace_->stream.handle());
  args.block_sequence = TensorRef::contiguous(blocks, DType::kI32, {count}, setup_.device());
  args.block_offset = TensorRef::contiguous(blocks + bytes, DType::kI32, {count}, setup_.device());
}

Addresses GpuEngine::layer_addresses(std::int64_t layer, const GpuBuffer& state) const {
  const CallTensors at = workspace_->tensors(layer, state);
  Addresses addresses = call_addresses_;
  addresses.x = at.x;
  addresses.out = at.out;
  addresses.weight = at.weight;
  addresses.bias = at.bias;
  addresses.state = at.state;
  return addresses;
}

// How long `run` keeps the host. The first of the two loads the kernel if it is its first use. Both
// work on states of no use, and their outputs are overwritten by the run that counts.
double GpuEngine::time_launch(const Plan& plan) const {
  void* stream = workspace_->stream.handle();
  const Addresses addresses = layer_addresses(0, workspace_->spare_states);
  require(run(plan, addresses, stream));
  const Clock::time_point start = Clock::now();
  const Status status = run(plan, addresses, stream);
  const double launch_us = microseconds_since(start);
  require(status);
  return launch_us;
}

// Microseconds of one layer.
double GpuEngine::run_layers(const Plan& plan) const {
  const GpuGraph layers(workspace_->stream, [&](void* captured) {
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      require(run(plan, layer_addresses(layer, states_[layer]), captured));
    }
  });
  workspace_->cool();
  return layers.replay() / static_cast<double>(config_.layers);
}

}  // namespace

GpuBuffer copied_to_gpu(const Buffer& host) {
  if (host.bytes() == 0) return {};
  GpuBuffer device(host.bytes());
  copy_to_gpu(device.data(), host.data(), host.bytes());
  return device;
}

std::vector<std::unique_ptr<CallEngine>> make_gpu_engines(
    const ReplaySetup& setup, std::span<const Schedule> schedules,
    std::span<const std::int64_t> recorded_requests, const StreamOutline& outline) {
  const auto workspace = std::make_shared<GpuWorkspace>(setup, outline);
  std::vector<std::unique_ptr<CallEngine>> engines;
  for (const Schedule schedule : schedules) {
    engines.push_back(
        std::make_unique<GpuEngine>(setup, schedule, recorded_requests, outline, workspace));
  }
  return engines;
}

}  // namespace shortconv::tools
