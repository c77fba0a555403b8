#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/error.hpp"
#include "replay/drafts.hpp"

namespace shortconv::tools {
namespace {

using Rows = std::vector<std::int32_t>;

TEST(DraftTree, rows_are_numbered_level_by_level) {
  const DraftTree tree({2, 2});
  EXPECT_EQ(tree.rows(), 7);
  EXPECT_EQ(tree.levels(), 2);
  EXPECT_FALSE(tree.is_chain());
  EXPECT_EQ(tree.parents(), (Rows{-1, 0, 0, 1, 1, 2, 2}));
  EXPECT_EQ(DraftTree({3, 1, 2}).parents(), (Rows{-1, 0, 0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 6}));
}

TEST(DraftTree, one_draft_a_level_is_a_chain) {
  const DraftTree chain({1, 1, 1});
  EXPECT_EQ(chain.rows(), 4);
  EXPECT_TRUE(chain.is_chain());
  EXPECT_EQ(chain.parents(), (Rows{-1, 0, 1, 2}));
  EXPECT_EQ(chain.shape(), "1,1,1");
}

TEST(DraftTree, without_levels_there_are_no_rows) {
  EXPECT_TRUE(DraftTree().empty());
  EXPECT_EQ(DraftTree().rows(), 0);
  EXPECT_TRUE(DraftTree().parents().empty());
}

TEST(DraftTree, certain_and_impossible_acceptance_are_exact) {
  const DraftTree chain({1, 1, 1});
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    EXPECT_EQ(chain.accepted_rows(0, 9, seed), (Rows{0}));
    EXPECT_EQ(chain.accepted_rows(1, 9, seed), (Rows{0, 1, 2, 3}));
    EXPECT_EQ(chain.accepted_rows(1, 2, seed), (Rows{0, 1})) << "the request ends there";
    EXPECT_EQ(DraftTree({2, 2}).accepted_rows(1, 1, seed), (Rows{0}));
  }
}

TEST(DraftTree, accepted_rows_are_a_line_of_descent) {
  const DraftTree tree({3, 1, 2});
  const Rows parents = tree.parents();
  std::vector<int> reached(parents.size(), 0);
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    const Rows rows = tree.accepted_rows(0.7, 9, seed);
    ASSERT_EQ(rows.front(), 0);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_TRUE(i == 0 || parents[rows[i]] == rows[i - 1]);
      ++reached[rows[i]];
    }
  }
  // 0.7 of all get to one of 3 rows, 0.49 to the row behind, 0.343 to one of 2 behind that.
  for (int row = 1; row <= 3; ++row) EXPECT_NEAR(reached[row], 2000 * 0.7 / 3, 80);
  for (int row = 4; row <= 6; ++row) EXPECT_NEAR(reached[row], 2000 * 0.49 / 3, 70);
  for (int row = 7; row <= 12; ++row) EXPECT_NEAR(reached[row], 2000 * 0.343 / 6, 50);
}

TEST(DraftTree, is_read_from_its_shape) {
  EXPECT_EQ(parse_draft_tree("--tree", "2,2").shape(), "2,2");
  EXPECT_EQ(parse_draft_tree("--tree", "1").rows(), 2);
  EXPECT_EQ(parse_draft_tree("--tree", "1023").rows(), 1024);
  for (const char* wrong : {"", ",", "2,", ",2", "2,,2", "0", "2,0", "-1", "2 2", "two", "1024",
                            "2,2,2,2,2,2,2,2,2,2", "99999999999999999999", "4611686018427387904"}) {
    SCOPED_TRACE(wrong);
    try {
      (void)parse_draft_tree("--tree", wrong);
      ADD_FAILURE() << "accepted";
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      EXPECT_TRUE(std::string(error.what()).starts_with("--tree: '" + std::string(wrong) + "'"))
          << error.what();
    }
  }
}

}  // namespace
}  // namespace shortconv::tools
