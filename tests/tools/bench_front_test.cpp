// Fronts of layers in `shortconv bench`.
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bench/call_layout.hpp"
#include "bench/cpu_call.hpp"
#include "bench/front.hpp"
#include "bench/shapes.hpp"

namespace shortconv::tools::bench {
namespace {

const Shape& find(std::string_view name) {
  const auto found = std::ranges::find(shapes(), name, &Shape::name);
  if (found == shapes().end()) throw std::runtime_error("no shape " + std::string(name));
  return *found;
}

TEST(BenchShapes, FrontsHaveTheChannelsOfTheirModels) {
  EXPECT_EQ(find("front-8192").channels, 8192);
  EXPECT_EQ(find("front-8192").front->columns, 12288);
  EXPECT_EQ(find("flat-8192").front->columns, 12288);
  EXPECT_EQ(find("front-8192-tp4").channels, 2048);
  EXPECT_EQ(find("kda-8192").channels, 12288);
  EXPECT_EQ(find("mamba2-8192").channels, 10240);
  EXPECT_EQ(find("mamba2-8192").front->columns, 18560);
  EXPECT_EQ(find("front-decode-64").op, Op::kDecode);
}

TEST(CallLayout, FrontsCountTheirColumnsOnly) {
  const Front front = delta_front({.key_heads = 1, .value_heads = 2});
  Shape shape{.name = "small", .description = "", .lengths = {4, 4, 4}};
  shape.channels = front.convolved_channels();
  shape.front = front;
  const CallLayout layout(shape, {});
  EXPECT_EQ(shape.channels, 4 * 128);
  EXPECT_EQ(layout.x_elements(), 12 * 6 * 128);
  EXPECT_EQ(layout.out_elements(), 12 * 4 * 128);
  // Rows in and out, a and b, g and beta; states as of other calls.
  EXPECT_EQ(layout.moved_bytes(),
            2 * 12 * 4 * 128 * 2 + 12 * 2 * 2 * (2 + 4) + (3 + 1) * 3 * 4 * 128 * 2);
  CpuCall call(shape, {});
  call.prepare();
  EXPECT_NO_THROW(call.run());
}

}  // namespace
}  // namespace shortconv::tools::bench
