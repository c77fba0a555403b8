#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>

#include "common/random.hpp"
#include "replay/prefix_cache.hpp"

namespace shortconv::tools {
namespace {

using Prefix = PrefixCache::Prefix;

TEST(PrefixCache, finds_what_an_earlier_call_added) {
  PrefixCache cache(10, 2);
  cache.begin_call();
  EXPECT_EQ(cache.find({0, 16}), std::nullopt);
  EXPECT_EQ(cache.add({0, 16}), 10);
  EXPECT_EQ(cache.find({0, 16}), std::nullopt) << "it is written by this call";
  cache.begin_call();
  EXPECT_EQ(cache.find({0, 16}), 10);
  EXPECT_EQ(cache.find({0, 32}), std::nullopt);
  EXPECT_EQ(cache.find({1, 16}), std::nullopt);
}

TEST(PrefixCache, does_not_add_twice) {
  PrefixCache cache(0, 2);
  cache.begin_call();
  EXPECT_EQ(cache.add({0, 16}), 0);
  EXPECT_EQ(cache.add({0, 16}), std::nullopt);
  cache.begin_call();
  EXPECT_EQ(cache.add({0, 16}), std::nullopt);
  EXPECT_EQ(cache.add({0, 32}), 1);
}

TEST(PrefixCache, gives_up_what_was_not_used_for_longest) {
  PrefixCache cache(0, 2);
  cache.begin_call();
  EXPECT_EQ(cache.add({0, 16}), 0);
  EXPECT_EQ(cache.add({1, 16}), 1);
  cache.begin_call();
  EXPECT_EQ(cache.find({0, 16}), 0);
  cache.begin_call();
  EXPECT_EQ(cache.add({2, 16}), 1);
  cache.begin_call();
  EXPECT_EQ(cache.find({1, 16}), std::nullopt);
  EXPECT_EQ(cache.find({0, 16}), 0);
  EXPECT_EQ(cache.find({2, 16}), 1);
}

TEST(PrefixCache, gives_up_nothing_that_the_call_uses) {
  PrefixCache cache(0, 2);
  cache.begin_call();
  EXPECT_EQ(cache.add({0, 16}), 0);
  cache.begin_call();
  EXPECT_EQ(cache.find({0, 16}), 0);
  EXPECT_EQ(cache.add({1, 16}), 1);
  EXPECT_EQ(cache.add({2, 16}), std::nullopt) << "one slot is read, the other one is written";
  cache.begin_call();
  EXPECT_EQ(cache.add({2, 16}), 0);
}

TEST(PrefixCache, without_slots_there_is_nothing) {
  PrefixCache cache(0, 0);
  cache.begin_call();
  EXPECT_EQ(cache.add({0, 16}), std::nullopt);
  cache.begin_call();
  EXPECT_EQ(cache.find({0, 16}), std::nullopt);
}

// Beside a model of what lies in each slot.
TEST(PrefixCache, slots_hold_what_was_added_whatever_comes_in_between) {
  constexpr std::int64_t kSlots = 5;
  PrefixCache cache(3, kSlots);
  std::map<std::int32_t, Prefix> held;
  Random random(1);
  int found = 0, replaced = 0;
  for (int call = 0; call < 2000; ++call) {
    cache.begin_call();
    std::set<std::int32_t> read, written;
    const std::map<std::int32_t, Prefix> before = held;
    for (std::int64_t i = random.between(0, 8); i > 0; --i) {
      const Prefix prefix{random.between(0, 3), 16 * random.between(1, 3)};
      if (random.chance(0.5)) {
        const auto slot = cache.find(prefix);
        if (!slot) continue;
        ASSERT_EQ(before.at(*slot), prefix);
        ASSERT_FALSE(written.contains(*slot));
        read.insert(*slot);
        ++found;
      } else if (const auto slot = cache.add(prefix)) {
        ASSERT_GE(*slot, 3);
        ASSERT_LT(*slot, 3 + kSlots);
        ASSERT_FALSE(read.contains(*slot));
        ASSERT_TRUE(written.insert(*slot).second);
        replaced += held.contains(*slot) ? 1 : 0;
        held[*slot] = prefix;
      }
    }
  }
  EXPECT_GT(found, 500);
  EXPECT_GT(replaced, 500);
}

}  // namespace
}  // namespace shortconv::tools
