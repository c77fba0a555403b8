// Schedule flat on token-major rows with seq_idx: convolves the sequences of a dense batch, of
// which each row holds several, distinguished by their numbers in seq_idx.
//
// Threads: as in tile.cuh, a thread processes 4 adjacent channels (2 of fp32) of a strip of 8 rows.
// Each lane loads the number of one row of the tile or of the width - 1 rows before it; votes then
// determine where sequences begin and which rows are padding. There is no search, and no state is
// written. Only the first tile of a row of the batch reads a state.
//
// History before the tile that belongs to another sequence is cleared, and the window is cleared
// where a sequence begins. The loads of rows, taps and numbers are in flight together.
//
// Bytes moved: x once (and 3 of 8 rows again from the L2 cache at width 4), out once, the numbers
// from the L2 cache once per 128 channels. Ceiling: a copy of these bytes.
#pragma once

#include "cuda/kernels/tile.cuh"

namespace shortconv::cuda {

/// Masks of the rows of a strip. Bit 0 is the oldest row of the history.
struct SeqIdxRows {
  std::uint32_t begins = 0;   // rows whose number differs from that of the row before
  std::uint32_t padding = 0;  // rows with negative numbers
};

/// No sequence begins at token 0 of a row of the batch: its history comes from the state.
template <int kHistory>
__device__ inline SeqIdxRows load_seq_idx_rows(const KernelParams& params, const TileRows& tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = min(max(tile.first - kHistory + lane, 0), params.tokens - 1);
  const char* seq_idx = static_cast<const char*>(params.seq_idx) +
                        tile.origin.sequence * params.seq_idx_sequence_stride_bytes;
  const RawIndex number =
      raw_index(seq_idx, params.seq_idx_dtype, params.seq_idx_stride_bytes, row);
  const int before = (lane + 31) % 32;
  const std::uint32_t low = __shfl_sync(kFullWarp, number.low, before);
  const std::uint32_t high = __shfl_sync(kFullWarp, number.high, before);
  const bool differs = number.low != low || number.high != high;
  const bool negative = number.wide(params.seq_idx_dtype) < 0;
  const std::uint32_t begins = __ballot_sync(kFullWarp, differs);
  const std::uint32_t known = tile.first == 0 ? ~0u << kHistory << 1 : ~1u;
  return {begins & known, __ballot_sync(kFullWarp, negative)};
}

template <typename Traits>
__global__ void __launch_bounds__(tile_threads(Traits::kInputBytes),
                                  resident(tile_blocks(Traits::kInputBytes, Traits::kWidth)))
    convolve_seq_idx_tiles(const __grid_constant__ KernelParams params) {
  using Kernel = TileKernel<Traits>;
  using T = typename Traits::Input;
  constexpr int kHistory = Kernel::kHistory;
  using History = typename Kernel::Words[kHistory];
  pdl_wait_and_launch(params);
  const std::uint32_t unit = params.channel_blocks.divide(blockIdx.x);
  const typename Kernel::Channels channels(blockIdx.x - unit * params.channel_blocks.divisor());
  const int channel = channels.first(params);
  TileRows tile = tile_of(params, static_cast<int>(unit));
  typename Kernel::Rows rows;
  typename Kernel::Taps taps;
  Kernel::Loader::load_tile(params, tile, channel, rows);
  taps.load(params.weights(), channel);
  const SeqIdxRows seq_idx = load_seq_idx_rows<kHistory>(params, tile);
  const bool usable = usable_slot(params, read_slot_of(params, tile.origin.sequence).value());

  const std::uint32_t existing = tile_rows_between(0, params.tokens - tile.first);
  tile.padding = usable ? seq_idx.padding >> kHistory & existing : existing;
  tile.mask = existing & ~tile.padding;
  if (tile.padding != 0 && channels.inside(params))
    Kernel::Store::fill_padding(params, tile, channel);
  if (tile.mask == 0) return;
  if (tile.first == 0) {
    const SequenceStart start = sequence_start<Variant::kBase>(params, tile.origin.sequence);
    Kernel::State::load_history(params, start, channel, reinterpret_cast<History&>(rows));
  }
#pragma unroll
  for (int k = 0; k < kHistory; ++k) {
    // Clears row k if a sequence begins after it, at the tile's first row or before.
    constexpr std::uint32_t kUpToFirst = (2u << kHistory) - 1;
    if ((seq_idx.begins & kUpToFirst) >> k >> 1 != 0) clear_words(rows[k]);
  }
  Kernel::Convolution::convolve_rows(params, taps, tile.mask, rows, {},
                                     [&](int t, int, typename Kernel::Shape::Window& window) {
                                       if (t == 0 || (seq_idx.begins >> (kHistory + t) & 1u) == 0)
                                         return;
#pragma unroll
                                       for (int k = 0; k < kHistory; ++k) window[k] = {0.0f, 0.0f};
                                     });
  if (channels.inside(params)) {
    Kernel::Store::store(params, out_at<T>(params, tile.origin, tile.first, channel), tile.mask,
                         rows);
  }
}

}  // namespace shortconv::cuda
