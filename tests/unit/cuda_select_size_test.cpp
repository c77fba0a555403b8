// Choices of the CUDA backend that depend on the size of a call.
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "cuda_problems.hpp"

namespace shortconv::cuda {
namespace {

TEST(CudaSelect, DecodesHaveWideThreadsWhereTheirBlocksFillTheirWaves) {
  const auto kernel = [](std::int64_t sequences, std::int64_t channels) {
    return kernel_of(decode_batch(channels, sequences));
  };
  for (const auto& [sequences, channels] :
       {std::pair{128, 8192}, {256, 8192}, {512, 8192}, {256, 4096}}) {
    EXPECT_EQ(kernel(sequences, channels), Kernel::kDecode) << sequences << " x " << channels;
  }
  for (const auto& [sequences, channels] :
       {std::pair{64, 8192}, {64, 12288}, {128, 5120}, {256, 5120}, {128, 12288}}) {
    EXPECT_EQ(kernel(sequences, channels), Kernel::kSmallDecode) << sequences << " x " << channels;
  }
}

TEST(CudaSelect, SmallDecodesFetchTheirStateEarly) {
  const auto early = [](const Problem& p) { return chosen(p).aligned.params.prefetch_state; };
  Problem decode = decode_batch(8192, 64);
  EXPECT_TRUE(early(decode));
  EXPECT_TRUE(early(decode_batch(12288, 64)));
  EXPECT_FALSE(early(decode_batch(8192, 128))) << "16 bytes of channels a thread";
  Problem older = decode;
  older.state_columns = older.width;
  older.base_column = older.shifted_columns = 1;
  EXPECT_FALSE(early(older)) << "takes longer than it saves";
  EXPECT_FALSE(early(decode_batch(8196, 8))) << "ends with half of a unit";
  EXPECT_TRUE(early(gated(decode)));
  EXPECT_FALSE(early(gated(decode_batch(8192, 65))));
  Problem offsets = decode;
  offsets.read_offsets.present = true;
  EXPECT_FALSE(early(offsets)) << "it is not known which columns";
  Problem elements = decode;
  elements.state.slot_stride += 1;
  EXPECT_FALSE(early(elements)) << "it has gaps";
}

TEST(CudaSelect, ShortSequencesTakeSmallTilesWhereTheirBlocksHaveFewWarps) {
  EXPECT_EQ(kernel_of(packed_batch(64 * 17, 3072, 64)), Kernel::kSmallTiles);
  EXPECT_EQ(kernel_of(packed_batch(64 * 17, 4096, 64)), Kernel::kShortSequences);
  EXPECT_EQ(kernel_of(packed_batch(64 * 4, 1024, 64)), Kernel::kShortSequences);
}

}  // namespace
}  // namespace shortconv::cuda
