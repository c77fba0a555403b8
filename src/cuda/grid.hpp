// What the selection tells a kernel besides the Problem: how block numbers become work. Plain C++,
// passed by value.
#pragma once

#include <cstdint>

#include "core/device.hpp"
#include "shortconv/problem.hpp"

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

/// How a group of adjacent channels lies in a state slot.
enum class StateForm : std::uint8_t {
  kChannelVectors,  // one aligned vector a column
  kWindowVectors,   // channels x window without gaps, aligned
  kElements,        // anything else
};

/// Snapshots that lie in x, which nobody overwrites, are units of the general kernel.
SHORTCONV_HOST_DEVICE constexpr bool takes_snapshots_alone(const Problem& p) {
  return p.snapshots > 0 && !p.in_place;
}

struct Grid {
  FastDivisor channel_blocks;  // block = unit * channel_blocks + channel block
  FastDivisor sequence_tiles;  // dense batches: tiles of one sequence
  std::uint32_t tiles = 0;     // units that are tiles; further ones fill rows outside of sequences
  std::int32_t x_step = 0;     // bytes from one row of x to the next, and of out
  std::int32_t out_step = 0;
  // From one entry to the next: query_start_loc, slots, has_initial_state, parents of tokens.
  std::int32_t begin_bytes = 0, read_slot_bytes = 0, write_slot_bytes = 0, flag_bytes = 0;
  std::int32_t parent_bytes = 0;
  std::uint32_t slots = 0;      // a sequence may have those below,
  std::int32_t null_slot = -1;  // but not this one
  // Tiles: the blocks of the heads come first, so many for each sequence, which take so many groups
  // of channels in turn.
  std::uint32_t head_blocks = 0;
  FastDivisor head_channel_blocks;
  std::uint32_t head_rounds = 1;
  bool heads_begin = false;  // all sequences rather than those shorter than a tile
  StateForm state_form = StateForm::kElements;
  StateForm window_form = StateForm::kElements;  // of captured windows
  bool packed_taps = false;  // weights and bias without gaps, aligned to 16 bytes
};

}  // namespace shortconv::cuda
