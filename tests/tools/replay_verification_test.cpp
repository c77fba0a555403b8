#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/error.hpp"
#include "core/element.hpp"
#include "replay/verification.hpp"
#include "replay_fixture.hpp"

namespace shortconv::tools {
namespace {

// Request 2 of the small replay, its last layer: 63 tokens of 40 channels in bf16.
constexpr std::int64_t kRecording = 2 * 2 + 1;
constexpr std::int64_t kChannels = 40;

std::byte* output_at(StreamResult& result, std::int64_t token, std::int64_t channel) {
  return result.recordings[kRecording].outputs.data() + (token * kChannels + channel) * 2;
}

TEST(Verification, notices_a_single_wrong_bit_of_an_output) {
  const SmallReplay replay;
  StreamResult result = replay.run();
  *output_at(result, 41, 13) ^= std::byte{1};
  const Verification verification = replay.verify(result);
  EXPECT_EQ(verification.differing_values, 1);
  EXPECT_EQ(verification.differing_states, 0);
  EXPECT_TRUE(
      verification.first_failure.starts_with("request 2, layer 2, token 41, channel 13: is "))
      << verification.first_failure;
}

TEST(Verification, notices_an_output_that_is_too_far_from_fp64) {
  const SmallReplay replay;
  StreamResult result = replay.run();
  std::byte* output = output_at(result, 62, 39);
  store_element(DType::kBF16, output, load_element(DType::kBF16, output) * 1.05 + 0.01);
  const Verification verification = replay.verify(result);
  EXPECT_EQ(verification.inaccurate_values, 1);
  EXPECT_EQ(verification.differing_values, 1);
  EXPECT_EQ(verification.failures(), 2);
}

TEST(Verification, notices_a_single_wrong_bit_of_a_final_state) {
  const SmallReplay replay;
  for (std::int64_t column = 0; column < 3; ++column) {
    StreamResult result = replay.run();
    result.recordings[kRecording].final_state.data()[column * kChannels * 2] ^= std::byte{1};
    const Verification verification = replay.verify(result);
    EXPECT_EQ(verification.differing_states, 1);
    EXPECT_EQ(verification.differing_values, 0);
    EXPECT_EQ(verification.first_failure, "request 2, layer 2: column " + std::to_string(column) +
                                              " of the final state is not input " +
                                              std::to_string(60 + column));
  }
}

TEST(Verification, notices_rows_of_another_request) {
  const SmallReplay replay;
  StreamResult result = replay.run();
  std::swap(result.recordings[2].outputs, result.recordings[kRecording - 1].outputs);
  result.recordings.erase(result.recordings.begin(), result.recordings.begin() + 2);
  result.recordings.resize(1);
  EXPECT_GT(replay.verify(result).differing_values, 0);
}

// A wrong call, and how often it was made.
struct Defect {
  const char* name;
  std::function<bool(Call&)> make;
};

void expect_noticed(const SmallReplay& replay, const std::vector<Defect>& defects) {
  EXPECT_EQ(replay.verify(replay.run_changed([](Call&) {})).failures(), 0);
  for (const Defect& defect : defects) {
    SCOPED_TRACE(defect.name);
    int made = 0;
    const StreamResult result =
        replay.run_changed([&](Call& call) { made += made == 0 && defect.make(call) ? 1 : 0; });
    EXPECT_EQ(made, 1);
    EXPECT_GT(replay.verify(result).failures(), 0);
  }
}

// The first segment of the calls of one kind that has what `change` looks for.
Defect segment_defect(const char* name, CallKind kind,
                      const std::function<bool(Segment&)>& change) {
  return {name, [=](Call& call) {
            return call.kind == kind && std::ranges::any_of(call.segments, change);
          }};
}

TEST(Verification, notices_a_single_wrong_step_of_speculative_decoding) {
  const auto goes_on = [](const Segment& segment) { return segment.accepted.size() >= 2; };
  const std::vector<Defect> defects = {
      segment_defect("the commit takes the window one row too early", CallKind::kCommit,
                     [&](Segment& segment) {
                       if (!goes_on(segment)) return false;
                       segment.accepted.pop_back();
                       return true;
                     }),
      segment_defect("the commit takes the window of a rejected draft", CallKind::kCommit,
                     [](Segment& segment) {
                       if (segment.accepted.size() != 1) return false;
                       segment.accepted.back() = 1;
                       return true;
                     }),
      segment_defect("the commit goes to a slot of another request", CallKind::kCommit,
                     [](Segment& segment) {
                       segment.read_slot = segment.read_slot == 0 ? 1 : 0;
                       return true;
                     }),
      segment_defect("the drafts begin from another slot", CallKind::kVerify,
                     [](Segment& segment) {
                       segment.read_slot = segment.read_slot == 0 ? 1 : 0;
                       return true;
                     }),
      segment_defect("a rejected draft is taken for an accepted one", CallKind::kVerify,
                     [&](Segment& segment) {
                       const auto last = static_cast<std::int32_t>(segment.count) - 1;
                       if (!goes_on(segment) || segment.accepted.back() == last) return false;
                       segment.accepted.back() = last;
                       return true;
                     }),
      {"two requests commit each other's windows",
       [](Call& call) {
         if (call.kind != CallKind::kCommit || call.segments.size() < 2) return false;
         std::swap(call.segments[0].read_slot, call.segments[1].read_slot);
         return true;
       }},
  };
  for (const DraftTree& tree : {DraftTree({1, 1, 1, 1}), DraftTree({2, 2})}) {
    SCOPED_TRACE(tree.shape());
    expect_noticed(SmallReplay({.chunk = 24, .max_running = 4, .tree = tree}), defects);
  }
}

TEST(Verification, notices_a_single_wrong_step_of_prefix_caching) {
  const SmallReplay replay({.chunk = 24, .max_running = 4, .prefix_block = 4, .prefix_slots = 60});
  // The first snapshot that a request begins from: its slot, and the call that took it.
  std::map<std::int32_t, int> taken;
  std::pair<int, std::int32_t> needed{-1, -1};
  int number = 0;
  (void)replay.run_changed([&](Call& call) {
    for (const Segment& segment : call.segments) {
      if (segment.begins_from_snapshot() && needed.first < 0) {
        needed = {taken.at(segment.read_slot), segment.read_slot};
      }
    }
    for (const Segment& segment : call.segments) {
      for (const Segment::Snapshot& snapshot : segment.snapshots) taken[snapshot.slot] = number;
    }
    ++number;
  });
  ASSERT_GE(needed.first, 0);
  const auto snapshot_defect = [needed](const char* name, auto change) {
    return Defect{name, [=, number = 0](Call& call) mutable {
                    if (number++ != needed.first) return false;
                    return std::ranges::any_of(call.segments, [&](Segment& segment) {
                      const auto found = std::ranges::find(segment.snapshots, needed.second,
                                                           &Segment::Snapshot::slot);
                      if (found == segment.snapshots.end()) return false;
                      change(segment, found);
                      return true;
                    });
                  }};
  };
  expect_noticed(
      replay,
      {snapshot_defect("a snapshot is not taken",
                       [](Segment& segment, auto found) { segment.snapshots.erase(found); }),
       snapshot_defect("a snapshot goes to another slot",
                       [](Segment&, auto found) { ++found->slot; }),
       segment_defect("a request begins from another snapshot", CallKind::kExtend,
                      [](Segment& segment) {
                        if (!segment.begins_from_snapshot()) return false;
                        ++segment.read_slot;
                        return true;
                      }),
       segment_defect("a request begins from zeros", CallKind::kExtend, [](Segment& segment) {
         if (!segment.begins_from_snapshot()) return false;
         segment.resumed = false;
         return true;
       })});
}

TEST(Verification, a_failure_of_any_sort_ends_the_command_with_its_own_code) {
  require_success({.requests = 4, .values = 9, .correctly_rounded = 8});
  const Verification failed[] = {{.differing_values = 1, .first_failure = "here"},
                                 {.differing_states = 1, .first_failure = "here"},
                                 {.inaccurate_values = 1, .first_failure = "here"}};
  for (const Verification& verification : failed) {
    try {
      require_success(verification);
      FAIL();
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitFailed);
      EXPECT_STREQ(error.what(), "replay: 1 failures, first: here");
    }
  }
}

TEST(Verification, counts_correctly_rounded_values) {
  const SmallReplay replay;
  const Verification verification = replay.verify(replay.run());
  EXPECT_GT(verification.correctly_rounded_share(), 0.98);
  EXPECT_LE(verification.correctly_rounded, verification.values);
  EXPECT_EQ(verification.values, verification.rows * kChannels);
}

TEST(Verification, adds_up_over_runs) {
  const SmallReplay replay;
  const StreamResult result = replay.run();
  Verification verification;
  for (int i = 0; i < 2; ++i) {
    verify_recordings(replay.setup, result.recordings, [](std::int64_t) {}, verification);
  }
  EXPECT_EQ(verification.runs, 2);
  EXPECT_EQ(verification.requests, std::ssize(replay.requests));
  EXPECT_EQ(verification.rows, 2 * replay.verify(result).rows);
}

using Chosen = std::vector<std::int64_t>;

std::vector<Request> hundred_requests() {
  std::vector<Request> requests;
  for (std::int64_t i = 0; i < 100; ++i) requests.push_back({10 + (i * 37) % 100, 0});
  return requests;
}

TEST(ChooseRequests, includes_the_longest_and_the_shortest) {
  const std::vector<Request> requests = hundred_requests();
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Chosen chosen = choose_requests(requests, 8, seed, 1, 1'000'000);
    EXPECT_EQ(chosen.size(), 8u);
    EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
    EXPECT_EQ(std::adjacent_find(chosen.begin(), chosen.end()), chosen.end());
    std::vector<std::int64_t> lengths;
    for (const std::int64_t request : chosen) lengths.push_back(requests[request].tokens());
    EXPECT_EQ(std::count(lengths.begin(), lengths.end(), 10), 1);
    EXPECT_EQ(std::count(lengths.begin(), lengths.end(), 109), 1);
  }
}

TEST(ChooseRequests, the_seed_decides_the_rest) {
  const std::vector<Request> requests = hundred_requests();
  EXPECT_EQ(choose_requests(requests, 8, 1, 1, 1'000'000),
            choose_requests(requests, 8, 1, 1, 1'000'000));
  EXPECT_NE(choose_requests(requests, 8, 1, 1, 1'000'000),
            choose_requests(requests, 8, 2, 1, 1'000'000));
}

TEST(ChooseRequests, memory_limits_all_but_the_longest_and_the_shortest) {
  const std::vector<Request> requests = hundred_requests();
  EXPECT_EQ(choose_requests(requests, 8, 1, 1, 0).size(), 2u);
  const Chosen chosen = choose_requests(requests, 100, 1, 2, 1000);
  EXPECT_GT(chosen.size(), 2u);
  std::int64_t bytes = 0;
  for (const std::int64_t request : chosen) bytes += 2 * requests[request].tokens();
  EXPECT_LE(bytes, 1000);
}

TEST(ChooseRequests, few_requests_are_all_chosen) {
  EXPECT_EQ(choose_requests(std::vector<Request>{{5, 0}}, 8, 1, 1, 100), (Chosen{0}));
  EXPECT_EQ(choose_requests(std::vector<Request>{{5, 0}, {5, 0}, {5, 0}}, 8, 1, 1, 100),
            (Chosen{0, 1, 2}));
  EXPECT_EQ(choose_requests(hundred_requests(), 100, 1, 1, 1'000'000).size(), 100u);
  EXPECT_TRUE(choose_requests(hundred_requests(), 0, 1, 1, 1'000'000).empty());
  EXPECT_TRUE(choose_requests({}, 8, 1, 1, 1'000'000).empty());
}

}  // namespace
}  // namespace shortconv::tools
