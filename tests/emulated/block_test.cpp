// The emulated device itself: it must report the errors it exists for.
#include "block.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "cuda/device/memory.cuh"
#include "device.hpp"

namespace shortconv::emulated {
namespace {

std::string failure_of(int threads, const std::function<void()>& body) {
  tools::Random random(1);
  return run_block(threads, random, body).value_or("");
}

void expect_failure(std::string_view expected, const std::function<void()>& body) {
  const std::string failure = failure_of(32, body);
  EXPECT_NE(failure.find(expected), std::string::npos) << failure;
  // The next block runs after a failed one.
  EXPECT_EQ(failure_of(64, [] { (void)__ballot_sync(~0u, true); }), "");
}

TEST(Block, ThreadsRunOnceEach) {
  std::vector<int> runs(128);
  EXPECT_EQ(failure_of(128, [&] { ++runs[threadIdx.x]; }), "");
  EXPECT_EQ(runs, std::vector<int>(128, 1));
}

TEST(Block, WarpOperationsExchangeValues) {
  std::vector<int> right(64);
  const auto body = [&] {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool ballot =
        __ballot_sync(~0u, lane % 3 == warp) == (warp == 0 ? 0x49249249u : 0x92492492u);
    const bool some = __any_sync(~0u, lane == 7 && warp == 1) == static_cast<int>(warp);
    const bool all = __reduce_or_sync(~0u, 1u << lane) == ~0u;
    if (lane >= 20) return;
    const bool shuffled =
        __shfl_sync(0xfffffu, static_cast<int>(threadIdx.x), 5) == static_cast<int>(32 * warp + 5);
    right[threadIdx.x] = ballot && some && all && shuffled ? 1 : 0;
  };
  EXPECT_EQ(failure_of(64, body), "");
  EXPECT_EQ(std::accumulate(right.begin(), right.end(), 0), 40);
}

TEST(Block, ThreadsWaitForEachOther) {
  std::vector<int> before(256);
  int late = 0;
  const auto body = [&] {
    if (threadIdx.x / 32 == 3) __syncwarp();  // only one of the warps
    before[threadIdx.x] = 1;
    __syncthreads();
    late += 256 - std::accumulate(before.begin(), before.end(), 0);
  };
  EXPECT_EQ(failure_of(256, body), "");
  EXPECT_EQ(late, 0);
}

TEST(Block, WordsMustBeAligned) {
  alignas(16) static std::uint32_t memory[8];
  std::uint32_t four[4], two[2], one[1];
  expect_failure("16 bytes is not aligned", [&] { cuda::load_words(memory + 2, four); });
  expect_failure("8 bytes is not aligned", [&] { cuda::store_words(memory + 1, two); });
  expect_failure("4 bytes is not aligned",
                 [&] { cuda::load_words(reinterpret_cast<const char*>(memory) + 2, one); });
}

TEST(Block, MemoryIsNotAccessedBeforeThePreviousKernelIsDone) {
  alignas(16) static std::uint32_t memory[4];
  std::uint32_t word[1], index = 0;
  const auto before_the_wait = [&](const std::function<void()>& access) {
    pdl_waited = false;
    EXPECT_NE(failure_of(32, access).find("before the previous kernel is done"), std::string::npos);
    pdl_waited = false;
    EXPECT_EQ(failure_of(32,
                         [&] {
                           cuda::pdl_wait();
                           access();
                         }),
              "");
  };
  before_the_wait([&] { cuda::load_words(memory, word); });
  before_the_wait([&] { cuda::store_words(memory, word); });
  before_the_wait([&] { cuda::load_word_if(true, memory, index); });
  before_the_wait([&] { cuda::load_byte_if(true, memory, index); });
}

TEST(Block, LanesMustNotDiverge) {
  expect_failure("lanes of a warp are at", [] {
    if (threadIdx.x < 16) {
      (void)__ballot_sync(0xffffu, true);
    } else {
      (void)__ballot_sync(0xffff0000u, true);
    }
  });
  expect_failure("lanes of a warp are at", [] {
    if (threadIdx.x == 0) __syncthreads();
    __syncwarp();
  });
  expect_failure("different masks", [] { __syncwarp(~0u << (threadIdx.x % 2)); });
  expect_failure("lacks active lanes", [] { __syncwarp(0x7fffffffu); });
  expect_failure("that has ended", [] {
    if (threadIdx.x == 9) return;
    (void)__shfl_sync(~0u, 1, 9);
  });
}

TEST(Block, ThreadsWaitInOnePlace) {
  const std::string failure = failure_of(64, [] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  });
  EXPECT_NE(failure.find("wait for their block at"), std::string::npos) << failure;
}

}  // namespace
}  // namespace shortconv::emulated
