#include "replay/call_engine.hpp"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.hpp"

namespace shortconv::tools {
namespace {

// Copies measured for each kind of call, spread over the run.
constexpr std::int64_t kCopySamples = 200;

}  // namespace

std::int64_t moved_bytes(const ReplaySetup& setup, const Call& call) {
  const LayerConfig& config = setup.config;
  const bool is_commit = call.kind == CallKind::kCommit;
  std::int64_t bytes = is_commit ? 0 : 2 * call.tokens * config.row_bytes();
  for (const Segment& segment : call.segments) {
    if (segment.is_draft() && !is_commit) {
      bytes += config.state_bytes() + setup.window_rows() * config.row_bytes();
    } else {
      bytes += (segment.resumed ? 2 : 1) * config.state_bytes();
    }
    bytes += std::ssize(segment.snapshots) * config.state_bytes();
  }
  return bytes;
}

std::int64_t layer_state_bytes(const ReplaySetup& setup) {
  return setup.scheduler.slots() * setup.config.state_bytes();
}

std::int64_t layer_window_bytes(const ReplaySetup& setup) {
  if (setup.scheduler.tree.empty()) return 0;
  return setup.scheduler.max_running * setup.window_rows() * setup.config.row_bytes();
}

bool takes_snapshots(const ReplaySetup& setup, const Call& call) {
  return setup.scheduler.prefix_block > 0 &&
         (call.kind == CallKind::kExtend || call.kind == CallKind::kMixed);
}

std::int64_t snapshot_rows(const ReplaySetup& setup, const Call& call) {
  return call.tokens / setup.scheduler.prefix_block + std::ssize(call.segments);
}

std::int64_t blocks_of(const ReplaySetup& setup, const Call& call) {
  if (!takes_snapshots(setup, call)) return 0;
  std::int64_t most = 1;  // a table has a column
  for (const Segment& segment : call.segments) {
    most = std::max(most, (segment.first_token + segment.count) / setup.scheduler.prefix_block);
  }
  return most;
}

void CallLists::assign(const ReplaySetup& setup, const Call& call) {
  rows.clear();
  lengths.clear();
  query_start_loc.assign(1, 0);
  has_initial_state.clear();
  for (auto* list : {&read_slots, &write_slots, &intermediate_slots, &parents, &accepted,
                     &num_computed_tokens, &prefix_slots}) {
    list->clear();
  }
  const std::int64_t blocks = blocks_of(setup, call);
  const std::vector<std::int32_t> tree = setup.scheduler.tree.parents();
  std::int32_t drafted = 0;
  for (const Segment& segment : call.segments) {
    read_slots.push_back(segment.read_slot);
    if (call.kind == CallKind::kCommit) {
      accepted.push_back(segment.accepted.back());
      continue;
    }
    add_rows(setup, segment);
    lengths.push_back(segment.count);
    query_start_loc.push_back(static_cast<std::int32_t>(rows.size()));
    has_initial_state.push_back(segment.resumed ? 1 : 0);
    write_slots.push_back(segment.is_draft() ? -1 : segment.slot);
    intermediate_slots.push_back(segment.is_draft() ? drafted++ : -1);
    if (segment.is_draft()) parents.insert(parents.end(), tree.begin(), tree.end());
    num_computed_tokens.push_back(static_cast<std::int32_t>(segment.first_token));
    const auto first = static_cast<std::ptrdiff_t>(prefix_slots.size());
    prefix_slots.resize(prefix_slots.size() + static_cast<std::size_t>(blocks), -1);
    for (const Segment::Snapshot& snapshot : segment.snapshots) {
      prefix_slots[first + snapshot.blocks - 1] = snapshot.slot;
    }
  }
}

void CallLists::add_rows(const ReplaySetup& setup, const Segment& segment) {
  if (!segment.is_draft()) {
    for (std::int64_t i = 0; i < segment.count; ++i) {
      const std::int64_t token = segment.first_token + i;
      rows.push_back({.request = first_with_prefix(setup.requests, segment.request, token + 1),
                      .token = token});
    }
    return;
  }
  const std::size_t first = rows.size();
  for (std::int64_t i = 0; i < segment.count; ++i) {
    rows.push_back({.request = segment.request, .token = segment.first_token, .wrong_draft = i});
  }
  std::int64_t token = segment.first_token;
  for (const std::int32_t row : segment.accepted) {
    rows[first + static_cast<std::size_t>(row)] = {.request = segment.request, .token = token++};
  }
}

void gather_inputs(const ReplaySetup& setup, std::int64_t layer,
                   std::span<const CallLists::Row> rows, std::byte* x) {
  const std::int64_t row_bytes = setup.config.row_bytes();
  const std::int64_t count = std::ssize(rows);
  for_each_item(setup.threads, count, [&](std::int64_t i) {
    const auto [request, token, wrong_draft] = rows[i];
    const std::byte* row = wrong_draft < 0
                               ? setup.inputs.row(layer, request, token)
                               : setup.inputs.wrong_row(layer, request, token, wrong_draft);
    std::memcpy(x + i * row_bytes, row, static_cast<std::size_t>(row_bytes));
  });
}

namespace {

TensorRef indices(void* data, std::initializer_list<std::int64_t> shape, Device device) {
  return TensorRef::contiguous(data, DType::kI32, shape, device);
}

// [sequences, rows, width - 1, channels]
TensorRef windows_of_drafts(const ReplaySetup& setup, const CallTensors& at,
                            std::int64_t sequences) {
  const LayerConfig& config = setup.config;
  const DraftTree& tree = setup.scheduler.tree;
  TensorRef windows = TensorRef::contiguous(
      at.windows, config.dtype, {sequences, tree.rows(), config.history(), config.channels},
      setup.device());
  windows.strides[0] = setup.window_rows() * config.channels;
  if (tree.is_chain()) windows.strides[1] = config.channels;
  return windows;
}

}  // namespace

ForwardArgs call_arguments(const ReplaySetup& setup, Schedule schedule, const Call& call,
                           const CallTensors& at) {
  const LayerConfig& config = setup.config;
  const Device device = setup.device();
  const std::int64_t sequences = std::ssize(call.segments);
  const auto rows = [&](void* data) {
    return TensorRef::contiguous(data, config.dtype, {call.tokens, config.channels}, device);
  };
  ForwardArgs args;
  args.x = rows(at.x);
  args.out = rows(at.out);
  args.weight = TensorRef::contiguous(at.weight, config.weight_dtype,
                                      {config.channels, config.width}, device);
  if (config.has_bias) {
    args.bias = TensorRef::contiguous(at.bias, config.weight_dtype, {config.channels}, device);
  }
  args.pool.state = TensorRef::contiguous(
      at.state, config.dtype, {setup.scheduler.slots(), config.history(), config.channels}, device);
  args.pool.read_slots = indices(at.read_slots, {sequences}, device);
  args.epilogue.activation = config.activation;
  args.options.backend = setup.backend;
  args.options.threads = setup.threads;
  if (call.kind == CallKind::kDecode) {
    args.op = Op::kDecode;
    return args;
  }
  if (call.kind == CallKind::kVerify) {
    const DraftTree& tree = setup.scheduler.tree;
    args.op = Op::kVerify;
    for (TensorRef* packed : {&args.x, &args.out}) {
      *packed = TensorRef::contiguous(packed->data, config.dtype,
                                      {sequences, tree.rows(), config.channels}, device);
    }
    args.drafts.intermediate_states = windows_of_drafts(setup, at, sequences);
    if (!tree.is_chain())
      args.drafts.parents = indices(at.parents, {sequences, tree.rows()}, device);
    return args;
  }
  args.sequences.query_start_loc = indices(at.query_start_loc, {sequences + 1}, device);
  args.sequences.has_initial_state =
      TensorRef::contiguous(at.has_initial_state, DType::kBool, {sequences}, device);
  if (call.kind == CallKind::kMixed && !setup.scheduler.tree.empty()) {
    // Prompts keep a state and no windows, drafts the other way round.
    args.op = Op::kVerify;
    args.drafts.intermediate_states = windows_of_drafts(setup, at, setup.scheduler.max_running);
    args.drafts.intermediate_slots = indices(at.intermediate_slots, {sequences}, device);
    args.pool.write_slots = indices(at.write_slots, {sequences}, device);
    return args;
  }
  args.options.schedule = schedule;
  if (takes_snapshots(setup, call)) {
    args.pool.write_slots = indices(at.write_slots, {sequences}, device);
    args.pool.snapshots = snapshot_arguments(setup, call, at).snapshots;
  }
  return args;
}

CommitArgs commit_arguments(const ReplaySetup& setup, const Call& call, const CallTensors& at) {
  const LayerConfig& config = setup.config;
  const Device device = setup.device();
  const std::int64_t sequences = std::ssize(call.segments);
  CommitArgs args;
  args.intermediate_states = TensorRef::contiguous(
      at.windows, config.dtype,
      {config.layers, setup.scheduler.max_running, setup.window_rows(), config.channels}, device);
  args.intermediate_states.shape[1] = sequences;
  args.state = TensorRef::contiguous(
      at.state, config.dtype,
      {config.layers, setup.scheduler.slots(), config.history(), config.channels}, device);
  args.accepted = indices(at.accepted, {sequences}, device);
  args.slots = indices(at.read_slots, {sequences}, device);
  args.width = config.width;
  args.rows_per_token = setup.scheduler.tree.is_chain() ? 1 : config.width - 1;
  args.backend = setup.backend;
  args.threads = setup.threads;
  return args;
}

BlockSnapshotsArgs snapshot_arguments(const ReplaySetup& setup, const Call& call,
                                      const CallTensors& at) {
  const Device device = setup.device();
  const std::int64_t sequences = std::ssize(call.segments);
  const std::int64_t block = setup.scheduler.prefix_block;
  BlockSnapshotsArgs args;
  args.query_start_loc = indices(at.query_start_loc, {sequences + 1}, device);
  args.num_computed_tokens = indices(at.num_computed_tokens, {sequences}, device);
  args.block_slots = indices(at.prefix_slots, {sequences, blocks_of(setup, call)}, device);
  args.tokens = call.tokens;
  args.block_size = block;
  args.snapshots = indices(at.snapshots, {snapshot_rows(setup, call), 3}, device);
  args.backend = setup.backend;
  return args;
}

CallEngine::CallEngine(const ReplaySetup& setup, Schedule schedule,
                       std::span<const std::int64_t> recorded_requests,
                       const StreamOutline& outline)
    : setup_(setup),
      config_(setup.config),
      outline_(outline),
      recorded_layers_(recorded_layers(config_)),
      first_recording_(setup.requests.size(), -1) {
  result_.schedule = schedule;
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

std::int64_t CallEngine::copy_sample(CallKind kind) const {
  const std::int64_t call = result_.kinds[static_cast<int>(kind)].calls;
  const std::int64_t calls = outline_.calls[static_cast<int>(kind)];
  const std::int64_t every = (calls + kCopySamples - 1) / kCopySamples;
  return call % every == every / 2 ? call / every : -1;
}

void CallEngine::record(const Call& call, std::int64_t layer, const void* out, const void* state,
                        CopyToHost copy) {
  const auto recorded = std::find(recorded_layers_.begin(), recorded_layers_.end(), layer);
  if (recorded == recorded_layers_.end()) return;
  const std::int64_t row_bytes = config_.row_bytes();
  const std::int64_t state_bytes = config_.state_bytes();
  const auto* rows = static_cast<const std::byte*>(out);
  for (const Segment& segment : call.segments) {
    const std::byte* first_row = rows;
    if (rows != nullptr) rows += segment.count * row_bytes;
    const std::int64_t first = first_recording_[segment.request];
    if (first < 0) continue;
    Recording& recording = result_.recordings[first + (recorded - recorded_layers_.begin())];
    if (segment.begins_from_snapshot()) recording.first_token = segment.first_token;
    std::byte* outputs = recording.outputs.data() + segment.first_token * row_bytes;
    if (rows != nullptr && segment.is_draft()) {
      for (const std::int32_t row : segment.accepted) {
        copy(outputs, first_row + row * row_bytes, row_bytes);
        outputs += row_bytes;
      }
    } else if (rows != nullptr) {
      copy(outputs, first_row, segment.count * row_bytes);
    }
    if (!segment.finishes) continue;
    copy(recording.final_state.data(),
         static_cast<const std::byte*>(state) + segment.slot * state_bytes, state_bytes);
  }
}

void CallEngine::add_commit_time(double run_us, KindMeasurement& kind) const {
  kind.run_us.insert(kind.run_us.end(), static_cast<std::size_t>(config_.layers),
                     run_us / static_cast<double>(config_.layers));
}

void CallEngine::add_commit_copy(double run_us, double copy_us, KindMeasurement& kind) const {
  kind.copy_us.push_back(copy_us / static_cast<double>(config_.layers));
  kind.copy_ratio.push_back(run_us / copy_us);
}

void CallEngine::count(const Call& call) {
  KindMeasurement& kind = measured(call);
  kind.bytes += static_cast<double>(moved_bytes(setup_, call) * config_.layers);
  kind.tokens += call.tokens;
  ++kind.calls;
}

}  // namespace shortconv::tools
