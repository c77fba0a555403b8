// Index preparation on the emulated device.
#include <gtest/gtest.h>

#include <vector>

#include "../common/prepare_case.hpp"
#include "runtime.hpp"

namespace shortconv::test {
namespace {

/// After the call every tensor, guard bands included, has the expected bytes.
template <typename Case>
void expect_prepared(const Case& one) {
  std::vector<GuardedTensor> tensors = one.tensors(), expected = tensors;
  one.expect(expected);
  std::vector<void*> bases;
  for (GuardedTensor& tensor : tensors) bases.push_back(tensor.memory.data());
  const Status status = prepare(one.args(tensors, bases, emulated::kDevice));
  ASSERT_TRUE(status.ok()) << status.message();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_TRUE(tensors[i].memory == expected[i].memory) << "tensor " << i;
  }
}

TEST(Prepared, IndicesFollowTheRules) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    emulated::begin(seed);
    expect_prepared(SnapshotCase(seed));
    expect_prepared(TreeCase(seed));
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  int kernels = 0;
  for (const emulated::KernelUse& use : emulated::kernel_uses()) {
    if (use.name != "block_snapshots" && use.name != "tree_parents") continue;
    EXPECT_GE(use.launches, 40) << use.name;
    ++kernels;
  }
  EXPECT_EQ(kernels, 2);
}

}  // namespace
}  // namespace shortconv::test
