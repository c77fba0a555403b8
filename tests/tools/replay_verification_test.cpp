#include <gtest/gtest.h>

#include <algorithm>
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
