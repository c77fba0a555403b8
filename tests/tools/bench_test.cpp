#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "bench/call.hpp"
#include "bench/shapes.hpp"
#include "common/copy.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools::bench {
namespace {

const Shape& find(std::string_view name) {
  return *std::ranges::find(shapes(), name, &Shape::name);
}

TEST(BenchShapes, HaveTheSizesOfTheirNames) {
  std::set<std::string_view> names;
  for (const Shape& shape : shapes()) EXPECT_TRUE(names.insert(shape.name).second) << shape.name;
  EXPECT_EQ(find("skewed").tokens(), 8192);
  EXPECT_EQ(find("skewed").sequences(), 137);
  EXPECT_EQ(std::ranges::max(find("skewed").lengths), 4096);
  EXPECT_EQ(std::ranges::count_if(find("skewed").lengths,
                                  [](std::int64_t tokens) { return tokens >= 1 && tokens <= 60; }),
            136);
  EXPECT_EQ(find("mixed").tokens(), 8192);
  EXPECT_EQ(find("64x4").tokens(), 256);
}

TEST(BenchCall, CountsInputsOutputsAndStatesOnce) {
  const Shape shape{"small", "", 16, {4, 4, 4}};
  const Call call(shape, {});
  // 12 rows in and out; three states written, the one of the second sequence read.
  EXPECT_EQ(call.bytes(), (2 * 12 + (3 + 1) * 3) * 16 * 2);
}

TEST(BenchCall, RunsEveryShapeInSmallWithEverySchedule) {
  for (Shape shape : shapes()) {
    shape.channels = 24;
    for (const auto& [schedule, name] : capabilities().schedules) {
      CallOptions options;
      options.schedule = schedule;
      Call call(shape, options);
      call.prepare();
      EXPECT_NO_THROW(call.run()) << shape.name << " " << name;
    }
  }
}

TEST(ParallelCopy, CopiesAllBytesAndNoMore) {
  for (const std::size_t bytes : {0, 1, 63, 64, 65, 1000, 100001}) {
    for (const int threads : {0, 1, 2, 3, 8}) {
      std::vector<unsigned char> source(bytes + 1), target(bytes + 1, 0xee);
      for (std::size_t i = 0; i <= bytes; ++i) source[i] = static_cast<unsigned char>(i * 7 + 1);
      parallel_copy(target.data(), source.data(), bytes, threads);
      EXPECT_EQ(std::memcmp(target.data(), source.data(), bytes), 0);
      EXPECT_EQ(target[bytes], 0xee);
    }
  }
}

}  // namespace
}  // namespace shortconv::tools::bench
