// Schedule flat on token-major rows, whatever the sequences are. The grid follows from shapes
// alone.
//
// Who owns what: a thread owns 4 adjacent channels (8 or 16 bytes a row) of 8 rows. There are two
// kinds of units. A head is the beginning of a sequence: it reads the initial state, convolves the
// first 8 tokens and then writes the final state, so every slot is read and written by one thread,
// in that order. The body is cut into fixed tiles of 8 packed rows that leave the first 8 tokens of
// sequences alone. As 8 is at least width - 1, the body finds every window in x and knows nothing
// of states, and the heads of short sequences (decodes, draft tokens) are the whole of them.
//
// How: both kinds have width - 1 rows of history and 8 rows of tokens in registers and do the same
// from there on; only where the history comes from differs. A tile's loads go out before it is
// known whose rows they are: a row's data does not depend on that. While they are under way the
// warp searches query_start_loc. Where sequences are short on average most tiles have nothing left
// to do, so there the search comes first.
//
// Bytes moved: x once (plus, from the L2 cache, 3 of 8 rows again at width 4), out once, states
// once each way. The ceiling is a copy of these bytes. Tile and block are the best of those
// measured, see tuning.hpp.
#pragma once

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/element.cuh"
#include "cuda/grid.hpp"
#include "cuda/memory.cuh"
#include "cuda/search.cuh"
#include "cuda/state.cuh"
#include "cuda/taps.cuh"
#include "cuda/tuning.hpp"
#include "op/sequence.hpp"

namespace shortconv::cuda {

/// A thread's channels. Threads beyond the last ones read those and write nothing.
struct TileChannels {
  int wanted;

  __device__ explicit TileChannels(std::uint32_t block)
      : wanted(static_cast<int>(block * kTileThreads + threadIdx.x) * kTileGroup) {}

  __device__ int first(const Problem& p) const {
    return min(wanted, static_cast<int>(p.channels) - kTileGroup);
  }
  __device__ bool inside(const Problem& p) const { return wanted < static_cast<int>(p.channels); }
};

/// 8 rows of x and out. What tiles cut up is a stream: all packed rows, or one sequence of a dense
/// batch. Bit t of `mask` says that row first + t is to be convolved, of `padding` that it follows
/// the padding policy.
struct TileRows {
  int stream = 0;
  int first = 0;
  std::uint32_t mask = 0, padding = 0;
  int length = 0, write_slot = -1;  // heads: of the whole sequence
};
inline constexpr std::uint32_t kAllTileRows = (1u << kTileTokens) - 1;

/// Bits of a tile's rows in [from, to), numbered from its first row.
__device__ inline std::uint32_t tile_rows_between(int from, int to) {
  const int low = max(from, 0), high = min(to, kTileTokens);
  return low < high ? ((1u << high) - 1) & ~((1u << low) - 1) : 0;
}

/// The thread's channels in the first row of a stream.
template <typename T>
__device__ inline const T* tile_x(const Problem& p, const Addresses& at, int stream, int channel) {
  const T* x = static_cast<const T*>(at.x) + channel;
  return p.has_query_start_loc ? x : x + stream * p.x_sequence;
}
template <typename T>
__device__ inline T* tile_out(const Problem& p, const Addresses& at, int stream, int channel) {
  T* out = static_cast<T*>(at.out) + channel;
  return p.has_query_start_loc ? out : out + stream * p.out_sequence;
}

/// Sets mask and padding of a tile of packed rows. Most tiles lie inside one sequence; what has to
/// be known for that is loaded together rather than one after the other.
__device__ inline void classify_tile(const Problem& p, const Addresses& at, const Grid& grid,
                                     TileRows& tile) {
  const int first = tile.first, tokens = static_cast<int>(p.tokens);
  const int sequence = find_sequence_by_warp(p, at, grid, first);
  if (sequence >= 0 && first + kTileTokens <= tokens) {
    const int begin = stated_begin(at, grid, sequence);
    const int end = stated_begin(at, grid, sequence + 1);
    const bool usable = usable_slot(p, read_slot_of(p, at, sequence));
    if (static_cast<int>(usable) & static_cast<int>(begin + kTileTokens <= first) &
        static_cast<int>(end >= first + kTileTokens)) {
      tile.mask = kAllTileRows;
      return;
    }
  }
  // A lane looks at one of the sequences from there on.
  std::uint32_t live = 0, owned = 0;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int sequences = static_cast<int>(p.sequences);
  for (int base = max(sequence, 0); base < sequences; base += 32) {
    bool more = false;
    if (base + lane < sequences) {
      const Sequence s = sequence_at(p, at, base + lane);
      const int from = static_cast<int>(s.begin) - first, to = static_cast<int>(s.end) - first;
      more = from < kTileTokens;
      if (!s.skipped) {
        owned |= tile_rows_between(from, to);
        live |= tile_rows_between(from + kTileTokens, to);
      }
    }
    if (!__shfl_sync(kFullWarp, static_cast<int>(more), 31)) break;
  }
  tile.mask = __reduce_or_sync(kFullWarp, live);
  tile.padding = ~__reduce_or_sync(kFullWarp, owned) & tile_rows_between(0, tokens - first);
}

/// The same for a tile of a dense batch: all rows of a sequence share one fate, except that its
/// first 8 are its head's unless they are padding.
__device__ inline void classify_dense_tile(const Problem& p, const Addresses& at, TileRows& tile) {
  const auto rows = static_cast<int>(p.sequence_tokens) - tile.first;
  if (!usable_slot(p, read_slot_of(p, at, tile.stream))) {
    tile.padding = tile_rows_between(0, rows);
  } else if (tile.first > 0) {
    tile.mask = tile_rows_between(0, rows);
  }
}

template <typename T, typename TWeight, int kWidth, Activation kActivation, bool kSearchFirst>
struct TileKernel {
  static constexpr int kHistory = kWidth - 1;
  static constexpr int kRows = kHistory + kTileTokens;
  static constexpr int kWords = kWordsOf<T, kTileGroup>;
  static_assert(kHistory <= kTileTokens, "the body must find every window in x");
  using Words = std::uint32_t[kWords];
  using TileTaps = Taps<TWeight, kWidth, kTileGroup>;
  using Rows = Words[kRows];  // oldest history first; afterwards the results from the front

  __device__ static TileRows load_head(const Problem& p, const Addresses& at, const Grid& grid,
                                       int sequence, int channel, Rows& rows, TileTaps& taps) {
    TileRows tile;
    taps.load(p, at, grid.packed_taps, channel);  // under way while the sequence is looked up
    const Sequence s = sequence_at(p, at, sequence);
    if (s.skipped || s.begin >= s.end) return tile;  // the body fills the rows of padding
    if (p.has_query_start_loc) {
      tile.first = static_cast<int>(s.begin);
    } else {
      tile.stream = sequence;
    }
    const int length = static_cast<int>(s.end - s.begin);
    tile.mask = tile_rows_between(0, length);
    tile.length = length;
    tile.write_slot = static_cast<int>(s.write_slot);
    const T* x = rows_after(tile_x<T>(p, at, tile.stream, channel), grid.x_step, tile.first);
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      load_words(rows_after(x, grid.x_step, min(t, length - 1)), rows[kHistory + t]);
    }
    auto& history = reinterpret_cast<Words(&)[kHistory]>(rows);
    if (s.read_slot >= 0) {
      load_state<T, kHistory, kTileGroup>(p, at, grid.state_form, s.read_slot, s.read_column,
                                          channel, history);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) clear_words(history[k]);
    }
    return tile;
  }

  /// The last inputs of the sequence, wherever they lie. All are read before the first is written.
  __device__ static void write_state(const Problem& p, const Addresses& at, const Grid& grid,
                                     const TileRows& tile, int sequence, int channel) {
    if (tile.write_slot < 0) return;
    const T* x = rows_after(tile_x<T>(p, at, tile.stream, channel), grid.x_step, tile.first);
    Words columns[kHistory];
    if (tile.length >= kHistory) {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        load_words(rows_after(x, grid.x_step, tile.length - kHistory + k), columns[k]);
      }
    } else {
      // What the head knew of the history is asked for again: kept, it would take registers from
      // everything before.
      const Sequence s = sequence_at(p, at, sequence);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        const int token = tile.length - kHistory + k;
        if (token >= 0) {
          load_words(rows_after(x, grid.x_step, token), columns[k]);
        } else if (s.read_slot >= 0) {
          load_state_column<T, kTileGroup>(p, at, grid.state_form, s.read_slot,
                                           s.read_column + kHistory + token, channel, columns[k]);
        } else {
          clear_words(columns[k]);
        }
      }
    }
    store_state<T, kHistory, kTileGroup>(p, at, grid.state_form, tile.write_slot, channel, columns);
  }

  __device__ static TileRows load_body(const Problem& p, const Addresses& at, const Grid& grid,
                                       int number, int channel, Rows& rows, TileTaps& taps) {
    TileRows tile;
    if (!p.has_query_start_loc) {
      tile.stream = static_cast<int>(grid.sequence_tiles.divide(number));
      number -= tile.stream * static_cast<int>(grid.sequence_tiles.divisor());
    }
    tile.first = number * kTileTokens;
    const T* x = tile_x<T>(p, at, tile.stream, channel);
    if constexpr (!kSearchFirst) {
      load_tile(p, grid, x, tile.first, rows);
      taps.load(p, at, grid.packed_taps, channel);
    }
    if (p.has_query_start_loc) {
      classify_tile(p, at, grid, tile);
    } else {
      classify_dense_tile(p, at, tile);
    }
    if (kSearchFirst && tile.mask != 0) {
      load_tile(p, grid, x, tile.first, rows);
      taps.load(p, at, grid.packed_taps, channel);
    }
    return tile;
  }

  /// The tile's rows and the history before them. In place of those that the stream does not have
  /// others of its rows, which no row of the mask looks at.
  __device__ static void load_tile(const Problem& p, const Grid& grid, const T* x, int first,
                                   Rows& rows) {
    const auto stream_rows = static_cast<int>(p.has_query_start_loc ? p.tokens : p.sequence_tokens);
    if (first >= kHistory && first + kTileTokens <= stream_rows) {
      const T* oldest = rows_after(x, grid.x_step, first - kHistory);
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_words(rows_after(oldest, grid.x_step, i), rows[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = min(max(first - kHistory + i, 0), stream_rows - 1);
        load_words(rows_after(x, grid.x_step, row), rows[i]);
      }
    }
  }

  /// In place: results take the registers of inputs that are not needed again. Two channels at a
  /// time, which keeps the fp32 window in few registers.
  __device__ static void convolve(const TileTaps& taps, std::uint32_t mask, Rows& rows) {
#pragma unroll
    for (int pair = 0; pair < kTileGroup / 2; ++pair) {
      float2 window[kWidth];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) window[k] = unpack_pair<T>(rows[k], pair);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        // Short heads are done. The branch also keeps the compiler from taking all sums at once and
        // spilling half of the results: 79 us instead of 67 for 8192 x 8192.
        if (t == kTileTokens / 2 && mask >> t == 0) break;
        window[kHistory] = unpack_pair<T>(rows[kHistory + t], pair);
        float2 sum = taps.bias(pair);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          sum.x = __fmaf_rn(taps.tap(k, pair).x, window[k].x, sum.x);
          sum.y = __fmaf_rn(taps.tap(k, pair).y, window[k].y, sum.y);
        }
        pack_pair<T>(rows[t], pair, {activate<kActivation>(sum.x), activate<kActivation>(sum.y)});
#pragma unroll
        for (int k = 0; k < kHistory; ++k) window[k] = window[k + 1];
      }
    }
  }

  __device__ static void store(T* out, std::int32_t step, std::uint32_t mask, const Rows& rows) {
    if (mask == kAllTileRows) {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) store_words(rows_after(out, step, t), rows[t]);
    } else {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        if (mask >> t & 1u) store_words(rows_after(out, step, t), rows[t]);
      }
    }
  }

  __device__ static void fill_padding(const Problem& p, const Addresses& at, const Grid& grid,
                                      const TileRows& tile, int channel) {
    if (p.padded_rows == PaddedRows::kUntouched) return;
    const T* x = tile_x<T>(p, at, tile.stream, channel);
    T* out = tile_out<T>(p, at, tile.stream, channel);
    for (std::uint32_t left = tile.padding; left != 0; left &= left - 1) {
      const int row = tile.first + __ffs(left) - 1;
      Words words;
      clear_words(words);
      if (p.padded_rows == PaddedRows::kCopy) load_words(rows_after(x, grid.x_step, row), words);
      store_words(rows_after(out, grid.out_step, row), words);
    }
  }
};

/// Blocks that a multiprocessor of the architecture being compiled for can hold.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
inline constexpr int kMostResidentBlocks = 24;
#elif defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870)
inline constexpr int kMostResidentBlocks = 16;
#else
inline constexpr int kMostResidentBlocks = 32;
#endif

constexpr int resident_tiles(std::size_t element_bytes, int width) {
  const int wanted = tile_blocks(element_bytes, width);
  return wanted < kMostResidentBlocks ? wanted : kMostResidentBlocks;
}

template <typename T, typename TWeight, int kWidth, Activation kActivation, bool kSearchFirst>
__global__ void __launch_bounds__(kTileThreads, resident_tiles(sizeof(T), kWidth))
    convolve_tiles(const __grid_constant__ Problem p, const __grid_constant__ Addresses at,
                   const __grid_constant__ Grid grid) {
  using Kernel = TileKernel<T, TWeight, kWidth, kActivation, kSearchFirst>;
  if (p.programmatic_launch) overlap_neighbours();
  const bool head = blockIdx.x < grid.head_blocks;
  const FastDivisor across = head ? grid.channel_blocks : grid.body_blocks;
  const std::uint32_t number = head ? blockIdx.x : blockIdx.x - grid.head_blocks;
  const std::uint32_t unit = across.divide(number);
  // Groups of channels still to do.
  std::uint32_t round = kSearchFirst && !head ? kSearchFirstRounds : 1;
  TileChannels channels((number - unit * across.divisor()) * round);
  typename Kernel::Rows rows;
  typename Kernel::TileTaps taps;
  const TileRows tile =
      head ? Kernel::load_head(p, at, grid, static_cast<int>(unit), channels.first(p), rows, taps)
           : Kernel::load_body(p, at, grid, static_cast<int>(unit), channels.first(p), rows, taps);
  for (;;) {
    const int channel = channels.first(p);
    if (tile.mask != 0) {
      Kernel::convolve(taps, tile.mask, rows);
      if (!channels.inside(p)) return;
      T* out = rows_after(tile_out<T>(p, at, tile.stream, channel), grid.out_step, tile.first);
      Kernel::store(out, grid.out_step, tile.mask, rows);
      if (head) Kernel::write_state(p, at, grid, tile, static_cast<int>(unit), channel);
    }
    if (tile.padding != 0 && channels.inside(p)) {
      Kernel::fill_padding(p, at, grid, tile, channel);
    }
    if constexpr (!kSearchFirst) return;
    if (--round == 0 || (tile.mask | tile.padding) == 0) return;
    channels.wanted += kTileThreads * kTileGroup;
    if (tile.mask != 0) {
      Kernel::load_tile(p, grid, tile_x<T>(p, at, tile.stream, channels.first(p)), tile.first,
                        rows);
      taps.load(p, at, grid.packed_taps, channels.first(p));
    }
  }
}

}  // namespace shortconv::cuda
