// Calls from threads with small stacks: musl gives 128 KiB, coroutines and some engines less.
#include <gtest/gtest.h>
#include <pthread.h>

#include <numeric>
#include <string>
#include <vector>

#include "robustness/batch.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kStackBytes = 128 << 10;  // frames are larger
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

// Runs body() on a thread with such a stack; the message of its status.
template <typename Body>
std::string on_small_stack(const Body& body) {
  struct Context {
    const Body& body;
    std::string message;
  } context{body, {}};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  EXPECT_EQ(pthread_attr_setstacksize(&attributes, kStackBytes), 0);
  pthread_t thread;
  const auto work = [](void* at) -> void* {
    auto& call = *static_cast<Context*>(at);
    const Status status = call.body();
    if (!status.ok()) call.message = status.message();
    return nullptr;
  };
  EXPECT_EQ(pthread_create(&thread, &attributes, work, &context), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  return context.message;
}

class SmallStack : public testing::TestWithParam<int> {
 protected:
  Batch batch{GetParam()};

  void expect_runs(const ForwardArgs& args) {
    EXPECT_EQ(on_small_stack([&] { return forward(args); }), "");
  }
};

TEST_P(SmallStack, RowsOfTokens) {
  Batch expected = batch;
  expected.threads = 1;
  ASSERT_TRUE(forward(expected.args()).ok());
  expect_runs(batch.args());
  EXPECT_TRUE(batch.has_bits_of(expected));
}

TEST_P(SmallStack, InPlace) {
  ForwardArgs args = batch.args();
  args.out = args.x;
  expect_runs(args);
}

TEST_P(SmallStack, ChannelsFirst) {
  ForwardArgs args = batch.args();
  for (TensorRef* rows : {&args.x, &args.out}) {
    rows->strides[0] = 1;
    rows->strides[1] = Batch::kTokens;
  }
  expect_runs(args);
}

TEST_P(SmallStack, WidestAndDilated) {
  std::vector<float> state(Batch::kSequences * 63 * Batch::kChannels),
      weight(Batch::kChannels * 64, 0.5f);
  for (const std::int64_t width : {64, 8}) {
    ForwardArgs args = batch.args();
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {Batch::kChannels, width});
    args.dilation = width == 8 ? 9 : 1;
    args.pool.state =
        TensorRef::contiguous(state.data(), DType::kF32, {Batch::kSequences, 63, Batch::kChannels});
    expect_runs(args);
  }
}

TEST_P(SmallStack, TreesOfDrafts) {
  std::vector<std::int32_t> parents(Batch::kTokens);
  for (std::size_t i = 0; i < parents.size(); ++i) parents[i] = static_cast<int>(i % 3) - 1;
  std::vector<float> windows(Batch::kTokens * 3 * Batch::kChannels);
  ForwardArgs args = batch.args();
  args.op = Op::kVerify;
  args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {Batch::kTokens});
  args.drafts.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kF32, {Batch::kTokens, 3, Batch::kChannels});
  expect_runs(args);
}

TEST_P(SmallStack, CheckedMode) {
  std::vector<std::int64_t> violations(2 * kViolations, -1);
  ForwardArgs args = batch.args();
  args.options.violations = TensorRef::contiguous(violations.data(), DType::kI64, {kViolations, 2});
  expect_runs(args);
  EXPECT_EQ(violations[0], 0);
}

TEST_P(SmallStack, RefusalWithItsMessage) {
  ForwardArgs args = batch.args();
  args.weight.shape[0] = 7;
  EXPECT_NE(on_small_stack([&] { return forward(args); }), "");
}

TEST_P(SmallStack, Commit) {
  constexpr std::int64_t kLayers = 3, kRows = 5;
  std::vector<float> windows(kLayers * Batch::kSequences * kRows * 3 * Batch::kChannels, 2.0f),
      pool(kLayers * Batch::kSequences * 3 * Batch::kChannels, 1.0f);
  std::vector<std::int32_t> accepted(Batch::kSequences, 1);
  CommitArgs args;
  args.intermediate_states = TensorRef::contiguous(
      windows.data(), DType::kF32, {kLayers, Batch::kSequences, kRows * 3, Batch::kChannels});
  args.state = TensorRef::contiguous(pool.data(), DType::kF32,
                                     {kLayers, Batch::kSequences, 3, Batch::kChannels});
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {Batch::kSequences});
  args.width = 4;
  args.rows_per_token = 3;
  args.threads = GetParam();
  EXPECT_EQ(on_small_stack([&] { return commit(args); }), "");
  EXPECT_EQ(pool, std::vector<float>(pool.size(), 2.0f));
}

INSTANTIATE_TEST_SUITE_P(Threads, SmallStack, testing::Values(1, 4));

}  // namespace
}  // namespace shortconv
