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
//
// Where snapshots are taken, the list of them is made on the device, from a table of slots; its
// launch belongs to the second step too.
#include <algorithm>
#include <cstring>
#include <functional>
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
  [[nodiscard]] CallTensors tensors(std::int64_t layer, void* state, void* windows) const;
  /// Empties the level-2 cache of everything a call will read: between two calls of one layer a
  /// serving engine reads the weights of all others.
  void cool() const;
  /// Microseconds of one out of `copies` copies of `bytes` / 2, which read and write `bytes`, in
  /// the same conditions as the layers.
  double time_copies(std::int64_t bytes, std::int64_t copies) const;

  GpuStream stream;
  PinnedBuffer lengths, sent_blocks;  // lists on their way
  GpuBuffer query_start_loc, read_slots, write_slots, has_initial_state, blocks;
  GpuBuffer intermediate_slots, parents, accepted, num_computed_tokens, prefix_slots, snapshots;
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
  spare_states = GpuBuffer(layer_state_bytes(setup));

  constexpr std::int64_t kWord = sizeof(std::int32_t);
  const std::int64_t sequences = outline.most_sequences;
  query_start_loc = GpuBuffer((sequences + 1) * kWord);
  read_slots = GpuBuffer(sequences * kWord);
  write_slots = GpuBuffer(sequences * kWord);
  has_initial_state = GpuBuffer(sequences);
  intermediate_slots = GpuBuffer(sequences * kWord);
  parents = GpuBuffer(sequences * setup.scheduler.tree.rows() * kWord);
  accepted = GpuBuffer(sequences * kWord);
  num_computed_tokens = GpuBuffer(sequences * kWord);
  if (const std::int64_t block = setup.scheduler.prefix_block; block > 0) {
    prefix_slots = GpuBuffer(outline.most_prefix_slots * kWord);
    snapshots = GpuBuffer(3 * (outline.most_tokens / block + sequences) * kWord);
  }
  lengths = PinnedBuffer((sequences + 1) * kWord);
  sent_blocks = PinnedBuffer(2 * outline.most_tokens * kWord);  // no more blocks than tokens
  blocks = GpuBuffer(sent_blocks.bytes());

  // The first copy in a direction sets something up that is not to be in the first host time.
  start_copy_to_gpu(query_start_loc.data(), lengths.data(), lengths.bytes(), stream.handle());
  start_copy_from_gpu(lengths.data(), query_start_loc.data(), lengths.bytes(), stream.handle());
  // So does the first list of snapshots, one without rows.
  if (setup.scheduler.prefix_block > 0) {
    const CallTensors at = tensors(0, nullptr, nullptr);
    require(block_snapshots(snapshot_arguments(setup, {}, at), stream.handle()));
  }
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
  lists_.assign(setup_, call);
  upload(query_start_loc, lists_.query_start_loc);
  upload(read_slots, lists_.read_slots);
  upload(write_slots, lists_.write_slots);
  upload(has_initial_state, lists_.has_initial_state);
  upload(intermediate_slots, lists_.intermediate_slots);
  upload(parents, lists_.parents);
  upload(accepted, lists_.accepted);
  upload(num_computed_tokens, lists_.num_computed_tokens);
  upload(prefix_slots, lists_.prefix_slots);
  if (call.kind == CallKind::kCommit) return;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const bool is_last = i + 1 == rows_.size();
    gather_inputs(setup_, is_last ? setup_.config.layers - 1 : static_cast<std::int64_t>(i),
                  lists_.rows, host_x_.data());
    copy_to_gpu(rows_[i].x.data(), host_x_.data(), call.tokens * setup_.config.row_bytes());
  }
}

CallTensors GpuWorkspace::tensors(std::int64_t layer, void* state, void* windows) const {
  return {.x = rows_of(layer).x.data(),
          .out = rows_of(layer).out.data(),
          .weight = weights_[layer].data(),
          .bias = biases_[layer].data(),
          .state = state,
          .windows = windows,
          .query_start_loc = query_start_loc.data(),
          .read_slots = read_slots.data(),
          .write_slots = write_slots.data(),
          .has_initial_state = has_initial_state.data(),
          .intermediate_slots = intermediate_slots.data(),
          .parents = parents.data(),
          .accepted = accepted.data(),
          .num_computed_tokens = num_computed_tokens.data(),
          .prefix_slots = prefix_slots.data(),
          .snapshots = snapshots.data()};
}

void GpuWorkspace::cool() const {
  gpu_copy(cold_target_.data(), cold_source_.data(), cold_source_.bytes(), stream.handle());
}

double GpuWorkspace::time_copies(std::int64_t bytes, std::int64_t copies) const {
  const std::int64_t half = round_up(bytes / 2, kCopyUnit);
  const std::int64_t places = copy_source_.bytes() / half;
  const GpuGraph graph(stream, [&](void* captured) {
    for (std::int64_t i = 0; i < copies; ++i) {
      const std::int64_t offset = i % places * half;
      gpu_copy(static_cast<std::byte*>(copy_target_.data()) + offset,
               static_cast<const std::byte*>(copy_source_.data()) + offset, half, captured);
    }
  });
  cool();
  return graph.replay() / static_cast<double>(copies);
}

class GpuEngine : public CallEngine {
 public:
  GpuEngine(const ReplaySetup& setup, Schedule schedule,
            std::span<const std::int64_t> recorded_requests, const StreamOutline& outline,
            std::shared_ptr<GpuWorkspace> workspace)
      : CallEngine(setup, schedule, recorded_requests, outline),
        workspace_(std::move(workspace)),
        states_(config_.layers * layer_state_bytes(setup)),
        windows_(config_.layers * layer_window_bytes(setup)) {}

  void execute(const Call& call) override;

 private:
  void run_call(const Call& call);
  void run_commit(const Call& call);
  [[nodiscard]] CallTensors tensors(std::int64_t layer) const;
  Plan prepare(const Call& call);
  void fetch_lengths(std::int64_t sequences);
  void send_blocks(ForwardArgs& args);
  TensorPointers layer_addresses(const CallTensors& at) const;
  double time_launch(const std::function<Status(void*)>& launch) const;
  double run_layers(const Plan& plan) const;

  std::shared_ptr<GpuWorkspace> workspace_;
  GpuBuffer states_;   // [layers, slots, width - 1, channels]
  GpuBuffer windows_;  // [layers, max_running, window_rows, channels]
  std::vector<std::int64_t> lengths_;
  TensorPointers call_addresses_;  // of layer 0
  std::int64_t calls_ = 0;
};

void GpuEngine::execute(const Call& call) {
  workspace_->load(call, calls_++);
  if (call.kind == CallKind::kCommit) {
    run_commit(call);
  } else {
    run_call(call);
  }
  count(call);
}

void GpuEngine::run_call(const Call& call) {
  KindMeasurement& kind = measured(call);
  const Plan plan = prepare(call);
  // On states of no use; outputs and windows are overwritten by the run that counts.
  CallTensors spare = tensors(0);
  spare.state = workspace_->spare_states.data();
  kind.launch_us.push_back(time_launch(
      [&, at = layer_addresses(spare)](void* stream) { return run(plan, at, stream); }));
  const double run_us = run_layers(plan);
  kind.run_us.insert(kind.run_us.end(), static_cast<std::size_t>(config_.layers), run_us);

  if (copy_sample(call.kind) >= 0) {
    const double copy_us = workspace_->time_copies(moved_bytes(setup_, call), config_.layers);
    kind.copy_us.push_back(copy_us);
    kind.copy_ratio.push_back(run_us / copy_us);
  }
  for (const std::int64_t layer : recorded_layers(config_)) {
    record(call, layer, tensors(layer).out, tensors(layer).state, copy_from_gpu);
  }
}

void GpuEngine::run_commit(const Call& call) {
  KindMeasurement& kind = measured(call);
  const CommitArgs args = commit_arguments(setup_, call, tensors(0));
  CommitProblem problem;
  CommitPlan plan;

  const Clock::time_point start = Clock::now();
  Status status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  kind.host_us.push_back(microseconds_since(start));
  kind.lengths_us.push_back(0);
  require(status);

  // What a commit writes it does not read, so that it may run several times.
  const auto launch = [&](void* stream) { return run(plan, pointers(args), stream); };
  kind.launch_us.push_back(time_launch(launch));
  const GpuGraph graph(workspace_->stream, [&](void* captured) { require(launch(captured)); });
  workspace_->cool();
  const double run_us = graph.replay();
  add_commit_time(run_us, kind);

  if (copy_sample(call.kind) >= 0) {
    add_commit_copy(
        run_us,
        workspace_->time_copies(moved_bytes(setup_, call) * layers_at_once(setup_, call), 1), kind);
  }
  for (const std::int64_t layer : recorded_layers(config_)) {
    record(call, layer, nullptr, tensors(layer).state, copy_from_gpu);
  }
}

CallTensors GpuEngine::tensors(std::int64_t layer) const {
  return workspace_->tensors(
      layer, static_cast<std::byte*>(states_.data()) + layer * layer_state_bytes(setup_),
      static_cast<std::byte*>(windows_.data()) + layer * layer_window_bytes(setup_));
}

// Everything that the host does before the first layer can be launched.
Plan GpuEngine::prepare(const Call& call) {
  const CallTensors at = tensors(0);
  ForwardArgs args = call_arguments(setup_, schedule(), call, at);
  KindMeasurement& kind = measured(call);
  const bool needs_lengths = args.options.schedule != Schedule::kFlat;
  Problem problem;
  Plan plan;
  Status status;

  const Clock::time_point start = Clock::now();
  if (needs_lengths) fetch_lengths(std::ssize(call.segments));
  const double lengths_us = needs_lengths ? microseconds_since(start) : 0;
  if (args.options.schedule == Schedule::kBlockList) {
    send_blocks(args);
  } else if (args.options.schedule == Schedule::kSequenceGrid) {
    args.options.max_seqlen = *std::max_element(lengths_.begin(), lengths_.end());
  }
  if (takes_snapshots(setup_, call)) {
    status = block_snapshots(snapshot_arguments(setup_, call, at), workspace_->stream.handle());
  }
  if (status.ok()) status = make_problem(args, problem);
  if (status.ok()) status = make_plan(problem, plan);
  kind.host_us.push_back(microseconds_since(start));
  kind.lengths_us.push_back(lengths_us);

  require(status);
  call_addresses_ = pointers(args);
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
  BlockList list;
  require(plan_block_list(lengths_, list));
  const std::int64_t count = std::ssize(list.sequence);
  const std::int64_t bytes = count * std::int64_t{sizeof(std::int32_t)};
  std::byte* sent = workspace_->sent_blocks.data();
  std::memcpy(sent, list.sequence.data(), static_cast<std::size_t>(bytes));
  std::memcpy(sent + bytes, list.offset.data(), static_cast<std::size_t>(bytes));
  auto* blocks = static_cast<std::byte*>(workspace_->blocks.data());
  start_copy_to_gpu(blocks, sent, 2 * bytes, workspace_->stream.handle());
  args.options.block_sequence =
      TensorRef::contiguous(blocks, DType::kI32, {count}, setup_.device());
  args.options.block_offset =
      TensorRef::contiguous(blocks + bytes, DType::kI32, {count}, setup_.device());
}

TensorPointers GpuEngine::layer_addresses(const CallTensors& at) const {
  TensorPointers addresses = call_addresses_;
  addresses.x = at.x;
  addresses.out = at.out;
  addresses.weight = at.weight;
  addresses.bias = at.bias;
  addresses.state = at.state;
  if (addresses.intermediate_states != nullptr) addresses.intermediate_states = at.windows;
  return addresses;
}

// How long `launch` keeps the host. The first of the two loads the kernel if it is its first use.
double GpuEngine::time_launch(const std::function<Status(void*)>& launch) const {
  void* stream = workspace_->stream.handle();
  require(launch(stream));
  const Clock::time_point start = Clock::now();
  const Status status = launch(stream);
  const double launch_us = microseconds_since(start);
  require(status);
  return launch_us;
}

// Microseconds of one layer.
double GpuEngine::run_layers(const Plan& plan) const {
  const GpuGraph layers(workspace_->stream, [&](void* captured) {
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      require(run(plan, layer_addresses(tensors(layer)), captured));
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
