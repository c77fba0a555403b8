#include "replay/engine.hpp"

#include <algorithm>
#include <memory>

#include "replay/call_engine.hpp"

namespace shortconv::tools {

StreamOutline outline_stream(const ReplaySetup& setup) {
  StreamOutline outline;
  Scheduler scheduler(setup.requests, setup.scheduler);
  for (Call call; scheduler.next(call);) {
    ++outline.calls[static_cast<int>(call.kind)];
    outline.tokens += call.advanced;
    outline.most_tokens = std::max(outline.most_tokens, call.tokens);
    outline.most_sequences = std::max(outline.most_sequences, std::ssize(call.segments));
    outline.most_prefix_slots =
        std::max(outline.most_prefix_slots, std::ssize(call.segments) * blocks_of(setup, call));
    outline.most_bytes =
        std::max(outline.most_bytes, moved_bytes(setup, call) * layers_at_once(setup, call));
    for (const Segment& segment : call.segments) {
      if (call.kind == CallKind::kCommit) {
        ++outline.verified_steps;
        outline.accepted_tokens += segment.count;
      }
      outline.snapshots += std::ssize(segment.snapshots);
      if (!segment.begins_from_snapshot()) continue;
      ++outline.begun_from_snapshots;
      outline.tokens_of_snapshots += segment.first_token;
    }
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
  const auto make_engines = setup.on_gpu() ? make_gpu_engines : make_host_engines;
  const std::vector<std::unique_ptr<CallEngine>> engines =
      make_engines(setup, schedules, recorded_requests, outline);

  Scheduler scheduler(setup.requests, setup.scheduler);
  std::int64_t tokens = 0;
  std::size_t first = 0;  // whose turn it is, so that none always follows the same other
  for (Call call; scheduler.next(call); ++first) {
    for (std::size_t i = 0; i < engines.size(); ++i) {
      engines[(first + i) % engines.size()]->execute(call);
    }
    tokens += call.advanced;
    on_tokens(tokens);
  }

  std::vector<StreamResult> results;
  for (const auto& engine : engines) results.push_back(engine->take_result());
  return results;
}

}  // namespace shortconv::tools
