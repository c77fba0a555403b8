// Several threads that call at the same time; also the test of the thread sanitizer.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "robustness/batch.hpp"

namespace shortconv {
namespace {

constexpr int kCallers = 8, kCalls = 6;

// Runs body(caller) on all callers at once.
template <typename Body>
void at_once(const Body& body) {
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) callers.emplace_back([&body, i] { body(i); });
  for (std::thread& caller : callers) caller.join();
}

TEST(Callers, ShareAPlan) {
  for (const std::int32_t threads : {1, 3}) {
    Batch model(threads);
    Problem problem;
    Plan plan;
    ASSERT_TRUE(make_problem(model.args(), problem).ok());
    ASSERT_TRUE(make_plan(problem, plan).ok());
    at_once([&](int caller) {
      for (int i = 0; i < kCalls; ++i) {
        Batch batch(threads, caller + i), expected(1, caller + i);
        EXPECT_TRUE(forward(expected.args()).ok());
        EXPECT_TRUE(run(plan, pointers(batch.args())).ok());
        EXPECT_TRUE(batch.has_bits_of(expected));
      }
    });
  }
}

TEST(Callers, HavePlansOfTheirOwn) {
  at_once([&](int caller) {
    for (int i = 0; i < kCalls; ++i) {
      EXPECT_TRUE(Batch(1 + (caller + i) % 5, caller).is_right());
    }
  });
}

TEST(Callers, ReadOnePoolAndWriteSlotsOfTheirOwn) {
  std::vector<float> state((kCallers + 1) * 3 * Batch::kChannels, 1.0f);
  at_once([&](int caller) {
    Batch batch(3, caller);
    std::vector<std::int32_t> bounds{0, Batch::kTokens}, read{kCallers}, write{caller};
    ForwardArgs args = batch.args();
    args.sequences.query_start_loc = TensorRef::contiguous(bounds.data(), DType::kI32, {2});
    args.pool.state =
        TensorRef::contiguous(state.data(), DType::kF32, {kCallers + 1, 3, Batch::kChannels});
    args.pool.read_slots = TensorRef::contiguous(read.data(), DType::kI32, {1});
    args.pool.write_slots = TensorRef::contiguous(write.data(), DType::kI32, {1});
    for (int i = 0; i < kCalls; ++i) EXPECT_TRUE(forward(args).ok());
    const float* last = batch.x.data() + (Batch::kTokens - 3) * Batch::kChannels;
    const float* slot = state.data() + caller * 3 * Batch::kChannels;
    EXPECT_TRUE(std::equal(slot, slot + 3 * Batch::kChannels, last));
  });
}

TEST(Callers, CommitAtOnce) {
  constexpr std::int64_t kLayers = 4, kSequences = 8, kRows = 9, kChannels = 32;
  at_once([&](int caller) {
    for (int i = 0; i < kCalls; ++i) {
      const auto value = static_cast<float>(caller * kCalls + i);
      std::vector<float> windows(kLayers * kSequences * kRows * kChannels, value),
          pool(kLayers * kSequences * 3 * kChannels, -1.0f);
      std::vector<std::int32_t> accepted(kSequences, 2);
      CommitArgs args;
      args.intermediate_states = TensorRef::contiguous(windows.data(), DType::kF32,
                                                       {kLayers, kSequences, kRows, kChannels});
      args.state =
          TensorRef::contiguous(pool.data(), DType::kF32, {kLayers, kSequences, 3, kChannels});
      args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {kSequences});
      args.width = 4;
      args.rows_per_token = 3;
      args.threads = 3;
      EXPECT_TRUE(commit(args).ok());
      EXPECT_EQ(pool, std::vector<float>(pool.size(), value));
    }
  });
}

}  // namespace
}  // namespace shortconv
