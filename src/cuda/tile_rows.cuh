// Which rows and channels a block of tile.cuh has, and what is to be done with them: found by each
// warp alone, from query_start_loc, slots and shapes.
#pragma once

#include <cstdint>

#include "cuda/call.hpp"
#include "cuda/memory.cuh"
#include "cuda/search.cuh"
#include "cuda/sequence.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// The kGroup channels of a thread. Threads beyond the last ones read those and write nothing.
template <int kThreads, int kGroup>
struct TileChannels {
  int wanted = 0;

  TileChannels() = default;
  __device__ explicit TileChannels(std::uint32_t block)
      : wanted(static_cast<int>(block * kThreads + threadIdx.x) * kGroup) {}

  __device__ int first(const Call& call) const { return min(wanted, call.channels - kGroup); }
  __device__ bool inside(const Call& call) const { return wanted < call.channels; }
  /// Moves on to the next group of channels of the `rounds`, a power of two, that a block takes in
  /// turn; whether there is one. Counting them would take a register from the rows.
  __device__ bool next(const Call& call, std::uint32_t rounds) {
    constexpr int kBlock = kThreads * kGroup;
    wanted += kBlock;
    const std::uint32_t group = static_cast<std::uint32_t>(wanted) / kBlock;
    return (group & (rounds - 1)) != 0 &&
           group * kBlock < static_cast<std::uint32_t>(call.channels);
  }
};

/// What tiles cut up: all packed rows, or one sequence of a dense batch; and where its rows begin,
/// in elements. To add zeros costs less than to choose, for then the compiler multiplies in any
/// case.
struct Stream {
  int sequence = 0;
  std::int64_t x = 0, out = 0;
};

__device__ inline Stream stream_of(const Call& call, int sequence) {
  if (call.has_query_start_loc) return {};
  return {sequence, sequence * call.x_sequence, sequence * call.out_sequence};
}

/// 8 rows of x and out. Bit t of `mask` says that row first + t is to be convolved with the rows
/// before it, of `padding` that it follows the padding policy.
struct TileRows {
  Stream stream;
  int first = 0;
  std::uint32_t mask = 0, padding = 0;
  int beginning = -1;  // the sequence to be started here, or -1
};

/// A sequence that begins in a tile.
struct Beginning {
  int sequence = 0;
  int first = 0, length = 0;  // 0: also for one that is skipped
  SequenceState state;
};

/// Rows of a sequence in its stream.
struct Bounds {
  int begin, end;
};

__device__ inline Bounds stated_bounds(const Call& call, int sequence) {
  Bounds rows{0, call.tokens};
  const char* begin =
      rows_after(static_cast<const char*>(call.query_start_loc), call.begin_bytes, sequence);
  load_kept_int_if(call.has_query_start_loc, begin, rows.begin);
  load_kept_int_if(call.has_query_start_loc, begin + call.begin_bytes, rows.end);
  return rows;
}

/// Bounds that decrease or leave the tensor make a sequence shorter, down to nothing.
__device__ inline Bounds rows_of(const Call& call, Bounds stated) {
  const int begin = min(max(stated.begin, 0), call.tokens);
  return {begin, max(min(stated.end, call.tokens), begin)};
}

/// Calls meanwhile(bounds) as soon as these are known.
template <Features kFeatures, typename Meanwhile>
__device__ inline Beginning beginning_of(const Call& call, int sequence, Meanwhile&& meanwhile) {
  const StatedState stated = stated_state<kFeatures>(call, sequence);
  const Bounds rows = rows_of(call, stated_bounds(call, sequence));
  meanwhile(rows);
  Beginning beginning;
  beginning.sequence = sequence;
  beginning.state = state_of(call, stated);
  settle_ring<kFeatures>(call, beginning.state);
  beginning.first = rows.begin;
  beginning.length = beginning.state.skipped ? 0 : rows.end - rows.begin;
  return beginning;
}

template <Features kFeatures>
__device__ inline Beginning beginning_of(const Call& call, int sequence) {
  return beginning_of<kFeatures>(call, sequence, [](const Bounds&) {});
}

/// What a head does: a tile of its own, that begins with the sequence.
template <Features kFeatures>
__device__ inline TileRows head_of(const Call& call, int sequence, Beginning& beginning) {
  beginning = beginning_of<kFeatures>(call, sequence);
  TileRows tile;
  tile.first = beginning.first;
  tile.stream = stream_of(call, sequence);
  return tile;
}

inline constexpr std::uint32_t kAllTileRows = (1u << kTileTokens) - 1;

/// Bits of a tile's rows in [from, to), numbered from its first row.
__device__ inline std::uint32_t tile_rows_between(int from, int to) {
  const int low = max(from, 0), high = min(to, kTileTokens);
  return low < high ? ((1u << high) - 1) & ~((1u << low) - 1) : 0;
}

/// The thread's channels in a row of a stream.
template <typename T>
__device__ inline const T* x_at(const Call& call, const Stream& stream, int row, int channel) {
  return rows_after(static_cast<const T*>(call.x) + stream.x + channel, call.x_step, row);
}
template <typename T>
__device__ inline T* out_at(const Call& call, const Stream& stream, int row, int channel) {
  return rows_after(static_cast<T*>(call.out) + stream.out + channel, call.out_step, row);
}

/// The same by the number of a sequence, for those who would keep a Stream in registers for long.
template <typename T>
__device__ inline const T* x_of(const Call& call, int sequence, int row, int channel) {
  const T* x = rows_after(static_cast<const T*>(call.x) + channel, call.x_step, row);
  return call.has_query_start_loc ? x : x + sequence * call.x_sequence;
}
template <typename T>
__device__ inline T* out_of(const Call& call, int sequence, int row, int channel) {
  T* out = rows_after(static_cast<T*>(call.out) + channel, call.out_step, row);
  return call.has_query_start_loc ? out : out + sequence * call.out_sequence;
}

/// The rows of a tile; what is to be done with them is not known yet.
__device__ inline TileRows tile_of(const Call& call, int number) {
  TileRows tile;
  if (!call.has_query_start_loc) {
    const auto sequence = static_cast<int>(call.sequence_tiles.divide(number));
    tile.stream = stream_of(call, sequence);
    number -= sequence * static_cast<int>(call.sequence_tiles.divisor());
  }
  tile.first = number * kTileTokens;
  return tile;
}

/// Finds that out for a tile of packed rows, or returns that all of them come in from before, as
/// those of most tiles, and leaves the mask alone.
template <int kHistory>
__device__ inline bool classify_packed_tile(const Call& call, TileRows& tile) {
  const int first = tile.first, tokens = call.tokens;
  // Tokens of a sequence that whoever begins it convolves at least.
  const int begun = call.heads_begin ? kTileTokens : kHistory;
  if (call.sequences == 1) {  // no search to wait for
    const bool usable = usable_slot(call, read_slot_of(call, 0).value());
    const int begin = stated_begin(call, 0), end = stated_begin(call, 1);
    if (static_cast<int>(usable) & static_cast<int>(begin <= first - begun) &
        static_cast<int>(end >= first + kTileTokens) &
        static_cast<int>(first + kTileTokens <= tokens)) {
      return true;
    }
  }
  const auto [sequence, begins, alone] = find_sequence(call, first, begun, kTileTokens);
  if (alone && first + kTileTokens <= tokens &&
      usable_slot(call, read_slot_of(call, sequence).value())) {
    if (!begins) return true;
    if (!call.heads_begin) tile.beginning = sequence;
    return false;
  }
  // A lane looks at one of the sequences from there on.
  std::uint32_t live = 0, owned = 0;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int sequences = call.sequences;
  for (int base = max(sequence, 0); base < sequences; base += 32) {
    bool more = false, starts = false;
    if (base + lane < sequences) {
      const StatedIndex slot = read_slot_of(call, base + lane);
      const Bounds rows = rows_of(call, stated_bounds(call, base + lane));
      const bool usable = usable_slot(call, slot.value());
      const int from = rows.begin - first, to = rows.end - first;
      more = from < kTileTokens && rows.begin < tokens;
      if (usable) owned |= tile_rows_between(from, to);
      if (usable && to - from >= kTileTokens) {
        starts = from >= 0 && more;
        if (from < 0) live |= tile_rows_between(from + begun, to);
      }
    }
    const unsigned beginning = __ballot_sync(kFullWarp, starts);
    if (beginning != 0) tile.beginning = base + __ffs(beginning) - 1;
    if (!__shfl_sync(kFullWarp, static_cast<int>(more), 31)) break;
  }
  tile.mask = __reduce_or_sync(kFullWarp, live);
  tile.padding = ~__reduce_or_sync(kFullWarp, owned) & tile_rows_between(0, tokens - first);
  if (call.heads_begin) tile.beginning = -1;
  return false;
}

/// The same for a tile of a dense batch.
__device__ inline bool classify_dense_tile(const Call& call, TileRows& tile) {
  const int rows = call.tokens - tile.first;
  if (!usable_slot(call, read_slot_of(call, tile.stream.sequence).value())) {
    tile.padding = tile_rows_between(0, rows);
  } else if (tile.first > 0) {
    tile.mask = tile_rows_between(0, rows);
    return rows >= kTileTokens;
  } else if (rows >= kTileTokens && !call.heads_begin) {
    tile.beginning = tile.stream.sequence;
  }
  return false;
}

template <int kHistory>
__device__ inline bool lies_inside(const Call& call, TileRows& tile) {
  return call.has_query_start_loc ? classify_packed_tile<kHistory>(call, tile)
                                  : classify_dense_tile(call, tile);
}

template <int kHistory>
__device__ inline void classify_tile(const Call& call, TileRows& tile) {
  if (lies_inside<kHistory>(call, tile)) tile.mask = kAllTileRows;
}

}  // namespace shortconv::cuda
