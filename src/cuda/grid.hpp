// What the selection tells a kernel besides the Problem: how block numbers become work. Plain C++,
// passed by value.
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
    if (divisor_ == 1) return value;
    return static_cast<std::uint32_t>((std::uint64_t{value} * multiplier_) >> 32) >> shift_;
  }
  SHORTCONV_HOST_DEVICE constexpr std::uint32_t divisor() const { return divisor_; }

 private:
  std::uint32_t divisor_ = 1;
  std::uint32_t multiplier_ = 0;
  std::uint32_t shift_ = 0;
};

/// What an instance of a kernel knows: what is not asked for is not to be in its code, of which
/// small calls wait for every line.
enum class Features : std::uint8_t {
  kPlain,      // ordered states
  kRings,      // also rings; decode has an instance for them, the others take kAll
  kOlder,      // an older column kept; decode alone
  kGated,      // gates; tiles, decode and drafts
  kF32States,  // states of fp32 beside rows of 16 bits; tiles and decode
  kAll,  // also snapshots, windows by slot, an older column, the residual, long chains among drafts
};

/// Programmatic dependent launch, overlap.cuh: which ends of a kernel overlap with its neighbours
/// in the stream.
enum class Overlap : std::uint8_t {
  kNone,
  kBeginning,  // it may start while the kernel before is ending, and waits for it
  kBoth,       // and lets the next one start while its last blocks run
};

/// How a group of adjacent channels lies in a state slot.
enum class StateForm : std::uint8_t {
  kChannelVectors,  // one aligned vector a column
  kWindowVectors,   // channels x window without gaps, aligned
  kElements,        // anything else
};

struct Grid {
  FastDivisor channel_blocks;  // block = unit * channel_blocks + channel block
  FastDivisor sequence_tiles;  // dense batches: tiles of one sequence
  std::uint32_t tiles = 0;     // units that are tiles; further ones fill rows outside of sequences,
                               // or, in the general kernel, take the snapshots that lie in x
  std::uint32_t unit_tokens = 0;  // general kernel, schedule flat: packed rows of a unit
  // Tiles: the blocks of the heads come first, so many for each sequence, which take so many groups
  // of channels in turn.
  std::uint32_t head_blocks = 0;
  FastDivisor head_channel_blocks;
  std::uint32_t head_rounds = 1;
  // And before those the blocks of snapshots that lie in x, with kSnapshotRounds groups each.
  std::uint32_t snapshot_blocks = 0;
  FastDivisor snapshot_channel_blocks;
  // All sequences rather than those shorter than a tile. Drafts: chains end after their first
  // strip, what follows is in units that are tiles.
  bool heads_begin = false;
  StateForm state_form = StateForm::kElements;
  StateForm window_form = StateForm::kElements;  // of captured windows
  Overlap overlap = Overlap::kNone;
  bool early_state = false;  // what decode reads of it is fetched before that wait, if there is one
  bool packed_taps = false;  // weights and bias without gaps, aligned to 16 bytes
};

}  // namespace shortconv::cuda
