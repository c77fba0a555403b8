#include "core/thread_pool.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace shortconv {
namespace {

TEST(ThreadPool, TakesEachItemOnce) {
  for (const int threads : {-1, 0, 1, 2, 5, 1 << 30}) {
    for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> taken(static_cast<std::size_t>(count));
      for_each_item(threads, count, [&](std::int64_t item) { ++taken[item]; });
      for (const auto& times : taken) EXPECT_EQ(times, 1);
    }
  }
}

// Each of three threads takes one item and waits for the other two.
TEST(ThreadPool, ItemsRunAtTheSameTime) {
  std::atomic<int> present{0};
  for_each_item(3, 3, [&](std::int64_t) {
    ++present;
    while (present < 3) std::this_thread::yield();
  });
  EXPECT_EQ(present, 3);
}

// The first item of each call waits for that of the other.
TEST(ThreadPool, CallsOfTwoThreadsRunAtTheSameTime) {
  std::atomic<int> present{0};
  const auto call = [&] {
    for_each_item(2, 1 << 16, [&](std::int64_t item) {
      if (item > 0) return;
      ++present;
      while (present < 2) std::this_thread::yield();
    });
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(present, 2);
}

TEST(ThreadPool, CallOnAThreadThatEndsLater) {
  for (int i = 0; i < 50; ++i) {
    std::atomic<std::int64_t> sum{0};
    std::thread([&] { for_each_item(4, 100, [&](std::int64_t item) { sum += item; }); }).join();
    EXPECT_EQ(sum, 4950);
  }
}

}  // namespace
}  // namespace shortconv
