#include <gtest/gtest.h>

#include <array>

#include "common/error.hpp"
#include "common/gpu.hpp"
#include "replay/engine.hpp"
#include "replay_fixture.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

void expect_verified(const SmallReplay& replay, const Verification& verification) {
  EXPECT_EQ(verification.failures(), 0) << verification.first_failure;
  std::int64_t tokens = -outline_stream(replay.setup).tokens_of_snapshots;
  for (const Request& request : replay.requests) tokens += request.tokens();
  EXPECT_EQ(verification.rows, tokens * std::ssize(recorded_layers(replay.setup.config)));
  EXPECT_EQ(verification.requests, std::ssize(replay.requests));
}

// Together they make calls of every kind.
const SchedulerOptions kStreams[] = {
    {.chunk = 24, .max_running = 4},
    {.chunk = 24, .max_running = 4, .mixed = true},
    {.chunk = 24, .max_running = 4, .draft = 3},
    {.chunk = 9, .max_running = 3, .draft = 2, .mixed = true},
    {.chunk = 1, .max_running = 1},
    {.chunk = 24, .max_running = 4, .tree = DraftTree({1, 1, 1})},
    {.chunk = 24, .max_running = 4, .tree = DraftTree({1}), .accept = 0.5},
    {.chunk = 24, .max_running = 4, .tree = DraftTree({2, 2}), .accept = 0.9},
    {.chunk = 24, .max_running = 4, .mixed = true, .tree = DraftTree({1, 1, 1, 1, 1})},
    {.chunk = 24, .max_running = 4, .prefix_block = 4, .prefix_slots = 60},
    {.chunk = 24, .max_running = 4, .mixed = true, .prefix_block = 2, .prefix_slots = 9},
    {.chunk = 24,
     .max_running = 4,
     .tree = DraftTree({2, 1, 2}),
     .prefix_block = 3,
     .prefix_slots = 20},
};

TEST(Engine, every_schedule_and_kind_of_call_gives_verified_results) {
  for (const SchedulerOptions& options : kStreams) {
    const SmallReplay replay(options);
    for (const Schedule schedule : replay.schedules()) {
      SCOPED_TRACE(name(schedule));
      expect_verified(replay, replay.verify(replay.run(schedule)));
    }
  }
}

TEST(Engine, streams_come_to_every_kind_of_call) {
  std::array<std::int64_t, kCallKinds> calls{};
  for (const SchedulerOptions& options : kStreams) {
    const StreamOutline outline = outline_stream(SmallReplay(options).setup);
    for (int i = 0; i < kCallKinds; ++i) calls[i] += outline.calls[i];
    EXPECT_EQ(outline.verified_steps > 0, !options.tree.empty());
    EXPECT_EQ(outline.begun_from_snapshots > 2, options.prefix_block > 0)
        << outline.begun_from_snapshots;
    EXPECT_GE(outline.tokens_of_snapshots, outline.begun_from_snapshots * options.prefix_block);
    EXPECT_EQ(outline.snapshots > 0, options.prefix_block > 0);
  }
  for (int i = 0; i < kCallKinds; ++i) EXPECT_GT(calls[i], 0) << name(static_cast<CallKind>(i));
}

// Windows that overlap and that do not, histories longer and shorter than the drafts.
TEST(Engine, every_dtype_and_width_gives_verified_drafts_and_snapshots) {
  const SchedulerOptions streams[] = {{.chunk = 24,
                                       .max_running = 4,
                                       .tree = DraftTree({1, 1, 1}),
                                       .prefix_block = 4,
                                       .prefix_slots = 30},
                                      {.chunk = 24,
                                       .max_running = 4,
                                       .tree = DraftTree({3, 1}),
                                       .prefix_block = 1,
                                       .prefix_slots = 30}};
  for (const SchedulerOptions& options : streams) {
    for (const Named<DType>& dtype : capabilities().dtypes) {
      for (const int width : capabilities().widths) {
        SCOPED_TRACE(std::string(dtype.name) + " width " + std::to_string(width));
        SmallReplay replay(options, {.channels = 33,
                                     .width = width,
                                     .layers = 2,
                                     .dtype = dtype.value,
                                     .weight_dtype = dtype.value});
        replay.setup.threads = 1;
        expect_verified(replay, replay.verify(replay.run()));
      }
    }
  }
}

TEST(Engine, every_dtype_width_and_activation_gives_verified_results) {
  for (const Named<DType>& dtype : capabilities().dtypes) {
    for (const int width : capabilities().widths) {
      for (const Named<Activation>& activation : capabilities().activations) {
        SCOPED_TRACE(std::string(dtype.name) + " width " + std::to_string(width) + " " +
                     std::string(activation.name));
        const SmallReplay replay({.chunk = 24, .max_running = 4}, {.channels = 33,
                                                                   .width = width,
                                                                   .layers = 1,
                                                                   .activation = activation.value,
                                                                   .dtype = dtype.value,
                                                                   .weight_dtype = DType::kF32});
        expect_verified(replay, replay.verify(replay.run()));
      }
    }
  }
}

class MeasuredStream : public testing::TestWithParam<SchedulerOptions> {};

TEST_P(MeasuredStream, has_times_of_every_call_in_every_layer) {
  const SmallReplay replay(GetParam());
  const StreamOutline outline = outline_stream(replay.setup);
  const StreamResult result = replay.run();
  for (int i = 0; i < kCallKinds; ++i) {
    const KindMeasurement& measured = result.kinds[i];
    EXPECT_EQ(measured.calls, outline.calls[i]);
    EXPECT_EQ(std::ssize(measured.host_us), measured.calls);
    EXPECT_EQ(std::ssize(measured.run_us), measured.calls * replay.setup.config.layers);
    EXPECT_EQ(std::ssize(measured.copy_us), measured.calls) << "few calls: each is sampled once";
    EXPECT_EQ(measured.copy_us.size(), measured.copy_ratio.size());
    EXPECT_EQ(measured.bytes > 0, measured.calls > 0);
    for (const double ratio : measured.copy_ratio) EXPECT_GT(ratio, 0);
    EXPECT_TRUE(measured.lengths_us.empty() && measured.launch_us.empty()) << "only on a GPU";
  }
  std::int64_t tokens = 0;
  for (const Request& request : replay.requests) tokens += request.tokens();
  EXPECT_EQ(outline.tokens, tokens);
  const bool verifies = !GetParam().tree.empty();
  const auto calls = [&](CallKind kind) { return outline.calls[static_cast<int>(kind)]; };
  EXPECT_EQ(calls(CallKind::kCommit) > 0, verifies);
  EXPECT_EQ(calls(CallKind::kMixed) > 0, GetParam().mixed);
  EXPECT_TRUE(verifies || outline.most_tokens <= 24);
  EXPECT_EQ(outline.accepted_tokens, result.kinds[static_cast<int>(CallKind::kCommit)].tokens);
}

INSTANTIATE_TEST_SUITE_P(Engine, MeasuredStream, testing::ValuesIn(kStreams),
                         [](const auto& instance) { return std::to_string(instance.index); });

TEST(Engine, copies_are_sampled_sparsely_on_long_streams) {
  SmallReplay replay({.chunk = 8, .max_running = 1}, {.channels = 8, .width = 2, .layers = 2});
  replay.requests = {{1, 999}};
  replay.setup.requests = replay.requests;
  const StreamResult result = replay.run();
  const KindMeasurement& decode = result.kinds[static_cast<int>(CallKind::kDecode)];
  EXPECT_EQ(decode.calls, 999);
  EXPECT_GE(std::ssize(decode.copy_us), 199);
  EXPECT_LE(std::ssize(decode.copy_us), 200);
}

TEST(CallLists, drafts_beside_prompts_keep_windows_and_prompts_a_state) {
  const SmallReplay replay(
      {.chunk = 24, .max_running = 4, .mixed = true, .tree = DraftTree({1, 1})});
  const Segment prompt{
      .request = 2, .first_token = 5, .count = 2, .slot = 3, .read_slot = 3, .resumed = true};
  Segment drafts{.request = 3,
                 .first_token = 7,
                 .count = 3,
                 .slot = 1,
                 .read_slot = 1,
                 .resumed = true,
                 .accepted = {0, 1}};
  CallLists lists;
  lists.assign(
      replay.setup,
      {.kind = CallKind::kMixed, .tokens = 5, .advanced = 2, .segments = {prompt, drafts}});
  using Numbers = std::vector<std::int32_t>;
  EXPECT_EQ(lists.query_start_loc, (Numbers{0, 2, 5}));
  EXPECT_EQ(lists.read_slots, (Numbers{3, 1}));
  EXPECT_EQ(lists.write_slots, (Numbers{3, -1}));
  EXPECT_EQ(lists.intermediate_slots, (Numbers{-1, 0}));
  ASSERT_EQ(lists.rows.size(), 5u);
  EXPECT_EQ(lists.rows[1].token, 6);
  EXPECT_EQ(lists.rows[3].token, 8);
  EXPECT_LT(lists.rows[3].wrong_draft, 0) << "accepted";
  EXPECT_EQ(lists.rows[4].wrong_draft, 2);

  drafts.count = 2;
  lists.assign(replay.setup, {.kind = CallKind::kCommit, .tokens = 2, .segments = {drafts}});
  EXPECT_EQ(lists.accepted, (Numbers{1}));
  EXPECT_EQ(lists.read_slots, (Numbers{1}));
}

TEST(Engine, traffic_counts_rows_twice_and_states_as_often_as_they_move) {
  SmallReplay replay({.chunk = 8, .max_running = 1}, {.channels = 8, .width = 4, .layers = 1});
  replay.requests = {{12, 1}};
  replay.setup.requests = replay.requests;
  const StreamResult result = replay.run();
  constexpr double kRow = 8 * 2;
  // Chunks of 8 and 4 tokens; the state is written after both and read before the second.
  EXPECT_EQ(result.kinds[static_cast<int>(CallKind::kExtend)].bytes, 2 * 12 * kRow + 3 * 3 * kRow);
  EXPECT_EQ(result.kinds[static_cast<int>(CallKind::kDecode)].bytes, 2 * kRow + 2 * 3 * kRow);
}

TEST(Engine, traffic_of_drafts_counts_windows_and_that_of_a_commit_what_it_moves) {
  constexpr double kRow = 8 * 2;
  for (const bool chain : {true, false}) {
    SmallReplay replay({.chunk = 8,
                        .max_running = 1,
                        .tree = chain ? DraftTree({1, 1}) : DraftTree({2}),
                        .accept = 0},
                       {.channels = 8, .width = 4, .layers = 2});
    replay.requests = {{8, 1}};
    replay.setup.requests = replay.requests;
    const StreamResult result = replay.run();
    // Three rows, a state read, windows: 3 + 3 - 1 rows where they overlap.
    const double windows = chain ? 5 : 9;
    EXPECT_EQ(result.kinds[static_cast<int>(CallKind::kVerify)].bytes,
              2 * (2 * 3 + 3 + windows) * kRow);
    EXPECT_EQ(result.kinds[static_cast<int>(CallKind::kCommit)].bytes, 2 * 2 * 3 * kRow);
  }
}

TEST(Engine, traffic_of_snapshots_counts_their_states) {
  SmallReplay replay({.chunk = 8, .max_running = 1, .prefix_block = 3, .prefix_slots = 4},
                     {.channels = 8, .width = 4, .layers = 1});
  replay.requests = {{8, 0}, {8, 0, 0, 7}};
  replay.setup.requests = replay.requests;
  constexpr double kRow = 8 * 2;
  // 8 tokens with snapshots after 3 and 6 and a final state; then 2 tokens behind the second one.
  EXPECT_EQ(replay.run().kinds[static_cast<int>(CallKind::kExtend)].bytes,
            (2 * 8 + 3 * 3) * kRow + (2 * 2 + 2 * 3) * kRow);
}

TEST(Engine, schedules_that_take_turns_do_not_disturb_each_other) {
  const SmallReplay replay;
  const std::vector<StreamResult> results = replay.run_all();
  ASSERT_EQ(results.size(), capabilities().schedules.size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].schedule, capabilities().schedules[i].value);
    expect_verified(replay, replay.verify(results[i]));
  }
}

TEST(Engine, reports_progress_up_to_the_last_token) {
  const SmallReplay replay;
  std::int64_t last = 0;
  const Schedule schedules[] = {Schedule::kFlat, Schedule::kBlockList};
  (void)run_stream(replay.setup, schedules, {}, [&last](std::int64_t done) {
    EXPECT_GT(done, last);
    last = done;
  });
  EXPECT_EQ(last, outline_stream(replay.setup).tokens);
}

TEST(Engine, what_the_library_refuses_is_an_error_of_the_command) {
  const SmallReplay replay({.chunk = 24, .max_running = 4},
                           {.channels = 8, .width = capabilities().max_width + 1, .layers = 1});
  EXPECT_THROW((void)replay.run(), CommandError);
}

TEST(Engine, records_the_first_and_the_last_layer) {
  EXPECT_EQ(recorded_layers({.layers = 1}), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(recorded_layers({.layers = 2}), (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(recorded_layers({.layers = 9}), (std::vector<std::int64_t>{0, 8}));
}

class GpuEngine : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu_count() == 0) GTEST_SKIP() << "there is no GPU";
  }
};

TEST_F(GpuEngine, every_schedule_and_kind_of_call_gives_verified_results) {
  for (const SchedulerOptions& options : kStreams) {
    SmallReplay replay(options);
    replay.setup.backend = BackendId::kCuda;
    for (const StreamResult& result : replay.run_all()) {
      SCOPED_TRACE(name(result.schedule));
      expect_verified(replay, replay.verify(result));
    }
  }
}

// More layers than there are buffers for their inputs, and the least.
TEST_F(GpuEngine, any_number_of_layers_gives_verified_results) {
  for (const std::int64_t layers : {1, 2, 6, 7, 20}) {
    SCOPED_TRACE(layers);
    SmallReplay replay({.chunk = 24, .max_running = 4},
                       {.channels = 64, .width = 3, .layers = layers, .weight_dtype = DType::kF32});
    replay.setup.backend = BackendId::kCuda;
    expect_verified(replay, replay.verify(replay.run()));
  }
}

TEST_F(GpuEngine, takes_all_times_of_every_call) {
  for (const SchedulerOptions& options : kStreams) {
    SmallReplay replay(options);
    replay.setup.backend = BackendId::kCuda;
    for (const StreamResult& result : replay.run_all()) {
      SCOPED_TRACE(name(result.schedule));
      for (const KindMeasurement& measured : result.kinds) {
        EXPECT_EQ(std::ssize(measured.host_us), measured.calls);
        EXPECT_EQ(std::ssize(measured.lengths_us), measured.calls);
        EXPECT_EQ(std::ssize(measured.launch_us), measured.calls);
        EXPECT_EQ(std::ssize(measured.run_us), measured.calls * replay.setup.config.layers);
        EXPECT_EQ(std::ssize(measured.copy_us), measured.calls)
            << "few calls: each is sampled once";
        for (const double us : measured.run_us) EXPECT_GT(us, 0);
        for (const double us : measured.lengths_us) {
          EXPECT_TRUE(us == 0 || result.schedule != Schedule::kFlat);
        }
      }
      const KindMeasurement& extend = result.kinds[static_cast<int>(CallKind::kExtend)];
      for (const double us : extend.lengths_us) {
        EXPECT_EQ(us > 0, result.schedule != Schedule::kFlat);
      }
    }
  }
}

TEST(GpuEngineWithoutGpu, is_refused) {
  if (gpu_count() > 0) GTEST_SKIP() << "there is a GPU";
  SmallReplay replay;
  replay.setup.backend = BackendId::kCuda;
  try {
    (void)replay.run();
    FAIL();
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
  }
}

}  // namespace
}  // namespace shortconv::tools
