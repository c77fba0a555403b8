// Columns before the history that move along, on the GPU: decode with one of them, and random calls
// of the general kernel.
#include <utility>

#include "../common/older_case.hpp"
#include "shared_memory.cuh"

namespace shortconv::gpu_tests {
namespace {

using GpuOlder = GpuTest;

TEST_F(GpuOlder, DecodesOfOneOlderColumn) {
  std::uint32_t seed = 0;
  // Of few channels, and of so many that a thread takes 16 bytes of them.
  for (const auto& [sequences, channels] : {std::pair{5, 520}, std::pair{65, 8192}}) {
    test::for_each_decode_of_one_older_column(
        sequences, channels, [&](const test::OlderShape& shape) {
          SharedMemory shared(stream_);
          test::OlderCase(shared.memory(), shape, seed++).check();
        });
  }
  EXPECT_GT(seed, 0u);
}

TEST_F(GpuOlder, RandomCallsAreThoseWithoutIt) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SharedMemory shared(stream_);
    test::OlderCase(shared.memory(), test::OlderCase::random_shape(seed), seed).check();
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
  }
}

}  // namespace
}  // namespace shortconv::gpu_tests
