// Launch geometry as the kernels receive it. Plain C++, passed by value.
#pragma once

#include <cstdint>

#include "core/device.hpp"

namespace shortconv::cuda {

/// Division of numbers below 2^31 by a number known at plan time: a multiplication and a shift.
class FastDivisor {
 public:
  FastDivisor() = default;
  explicit constexpr FastDivisor(std::uint32_t divisor) : divisor_(divisor) {
    // multiplier = ceil(2^(32 + shift) / divisor) with shift = ceil(log2 divisor) - 1 fits 32 bits
    // and is exact below 2^31.
    while ((std::uint64_t{1} << (shift_ + 1)) < divisor) ++shift_;
    multiplier_ =
        static_cast<std::uint32_t>(((std::uint64_t{1} << (32 + shift_)) + divisor - 1) / divisor);
  }

  SHORTCONV_HOST_DEVICE constexpr std::uint32_t divide(std::uint32_t value) const {
    return divisor_ == 1 ? value : divide_above_1(value);
  }
  /// As divide, for divisors above 1.
  SHORTCONV_HOST_DEVICE constexpr std::uint32_t divide_above_1(std::uint32_t value) const {
    return static_cast<std::uint32_t>((std::uint64_t{value} * multiplier_) >> 32) >> shift_;
  }
  SHORTCONV_HOST_DEVICE constexpr std::uint32_t divisor() const { return divisor_; }

 private:
  std::uint32_t divisor_ = 1;
  std::uint32_t multiplier_ = 0;
  std::uint32_t shift_ = 0;
};

/// The columns of the heads in a row, see HeadMap in groups.hpp.
struct HeadColumns {
  FastDivisor block_heads;  // above 1
  std::int32_t column = 0, head_stride = 0, block_stride = 0;
};

/// What an instance of a kernel supports besides a plain call. Code for rare features slows down
/// every call, so separate instances have it.
enum class Variant : std::uint8_t {
  kBase,
  kCircular,        // states that are circular buffers
  kShiftFullState,  // one column before the history that shifts with it
  kGated,           // input and output gates
  kExtended,        // the others, except gates and groups
  kGroups,          // groups of channels
};

/// Programmatic dependent launch, device/pdl.cuh.
enum class PdlMode : std::uint8_t {
  kOff,
  kWait,           // may start while the kernel before it ends, and waits for it
  kWaitAndLaunch,  // and lets the next kernel start while its last blocks run
};

/// How a thread reads and writes the columns of a state for its group of channels.
enum class StateAccess : std::uint8_t {
  kChannelVectors,  // channels adjacent: one aligned vector for each column
  kWindowVectors,   // columns adjacent, no gaps: one run of aligned vectors
  kElements,        // element by element
};

/// How block numbers become work.
struct LaunchParams {
  FastDivisor channel_blocks;  // block = unit * channel_blocks + channel block
  FastDivisor sequence_tiles;  // dense batches: tiles of one sequence
  // Units that are tiles. Further units fill rows outside of sequences or, in the general kernels,
  // write the snapshots that lie in x.
  std::uint32_t tiles = 0;
  // General kernels. Schedule flat: packed rows of a unit, or sequences of one token. Verify:
  // tokens of a sequence whose inputs are in shared memory together.
  std::uint32_t unit_tokens = 0;
  // Tile kernels: the sequence-start blocks are first in the grid. Each sequence has
  // start_channel_blocks of them, each of which processes start_rounds groups of channels.
  std::uint32_t start_blocks = 0;
  FastDivisor start_channel_blocks;
  std::uint32_t start_rounds = 1;
  // Before those: blocks of snapshots that lie in x, kSnapshotRounds groups of channels each.
  std::uint32_t snapshot_blocks = 0;
  FastDivisor snapshot_channel_blocks;
  // Sequence-start blocks process every sequence, not only those shorter than a tile. Drafts: the
  // chain of a sequence ends after its first 8 tokens, tiles process the others.
  bool start_blocks_take_all = false;
  StateAccess state_access = StateAccess::kElements;
  StateAccess intermediate_access = StateAccess::kElements;
  PdlMode pdl = PdlMode::kOff;
  std::uint32_t pdl_launch_from = 0;  // kWaitAndLaunch: first block that lets the next kernel start
  bool prefetch_state = false;        // decode: prefetch states into L2 before the PDL wait
  bool packed_taps = false;           // weights and bias without gaps, aligned to 16 bytes
};

}  // namespace shortconv::cuda
