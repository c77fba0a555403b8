#include "replay/call_engine.hpp"

#include <algorithm>
#include <cstring>

namespace shortconv::tools {
namespace {

// Copies measured for each kind of call, spread over the run.
constexpr std::int64_t kCopySamples = 200;

}  // namespace

std::int64_t moved_bytes(const LayerConfig& config, const Call& call) {
  std::int64_t bytes = 2 * call.tokens * config.row_bytes();
  for (const Segment& segment : call.segments) {
    bytes += (segment.resumed ? 2 : 1) * config.state_bytes();
  }
  return bytes;
}

void CallLists::assign(const Call& call) {
  rows.clear();
  lengths.clear();
  slots.clear();
  has_initial_state.clear();
  query_start_loc.assign(1, 0);
  for (const Segment& segment : call.segments) {
    for (std::int64_t i = 0; i < segment.count; ++i) {
      rows.push_back({.request = segment.request, .token = segment.first_token + i});
    }
    lengths.push_back(segment.count);
    slots.push_back(segment.slot);
    has_initial_state.push_back(segment.resumed ? 1 : 0);
    query_start_loc.push_back(static_cast<std::int32_t>(rows.size()));
  }
}

void gather_inputs(const ReplaySetup& setup, std::int64_t layer,
                   std::span<const CallLists::Row> rows, std::byte* x) {
  const std::int64_t row_bytes = setup.config.row_bytes();
  const std::int64_t count = std::ssize(rows);
#pragma omp parallel for schedule(static) num_threads(setup.threads)
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(x + i * row_bytes, setup.inputs.row(layer, rows[i].request, rows[i].token),
                static_cast<std::size_t>(row_bytes));
  }
}

ForwardArgs call_arguments(const ReplaySetup& setup, Schedule schedule, const Call& call,
                           const CallTensors& at) {
  const LayerConfig& config = setup.config;
  const Device device = setup.device();
  const std::int64_t sequences = std::ssize(call.segments);
  ForwardArgs args;
  args.x = TensorRef::contiguous(at.x, config.dtype, {call.tokens, config.channels}, device);
  args.out = TensorRef::contiguous(at.out, config.dtype, {call.tokens, config.channels}, device);
  args.weight = TensorRef::contiguous(at.weight, config.weight_dtype,
                                      {config.channels, config.width}, device);
  if (config.has_bias) {
    args.bias = TensorRef::contiguous(at.bias, config.weight_dtype, {config.channels}, device);
  }
  args.state = TensorRef::contiguous(
      at.state, config.dtype, {setup.scheduler.max_running, config.history(), config.channels},
      device);
  args.read_slots = TensorRef::contiguous(at.slots, DType::kI32, {sequences}, device);
  args.activation = config.activation;
  args.backend = setup.backend;
  args.threads = setup.threads;
  if (call.kind == CallKind::kDecode) {
    args.op = Op::kDecode;
    return args;
  }
  args.query_start_loc =
      TensorRef::contiguous(at.query_start_loc, DType::kI32, {sequences + 1}, device);
  args.has_initial_state =
      TensorRef::contiguous(at.has_initial_state, DType::kBool, {sequences}, device);
  args.schedule = schedule;
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
    rows += segment.count * row_bytes;
    const std::int64_t first = first_recording_[segment.request];
    if (first < 0) continue;
    Recording& recording = result_.recordings[first + (recorded - recorded_layers_.begin())];
    copy(recording.outputs.data() + segment.first_token * row_bytes, first_row,
         segment.count * row_bytes);
    if (!segment.finishes) continue;
    copy(recording.final_state.data(),
         static_cast<const std::byte*>(state) + segment.slot * state_bytes, state_bytes);
  }
}

void CallEngine::count(const Call& call) {
  KindMeasurement& kind = measured(call);
  kind.bytes += static_cast<double>(moved_bytes(config_, call) * config_.layers);
  kind.tokens += call.tokens;
  ++kind.calls;
}

}  // namespace shortconv::tools
