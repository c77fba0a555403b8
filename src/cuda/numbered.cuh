// Schedule flat on token-major rows of a dense batch of which each holds several sequences, told
// apart by numbers (seq_idx).
//
// Who owns what: as in tile.cuh a thread owns 4 adjacent channels (2 of fp32) of a strip of 8 rows.
// All that a tile has to know is in the numbers of its rows and of the width - 1 before: a lane
// loads one, a vote tells all lanes where sequences begin and which rows are padding. There is
// nothing to search, no sequence has an owner, and no state is written; only the first tile of a
// row of the batch reads one.
//
// How: the history before the tile that belongs to another sequence is cleared, and so is the
// window wherever a sequence begins. The loads of rows, taps and numbers are under way together.
//
// Bytes moved: x once (plus, from the L2 cache, 3 of 8 rows again at width 4), out once, the
// numbers from the L2 cache once for each 128 channels. The ceiling is a copy of these bytes.
#pragma once

#include "cuda/tile.cuh"

namespace shortconv::cuda {

/// The rows of a strip, the oldest of the history being bit 0.
struct NumberedRows {
  std::uint32_t begins = 0;   // where the number is not that of the row before
  std::uint32_t padding = 0;  // negative numbers
};

/// What comes into the first row of the batch's row comes from the state, whatever the numbers are.
template <int kHistory>
__device__ inline NumberedRows numbers_of(const Call& call, const TileRows& tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = min(max(tile.first - kHistory + lane, 0), call.tokens - 1);
  const char* of_stream =
      static_cast<const char*>(call.seq_idx) + tile.stream.sequence * call.seq_idx_sequence;
  const StatedIndex number = stated_index(of_stream, call.seq_idx_dtype, call.seq_idx_bytes, row);
  const int before = (lane + 31) % 32;
  const std::uint32_t low = __shfl_sync(kFullWarp, number.low, before);
  const std::uint32_t high = __shfl_sync(kFullWarp, number.high, before);
  const bool differs = number.low != low || number.high != high;
  const bool negative = number.wide(call.seq_idx_dtype) < 0;
  const std::uint32_t begins = __ballot_sync(kFullWarp, differs);
  const std::uint32_t known = tile.first == 0 ? ~0u << kHistory << 1 : ~1u;
  return {begins & known, __ballot_sync(kFullWarp, negative)};
}

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation>
__global__ void __launch_bounds__(tile_threads(sizeof(T)), resident(tile_blocks(sizeof(T), kWidth)))
    convolve_numbered_tiles(const __grid_constant__ Call call) {
  using Kernel = TileKernel<T, TWeight, kWidth, kActivation, Features::kPlain>;
  constexpr int kHistory = Kernel::kHistory;
  using History = typename Kernel::Words[kHistory];
  overlap_neighbours(call);
  const std::uint32_t unit = call.channel_blocks.divide(blockIdx.x);
  const typename Kernel::Channels channels(blockIdx.x - unit * call.channel_blocks.divisor());
  const int channel = channels.first(call);
  TileRows tile = tile_of(call, static_cast<int>(unit));
  typename Kernel::Rows rows;
  typename Kernel::TileTaps taps;
  Kernel::load_tile(call, tile, channel, rows);
  taps.load(call.weights(), channel);
  const NumberedRows numbers = numbers_of<kHistory>(call, tile);
  const bool usable = usable_slot(call, read_slot_of(call, tile.stream.sequence).value());

  const std::uint32_t there = tile_rows_between(0, call.tokens - tile.first);
  tile.padding = usable ? numbers.padding >> kHistory & there : there;
  tile.mask = there & ~tile.padding;
  if (tile.padding != 0 && channels.inside(call)) Kernel::fill_padding(call, tile, channel);
  if (tile.mask == 0) return;
  if (tile.first == 0) {
    const Beginning beginning = beginning_of<Features::kPlain>(call, tile.stream.sequence);
    Kernel::load_history(call, beginning, channel, reinterpret_cast<History&>(rows));
  }
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {  // a later row than k begins a sequence, up to the first one
    constexpr std::uint32_t kUpToFirst = (2u << kHistory) - 1;
    if ((numbers.begins & kUpToFirst) >> k >> 1 != 0) clear_words(rows[k]);
  }
  Kernel::convolve_rows(call, taps, tile.mask, rows, {},
                        [&](int t, int, typename Kernel::Window& window) {
                          if (t == 0 || (numbers.begins >> (kHistory + t) & 1u) == 0) return;
#pragma unroll
                          for (int k = 0; k < kHistory; ++k) window[k] = {0.0f, 0.0f};
                        });
  if (channels.inside(call)) {
    Kernel::store(call, out_at<T>(call, tile.stream, tile.first, channel), tile.mask, rows);
  }
}

}  // namespace shortconv::cuda
