// shift_full_state on the GPU: decode with one shifted column, and random calls of the general
// kernel.
#include <utility>

#include "../common/shift_full_state_case.hpp"
#include "shared_memory.cuh"

namespace shortconv::gpu_tests {
namespace {

using GpuShiftFullState = GpuTest;

TEST_F(GpuShiftFullState, DecodesWithOneShiftedColumn) {
  std::uint32_t seed = 0;
  // With few channels, and with enough channels for 16 bytes per thread.
  for (const auto& [sequences, channels] : {std::pair{5, 520}, std::pair{65, 8192}}) {
    test::for_each_decode_with_one_shifted_column(
        sequences, channels, [&](const test::ShiftFullStateShape& shape) {
          SharedMemory shared(stream_);
          test::ShiftFullStateCase(shared.memory(), shape, seed++).check();
        });
  }
  EXPECT_GT(seed, 0u);
}

TEST_F(GpuShiftFullState, RandomCallsEqualThoseWithoutIt) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SharedMemory shared(stream_);
    test::ShiftFullStateCase(shared.memory(), test::ShiftFullStateCase::random_shape(seed), seed)
        .check();
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
  }
}

}  // namespace
}  // namespace shortconv::gpu_tests
