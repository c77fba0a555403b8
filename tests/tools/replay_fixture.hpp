#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "replay/engine.hpp"
#include "replay/verification.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {

/// A replay small enough for a unit test: requests of few and of many tokens, more than slots.
struct SmallReplay {
  explicit SmallReplay(const SchedulerOptions& scheduler = {.chunk = 24, .max_running = 4},
                       const LayerConfig& layers = {.channels = 40,
                                                    .width = 4,
                                                    .layers = 3,
                                                    .activation = Activation::kSilu,
                                                    .has_bias = true})
      : inputs(7, layers.dtype, layers.channels), weights(make_weights(7, layers)) {
    requests = {{1, 0}, {1, 1}, {60, 3}, {5, 9}, {2, 0}, {17, 4}, {1, 7}, {30, 1}, {3, 3}};
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
  [[nodiscard]] std::vector<StreamResult> run_all() const {
    std::vector<Schedule> schedules;
    for (const Named<Schedule>& entry : capabilities().schedules) schedules.push_back(entry.value);
    return run_stream(setup, schedules, everything(), [](std::int64_t) {});
  }
  [[nodiscard]] StreamResult run(Schedule schedule = Schedule::kFlat) const {
    const Schedule schedules[] = {schedule};
    return std::move(run_stream(setup, schedules, everything(), [](std::int64_t) {}).front());
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
