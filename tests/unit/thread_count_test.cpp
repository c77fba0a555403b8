#include "core/thread_count.hpp"

#include <gtest/gtest.h>

#include <climits>
#include <filesystem>
#include <fstream>

#include "core/thread_pool.hpp"

namespace shortconv {
namespace {

TEST(ThreadCount, OmpNumThreads) {
  const std::pair<const char*, int> cases[] = {{"1", 1},
                                               {"16", 16},
                                               {" 8 ", 8},
                                               {"4,2", 4},
                                               {"4 , 2", 4},
                                               {"", 0},
                                               {"0", 0},
                                               {"-3", 0},
                                               {"many", 0},
                                               {"8x", 0},
                                               {"2.5", 0},
                                               {",4", 0},
                                               {"+4", 0},
                                               {"0x10", 0},
                                               {"100000", 100000},
                                               {"99999999999999999999", INT_MAX},
                                               {"-99999999999999999999", 0}};
  for (const auto& [text, expected] : cases) EXPECT_EQ(parse_thread_count(text), expected) << text;
}

TEST(ThreadCount, IsAtLeastOneAndAtMostTheLimit) {
  EXPECT_GE(available_threads(), 1);
  EXPECT_LE(available_threads(), kMaxThreads);
}

class CpuQuota : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "shortconv-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root); }

  void write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = root + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root;
};

TEST_F(CpuQuota, IsRoundedUp) {
  for (const auto& [text, expected] :
       std::vector<std::pair<std::string, int>>{{"max 100000", 0},
                                                {"400000 100000", 4},
                                                {"250000 100000", 3},
                                                {"1000 100000", 1},
                                                {"9223372036854775807 1", INT_MAX},
                                                {"400000 0", 0},
                                                {"-1 100000", 0},
                                                {"", 0}}) {
    write("/cpu.max", text + "\n");
    EXPECT_EQ(cgroup_processors("0::/\n", root), expected) << text;
  }
}

TEST_F(CpuQuota, OfAnOuterGroupHolds) {
  write("/engine/cpu.max", "200000 100000\n");
  write("/engine/worker/cpu.max", "800000 100000\n");
  EXPECT_EQ(cgroup_processors("0::/engine/worker\n", root), 2);
  write("/engine/worker/cpu.max", "100000 100000\n");
  EXPECT_EQ(cgroup_processors("0::/engine/worker\n", root), 1);
  EXPECT_EQ(cgroup_processors("0::/engine\n", root), 2);
}

// A container often sees the path of its group on the host, but its own group as the root.
TEST_F(CpuQuota, OfARootThatLacksThePath) {
  write("/cpu.max", "300000 100000\n");
  EXPECT_EQ(cgroup_processors("0::/docker/0123abcd\n", root), 3);
}

TEST_F(CpuQuota, OfVersionOne) {
  const std::string groups = "5:devices:/\n4:cpu,cpuacct:/engine\n3:cpuset:/\n0::/other\n";
  EXPECT_EQ(cgroup_processors(groups, root), 0);
  write("/cpu/engine/cpu.cfs_quota_us", "150000\n");
  write("/cpu/engine/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_processors(groups, root), 2);
  write("/cpu/engine/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(cgroup_processors(groups, root), 0);
}

TEST_F(CpuQuota, OfTextThatIsNotAListOfGroups) {
  for (const char* groups : {"", "\n", "0", "0:", "0::", "no groups here\n", ":::\n"}) {
    EXPECT_EQ(cgroup_processors(groups, root), 0) << groups;
  }
}

}  // namespace
}  // namespace shortconv
