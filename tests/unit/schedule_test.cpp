#include "shortconv/schedule.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "shortconv/shortconv.h"

namespace shortconv {
namespace {

using Ints = std::vector<std::int32_t>;
using Lengths = std::vector<std::int64_t>;

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

// The worked example of SGLang PR 10552.
const Lengths kExample = {1, 9, 2, 17, 4};

BlockList list_of(const Lengths& lengths, int block_tokens = kBlockTokens) {
  BlockList list;
  const Status status = plan_block_list(lengths, list, block_tokens);
  EXPECT_TRUE(status.ok()) << status.message();
  return list;
}

std::string refusal_of(const Lengths& lengths, int block_tokens = kBlockTokens) {
  BlockList list;
  const Status status = plan_block_list(lengths, list, block_tokens);
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(list.sequence.empty());
  return status.message();
}

TEST(Schedule, BlockListOfTheWorkedExample) {
  const BlockList list = list_of(kExample);
  EXPECT_EQ(list.sequence, (Ints{0, 1, 1, 2, 3, 3, 3, 4}));
  EXPECT_EQ(list.offset, (Ints{0, 0, 1, 0, 0, 1, 2, 0}));
}

TEST(Schedule, SequencesWithoutTokensHaveNoBlocks) {
  const BlockList list = list_of({0, 8, 0, 9, 0});
  EXPECT_EQ(list.sequence, (Ints{1, 3, 3}));
  EXPECT_EQ(list.offset, (Ints{0, 0, 1}));
  EXPECT_TRUE(list_of({}).sequence.empty());
}

// One long sequence among short ones.
TEST(Schedule, SkewedBatchHasTheBlocksOfItsTokens) {
  Lengths lengths(136, 30);
  lengths.push_back(4096);
  EXPECT_EQ(list_of(lengths).sequence.size(), 136u * 4 + 512);
}

TEST(Schedule, OtherBlockSizes) {
  EXPECT_EQ(list_of(kExample, 16).sequence, (Ints{0, 1, 2, 3, 3, 4}));
}

TEST(Schedule, LengthsThatAreNoLengthsAreRefused) {
  EXPECT_EQ(refusal_of({4, -1}),
            "lengths: entry 1 is -1; expected 0 to 17179869176 (2^31 - 1 blocks)");
  EXPECT_NE(refusal_of({kLargest}).find("lengths: entry 0 is 9223372036854775807"),
            std::string::npos);
  // Their blocks together would wrap.
  EXPECT_NE(refusal_of(Lengths(9, kLargest), 1).find("lengths: entry 0"), std::string::npos);
  EXPECT_EQ(refusal_of(kExample, 0), "block_tokens: is 0; expected 1 or more");
  EXPECT_EQ(refusal_of(kExample, -8), "block_tokens: is -8; expected 1 or more");
}

// 2^40 blocks: counting them takes no memory, so the answer is there at once.
TEST(Schedule, CAbiCountsBlocksWithoutMakingAList) {
  const Lengths lengths(512, std::int64_t{1} << 34 >> 1);
  std::int64_t count = -1;
  EXPECT_EQ(shortconv_plan_block_list(lengths.data(), 512, nullptr, nullptr, 0, &count),
            SHORTCONV_INVALID_ARGUMENT);
  EXPECT_EQ(count, std::int64_t{512} << 30);
  EXPECT_STREQ(shortconv_last_error(), "capacity: is 0, but the lengths need 549755813888 entries");
}

}  // namespace
}  // namespace shortconv
