// Rows and channels of a block of the tile kernels. Each warp derives them from query_start_loc,
// the slots and the shapes.
#pragma once

#include <cstdint>

#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/sequence.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// The kGroup channels of a thread. Threads beyond the last channels read the last ones and write
/// nothing. kThreads: of a block; 0: as launched, a power of two.
template <int kThreads, int kGroup>
struct TileChannels {
  int unclamped = 0;

  TileChannels() = default;
  __device__ explicit TileChannels(std::uint32_t block)
      : unclamped(static_cast<int>(block * threads() + threadIdx.x) * kGroup) {}

  __device__ static constexpr unsigned threads() {
    if constexpr (kThreads == 0) {
      return blockDim.x;
    } else {
      return kThreads;
    }
  }

  __device__ int first(const KernelParams& params) const {
    return min(unclamped, params.channels - kGroup);
  }
  __device__ bool inside(const KernelParams& params) const { return unclamped < params.channels; }
  /// Moves on to the next of the `rounds` groups of channels of the block; false if there is none.
  /// `rounds` is a power of two. A counter would take a register from the rows.
  __device__ bool next(const KernelParams& params, std::uint32_t rounds) {
    const std::uint32_t block = threads() * kGroup;
    unclamped += static_cast<int>(block);
    const std::uint32_t group = static_cast<std::uint32_t>(unclamped) / block;
    return (group & (rounds - 1)) != 0 &&
           group * block < static_cast<std::uint32_t>(params.channels);
  }
};

/// The rows that are divided into tiles: all packed rows, or one sequence of a dense batch. Offsets
/// of the first row are in elements; those of packed rows are 0. Adding them is cheaper than a
/// branch, which does not avoid the multiplications.
struct RowOrigin {
  int sequence = 0;
  std::int64_t x = 0, out = 0;
};

__device__ inline RowOrigin row_origin(const KernelParams& params, int sequence) {
  if (params.has_query_start_loc) return {};
  return {sequence, sequence * params.x_sequence_stride, sequence * params.out_sequence_stride};
}

/// 8 rows of x and out. Bit t of a mask is row first + t.
struct TileRows {
  RowOrigin origin;
  int first = 0;
  std::uint32_t mask = 0;      // rows that are convolved with the rows before them
  std::uint32_t padding = 0;   // rows that follow padded_rows
  int starting_sequence = -1;  // sequence that the tile's block starts, or -1
};

/// A sequence that starts in a tile.
struct SequenceStart {
  int sequence = 0;
  int first = 0;   // row
  int length = 0;  // 0 for a skipped sequence
  SequenceState state;
};

/// Rows [begin, end) of a sequence, from a RowOrigin.
struct Bounds {
  int begin, end;
};

__device__ inline Bounds raw_bounds(const KernelParams& params, int sequence) {
  Bounds rows{0, params.tokens};
  const char* begin = rows_after(static_cast<const char*>(params.query_start_loc),
                                 params.query_start_loc_stride_bytes, sequence);
  load_int_if_evict_last(params.has_query_start_loc, begin, rows.begin);
  load_int_if_evict_last(params.has_query_start_loc, begin + params.query_start_loc_stride_bytes,
                         rows.end);
  return rows;
}

/// Decreasing bounds and bounds outside the tensor make a sequence shorter or empty.
__device__ inline Bounds clamped_bounds(const KernelParams& params, Bounds raw) {
  const int begin = min(max(raw.begin, 0), params.tokens);
  return {begin, max(min(raw.end, params.tokens), begin)};
}

/// Calls with_bounds(bounds) before it waits for the state's loads.
template <Variant kVariant, typename WithBounds>
__device__ inline SequenceStart sequence_start(const KernelParams& params, int sequence,
                                               WithBounds&& with_bounds) {
  const RawState raw = raw_state<kVariant>(params, sequence);
  const Bounds rows = clamped_bounds(params, raw_bounds(params, sequence));
  with_bounds(rows);
  SequenceStart start;
  start.sequence = sequence;
  start.state = state_of(params, raw);
  resolve_circular_columns<kVariant>(params, start.state);
  start.first = rows.begin;
  start.length = start.state.skipped ? 0 : rows.end - rows.begin;
  return start;
}

template <Variant kVariant>
__device__ inline SequenceStart sequence_start(const KernelParams& params, int sequence) {
  return sequence_start<kVariant>(params, sequence, [](const Bounds&) {});
}

/// The tile of a sequence-start block: it begins with the sequence.
template <Variant kVariant>
__device__ inline TileRows start_tile(const KernelParams& params, int sequence,
                                      SequenceStart& start) {
  start = sequence_start<kVariant>(params, sequence);
  TileRows tile;
  tile.first = start.first;
  tile.origin = row_origin(params, sequence);
  return tile;
}

inline constexpr std::uint32_t kAllTileRows = (1u << kTileTokens) - 1;

/// Bits of a tile's rows in [from, to), numbered from its first row.
__device__ inline std::uint32_t tile_rows_between(int from, int to) {
  const int low = max(from, 0), high = min(to, kTileTokens);
  return low < high ? ((1u << high) - 1) & ~((1u << low) - 1) : 0;
}

/// The thread's channels in a row, counted from the origin.
template <typename T>
__device__ inline const T* x_at(const KernelParams& params, const RowOrigin& origin, int row,
                                int channel) {
  return rows_after(static_cast<const T*>(params.x) + origin.x + channel, params.x_stride_bytes,
                    row);
}
template <typename T>
__device__ inline T* out_at(const KernelParams& params, const RowOrigin& origin, int row,
                            int channel) {
  return rows_after(static_cast<T*>(params.out) + origin.out + channel, params.out_stride_bytes,
                    row);
}

/// As x_at and out_at, by the number of the sequence: callers keep no RowOrigin in registers.
template <typename T>
__device__ inline const T* x_of(const KernelParams& params, int sequence, int row, int channel) {
  const T* x = rows_after(static_cast<const T*>(params.x) + channel, params.x_stride_bytes, row);
  return params.has_query_start_loc ? x : x + sequence * params.x_sequence_stride;
}
template <typename T>
__device__ inline T* out_of(const KernelParams& params, int sequence, int row, int channel) {
  T* out = rows_after(static_cast<T*>(params.out) + channel, params.out_stride_bytes, row);
  return params.has_query_start_loc ? out : out + sequence * params.out_sequence_stride;
}

/// The rows of a tile, unclassified.
__device__ inline TileRows tile_of(const KernelParams& params, int number) {
  TileRows tile;
  if (!params.has_query_start_loc) {
    const auto sequence = static_cast<int>(params.sequence_tiles.divide(number));
    tile.origin = row_origin(params, sequence);
    number -= sequence * static_cast<int>(params.sequence_tiles.divisor());
  }
  tile.first = number * kTileTokens;
  return tile;
}

/// As is_inner_tile, for packed rows.
template <int kHistory, int kMaxStartTokens>
__device__ inline bool is_inner_packed_tile(const KernelParams& params, TileRows& tile) {
  const int first = tile.first, tokens = params.tokens;
  // Minimum number of tokens that the block which starts a sequence convolves.
  const int start_tokens = params.start_blocks_take_all ? kMaxStartTokens : kHistory;
  if (params.sequences == 1) {  // no search to wait for
    const bool usable = usable_slot(params, read_slot_of(params, 0).value());
    const int begin = raw_begin(params, 0), end = raw_begin(params, 1);
    if (static_cast<int>(usable) & static_cast<int>(begin <= first - start_tokens) &
        static_cast<int>(end >= first + kTileTokens) &
        static_cast<int>(first + kTileTokens <= tokens)) {
      return true;
    }
  }
  const auto [sequence, begins, is_alone] = find_sequence(params, first, start_tokens, kTileTokens);
  if (is_alone && first + kTileTokens <= tokens &&
      usable_slot(params, read_slot_of(params, sequence).value())) {
    if (!begins) return true;
    if (!params.start_blocks_take_all) tile.starting_sequence = sequence;
    return false;
  }
  // Each lane classifies the rows of one of the sequences from there on.
  std::uint32_t entering = 0, live = 0;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int sequences = params.sequences;
  for (int base = max(sequence, 0); base < sequences; base += 32) {
    bool more = false, starts = false;
    if (base + lane < sequences) {
      const RawIndex slot = read_slot_of(params, base + lane);
      const Bounds rows = clamped_bounds(params, raw_bounds(params, base + lane));
      const bool usable = usable_slot(params, slot.value());
      const int from = rows.begin - first, to = rows.end - first;
      more = from < kTileTokens && rows.begin < tokens;
      if (usable) live |= tile_rows_between(from, to);
      if (usable && to - from >= kTileTokens) {
        starts = from >= 0 && more;
        if (from < 0) entering |= tile_rows_between(from + start_tokens, to);
      }
    }
    const unsigned starting = __ballot_sync(kFullWarp, starts);
    if (starting != 0) tile.starting_sequence = base + __ffs(starting) - 1;
    if (!__shfl_sync(kFullWarp, static_cast<int>(more), 31)) break;
  }
  tile.mask = __reduce_or_sync(kFullWarp, entering);
  tile.padding = ~__reduce_or_sync(kFullWarp, live) & tile_rows_between(0, tokens - first);
  if (params.start_blocks_take_all) tile.starting_sequence = -1;
  return false;
}

/// As is_inner_tile, for a dense batch.
template <int kMaxStartTokens>
__device__ inline bool is_inner_dense_tile(const KernelParams& params, TileRows& tile) {
  const int rows = params.tokens - tile.first;
  if (!usable_slot(params, read_slot_of(params, tile.origin.sequence).value())) {
    tile.padding = tile_rows_between(0, rows);
  } else if (tile.first >= kMaxStartTokens) {
    tile.mask = tile_rows_between(0, rows);
    return rows >= kTileTokens;
  } else if (rows >= kTileTokens && !params.start_blocks_take_all) {
    tile.starting_sequence = tile.origin.sequence;
  }
  return false;
}

/// True if all rows of the tile belong to one sequence that enters it, as in most tiles; the mask
/// may be unset then. Otherwise it sets mask, padding and starting_sequence. kMaxStartTokens:
/// tokens of a sequence that its sequence-start block convolves, where these take all sequences.
template <int kHistory, int kMaxStartTokens = kTileTokens>
__device__ inline bool is_inner_tile(const KernelParams& params, TileRows& tile) {
  return params.has_query_start_loc ? is_inner_packed_tile<kHistory, kMaxStartTokens>(params, tile)
                                    : is_inner_dense_tile<kMaxStartTokens>(params, tile);
}

/// As is_inner_tile, and sets the mask of an inner tile as well.
template <int kHistory, int kMaxStartTokens = kTileTokens>
__device__ inline void classify_tile(const KernelParams& params, TileRows& tile) {
  if (is_inner_tile<kHistory, kMaxStartTokens>(params, tile)) tile.mask = kAllTileRows;
}

}  // namespace shortconv::cuda
