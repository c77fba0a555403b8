#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "replay/call_engine.hpp"
#include "replay/engine.hpp"
#include "replay/verification.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {

/// A replay small enough for a unit test: requests of few and of many tokens, more than slots. With
/// a prefix cache more of them, which have beginnings in common.
struct SmallReplay {
  explicit SmallReplay(const SchedulerOptions& scheduler = {.chunk = 24, .max_running = 4},
                       const LayerConfig& layers = {.channels = 40,
                                                    .width = 4,
                                                    .layers = 3,
                                                    .activation = Activation::kSilu,
                                                    .has_bias = true})
      : inputs(7, layers.dtype, layers.channels), weights(make_weights(7, layers)) {
    requests = {{1, 0}, {1, 1}, {60, 3}, {5, 9}, {2, 0}, {17, 4}, {1, 7}, {30, 1}, {3, 3}};
    if (scheduler.prefix_block > 0) {
      // Families of four, whose first one begins as the longest request does.
      for (std::int64_t i = 0; i < 20; ++i) {
        const std::int64_t prompt = 9 + i * 7 % 40;
        const std::int64_t earlier = i % 4 == 0 ? 2 : 9 + i - i % 4;
        const std::int64_t shared = std::min(prompt, requests[earlier].prompt_tokens);
        requests.push_back({prompt, i % 4, earlier, shared - (i % 3 == 0 ? 1 : 0)});
      }
    }
    setup.requests = requests;
    setup.scheduler = scheduler;
    setup.config = layers;
    setup.weights = weights;
  }
  SmallReplay(const SmallReplay&) = delete;

  [[nodiscard]] std::vector<std::int64_t> everything() const {
    std::vector<std::int64_t> all;
    for (std::int64_t i = 0; i < std::ssize(requests); ++i) all.push_back(i);
    return all;
  }
  /// Those that the calls can have.
  [[nodiscard]] std::vector<Schedule> schedules() const {
    if (setup.scheduler.prefix_block > 0) return {Schedule::kFlat};  // it takes snapshots
    std::vector<Schedule> schedules;
    for (const Named<Schedule>& entry : capabilities().schedules) schedules.push_back(entry.value);
    return schedules;
  }
  [[nodiscard]] std::vector<StreamResult> run_all() const {
    return run_stream(setup, schedules(), everything(), [](std::int64_t) {});
  }
  [[nodiscard]] StreamResult run(Schedule schedule = Schedule::kFlat) const {
    const Schedule schedules[] = {schedule};
    return std::move(run_stream(setup, schedules, everything(), [](std::int64_t) {}).front());
  }
  /// On the host, with every call changed before it is executed.
  [[nodiscard]] StreamResult run_changed(const std::function<void(Call&)>& change) const {
    const Schedule schedules[] = {Schedule::kFlat};
    const StreamOutline outline = outline_stream(setup);
    const auto engines = make_host_engines(setup, schedules, everything(), outline);
    Scheduler scheduler(setup.requests, setup.scheduler);
    for (Call call; scheduler.next(call);) {
      change(call);
      engines.front()->execute(call);
    }
    return engines.front()->take_result();
  }
  [[nodiscard]] Verification verify(const StreamResult& result) const {
    Verification verification;
    verify_recordings(setup, result.recordings, [](std::int64_t) {}, verification);
    return verification;
  }

  InputTable inputs;
  std::vector<LayerWeights> weights;
  std::vector<Request> requests;
  ReplaySetup setup{
      .requests = {}, .scheduler = {}, .config = {}, .inputs = inputs, .weights = {}, .threads = 2};
};

}  // namespace shortconv::tools
