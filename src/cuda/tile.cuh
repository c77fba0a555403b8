// Schedule flat on token-major rows, whatever the sequences are. The grid follows from shapes
// alone.
//
// Who owns what: a thread owns 4 adjacent channels (2 of fp32; 8 bytes a row) of a strip of 8 rows.
// The packed rows are cut into tiles of 8. A tile convolves the rows of the sequence that comes
// into it from before and those of the sequence that begins in it, in one go, with the window
// exchanged for the initial state at the joint; and writes the final state of the latter: every
// slot is read and written by one thread, in that order. Sequences of fewer than 8 tokens (decodes,
// draft tokens) are left to blocks of their own, the heads, so that a tile never has more than one
// beginning: dozens of them one after the other would outlast everything else. A beginning takes at
// least width - 1 tokens, if need be from the next tile, so that what comes into a tile from before
// finds its window in x. In small calls heads begin the long sequences too, with their first 8
// tokens: more work, sooner done.
//
// How: a strip is width - 1 rows of history and 8 rows of tokens in registers; only where the
// history comes from differs. A tile's loads go out before it is known whose rows they are: a row's
// data does not depend on that. While they are under way the warp searches query_start_loc. A tile
// near which no sequence begins or ends has a way of its own, on which nothing else is asked. Where
// sequences are so short on average that heads do most of the work, the search comes first.
//
// Bytes moved: x once (plus, from the L2 cache, 3 of 8 rows again at width 4), out once, states
// once each way, gates as x and out. The ceiling is a copy of these bytes. Tile and block are the
// best of those measured, see tuning.hpp.
#pragma once

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/call.hpp"
#include "cuda/element.cuh"
#include "cuda/gates.cuh"
#include "cuda/memory.cuh"
#include "cuda/overlap.cuh"
#include "cuda/snapshot.cuh"
#include "cuda/state.cuh"
#include "cuda/taps.cuh"
#include "cuda/tile_rows.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, Features kFeatures,
          int kThreads = tile_threads(sizeof(T)), int kGroup = tile_group(sizeof(T))>
struct TileKernel {
  using Channels = TileChannels<kThreads, kGroup>;
  static constexpr int kHistory = kWidth - 1;
  static constexpr int kRows = kHistory + kTileTokens;
  static constexpr int kWords = kWordsOf<T, kGroup>;
  static_assert(kHistory <= kTileTokens, "the body must find every window in x");
  using Words = std::uint32_t[kWords];
  using TState = StateOf<T, kFeatures>;
  using StateWords = std::uint32_t[kWordsOf<TState, kGroup>];
  using TileTaps = Taps<TWeight, kWidth, kGroup>;
  using Rows = Words[kRows];  // oldest history first; afterwards the results from the front
  using Window = float2[kWidth];

  // Of a strip of rows. Those of inputs are under way with the rows, those of results since it was
  // known whose rows they are.
  static constexpr bool kGated = kFeatures == Features::kGated;
  struct SomeGates {
    Rows input;
    Words output[kTileTokens];
  };
  struct NoGates {};
  using Gates = std::conditional_t<kGated, SomeGates, NoGates>;

  /// The tile's rows and the history before them; at(row) is where a row of the stream lies. In
  /// place of those that the stream does not have others of its rows, which no row of the mask
  /// looks at.
  template <typename At>
  __device__ static void load_strip(const Call& call, int first, std::int32_t step, const At& at,
                                    Rows& rows) {
    if (first >= kHistory && first + kTileTokens <= call.tokens) {
      const T* from = at(first - kHistory);
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_words(nth_row(from, step, i), rows[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        load_words(at(min(max(first - kHistory + i, 0), call.tokens - 1)), rows[i]);
      }
    }
  }

  __device__ static void load_tile(const Call& call, const TileRows& tile, int channel,
                                   Rows& rows) {
    const auto at = [&](int row) { return x_at<T>(call, tile.stream, row, channel); };
    load_strip(call, tile.first, call.x_step, at, rows);
  }

  __device__ static void load_input_gates(const Call& call, const TileRows& tile, int channel,
                                          Gates& gates) {
    if constexpr (kGated) {
      const Gate& gate = call.input_gate;
      if (gate.data == nullptr) return;
      const auto at = [&](int row) { return gate_at<T>(gate, tile.stream.sequence, row, channel); };
      load_strip(call, tile.first, gate.step, at, gates.input);
    }
  }

  /// Asks for the gates of results, and makes inputs of the rows of x from number `first` on.
  __device__ static void pass_gates(const Call& call, const TileRows& tile, int channel, int first,
                                    Gates& gates, Rows& rows) {
    if constexpr (kGated) {
      const Gate& gate = call.output_gate;
      if (gate.data != nullptr) {
#pragma unroll
        for (int t = 0; t < kTileTokens; ++t) {
          const int row = min(tile.first + t, call.tokens - 1);
          load_words(gate_at<T>(gate, tile.stream.sequence, row, channel), gates.output[t]);
        }
      }
      if (call.input_gate.data == nullptr) return;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i >= first) pass_gate<T>(gates.input[i], rows[i]);
      }
    }
  }

  /// The same of rows of a sequence that are not of a strip, from `row` on.
  template <int kCount>
  __device__ static void pass_gates_of(const Call& call, int sequence, int row, int channel,
                                       Words (&rows)[kCount]) {
    if constexpr (kGated) {
      if (call.input_gate.data == nullptr) return;
      const int stream = call.has_query_start_loc ? 0 : sequence;
      const T* from = gate_at<T>(call.input_gate, stream, row, channel);
      Words gates[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) load_words(nth_row(from, call.input_gate.step, i), gates[i]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) pass_gate<T>(gates[i], rows[i]);
    }
  }

  __device__ static void load_history(const Call& call, const Beginning& beginning, int channel,
                                      StateWords (&history)[kHistory]) {
    if (beginning.state.read_slot >= 0) {
      cuda::load_history<TState, kHistory, kGroup, kFeatures>(call, beginning.state, channel,
                                                              history);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) clear_words(history[k]);
    }
  }

  /// `tokens` rows from x on, 1 to 8; in place of those that there are not the last one again.
  __device__ static void load_tokens(const Call& call, const T* x, int tokens, Rows& rows) {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      if (t == kTileTokens / 2 && tokens <= t) break;
      load_words(rows_after(x, call.x_step, min(t, tokens - 1)), rows[kHistory + t]);
    }
  }

  /// An input of the sequence, wherever it lies; its history has numbers below 0.
  __device__ static void load_input(const Call& call, const Beginning& beginning, int input,
                                    int channel, StateWords& words) {
    if (input >= 0) {
      const int row = beginning.first + input;
      Words inputs[1];
      load_words(x_of<T>(call, beginning.sequence, row, channel), inputs[0]);
      pass_gates_of(call, beginning.sequence, row, channel, inputs);
      to_state<T, TState>(inputs[0], words);
    } else if (beginning.state.read_slot >= 0) {
      int column = beginning.state.read_column + kHistory + input;
      if (is_ring<kFeatures>(call)) column = wrapped(call, column);
      load_state_column<TState, kGroup>(
          call, state_element<TState>(call, beginning.state.read_slot, column, channel), words);
    } else {
      clear_words(words);
    }
  }

  /// The last inputs before token `end` to a slot. All are read before the first is written. A ring
  /// takes those from number `first` on, which may be fewer, for it has the others, or more.
  __device__ static void write_state(const Call& call, const Beginning& beginning, int end,
                                     int slot, int first, int channel) {
    const int oldest = end - kHistory;
    StateWords columns[kHistory];
    if (oldest >= 0) {
      const T* x = x_of<T>(call, beginning.sequence, beginning.first + oldest, channel);
      Words inputs[kHistory];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) load_words(nth_row(x, call.x_step, k), inputs[k]);
      pass_gates_of(call, beginning.sequence, beginning.first + oldest, channel, inputs);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) to_state<T, TState>(inputs[k], columns[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        load_input(call, beginning, oldest + k, channel, columns[k]);
      }
    }
    if (!is_ring<kFeatures>(call)) {
      store_state<TState, kHistory, kGroup>(call, slot, channel, columns);
      return;
    }
    const int next = beginning.state.ring_column;
    for (int input = first; input < oldest; ++input) {
      StateWords words;
      load_input(call, beginning, input, channel, words);
      store_state_column<TState, kGroup>(call, slot, wrapped(call, next + input), channel, words);
    }
#pragma unroll
    for (int k = 0; k < kHistory; ++k) {
      if (oldest + k < first) continue;
      store_state_column<TState, kGroup>(call, slot, wrapped(call, next + oldest + k), channel,
                                         columns[k]);
    }
  }

  /// first_kept of op/sequence.hpp for a ring. The inputs from number `needed` on are to be there
  /// afterwards, or as many as it has columns.
  __device__ static int first_kept(const Call& call, const Beginning& beginning, int needed) {
    const bool held = beginning.state.read_slot == beginning.state.write_slot;
    const int columns = static_cast<int>(call.ring_columns.divisor());
    return max(held ? 0 : min(needed, 0), beginning.length - columns);
  }

  /// The snapshots of a sequence that reach back into its history, then its final state: what is
  /// read from the slot it comes from is read before that may be written. Snapshots that replace
  /// the history are left to replace_histories.
  __device__ static void write_states(const Call& call, const Beginning& beginning, int needed,
                                      bool inside, int channel) {
    if constexpr (kFeatures == Features::kAll) {
      for_own_snapshots(call, kFullWarp, beginning.sequence, beginning.length, beginning.state,
                        kHistory, [&](int token, int slot) {
                          if (!inside || replaces_history(beginning.state, slot)) return;
                          write_state(call, beginning, token, slot, token - kHistory, channel);
                        });
    }
    if (!inside || beginning.state.write_slot < 0) return;
    write_state(call, beginning, beginning.length, beginning.state.write_slot,
                first_kept(call, beginning, needed), channel);
  }

  /// Another one of the list: it lies in x, which nobody writes.
  __device__ static void take_snapshot(const Call& call, int number, Channels channels,
                                       std::uint32_t rounds) {
    const ListedSnapshot snapshot = listed_snapshot(call, number);
    if (snapshot.token < kHistory || snapshot.sequence < 0 || snapshot.sequence >= call.sequences) {
      return;
    }
    const Beginning beginning = beginning_of<kFeatures>(call, snapshot.sequence);
    const bool taken = is_taken(call, snapshot, beginning.length, beginning.state);
    if (!taken || replaces_history(beginning.state, snapshot.slot)) return;
    do {
      if (!channels.inside(call)) return;
      write_state(call, beginning, snapshot.token, snapshot.slot, snapshot.token - kHistory,
                  channels.first(call));
    } while (channels.next(call, rounds));
  }

  static constexpr int kNoJoint = -1;
  /// The last row at which a joint may be: a beginning has kHistory tokens in one tile. Wider
  /// windows join nothing, for the registers that hold both histories; they take one after the
  /// other.
  static constexpr bool kJoins = kWidth <= kWidestJoined;
  static constexpr int kLastJoint = kJoins ? kTileTokens - kHistory : 0;

  __device__ static void convolve(const Call& call, const TileTaps& taps, std::uint32_t mask,
                                  Rows& rows, const Gates& gates) {
    convolve_joined<false>(call, taps, mask, kNoJoint, nullptr, rows, gates);
  }

  /// From row `joint` on the rows are those of a sequence that begins there, and what stands before
  /// them is its history.
  template <bool kMayJoin>
  __device__ static void convolve_joined(const Call& call, const TileTaps& taps, std::uint32_t mask,
                                         int joint, const StateWords* history, Rows& rows,
                                         const Gates& gates) {
    convolve_rows(call, taps, mask, rows, gates, [&](int t, int pair, Window& window) {
      if (kMayJoin && t <= kLastJoint && t == joint) {
#pragma unroll
        for (int k = 0; k < kHistory; ++k) window[k] = unpack_pair<TState>(history[k], pair);
      }
    });
  }

  /// In place: results take the registers of inputs that are not needed again. Two channels at a
  /// time, which keeps the fp32 window in few registers. exchange(row, pair, window) may put other
  /// inputs before a row.
  template <typename Exchange>
  __device__ static void convolve_rows(const Call& call, const TileTaps& taps, std::uint32_t mask,
                                       Rows& rows, const Gates& gates, const Exchange& exchange) {
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      // Never happens, but the compiler does not know it, and cannot take all sums at once and
      // spill some: 71 us instead of 66 for 8192 x 8192 with 16 bytes a thread. Nor can it where a
      // strip may end after half of its rows.
      if (pair > 0 && !__any_sync(kFullWarp, mask != 0)) break;
      Window window;
#pragma unroll
      for (int k = 0; k < kHistory; ++k) window[k] = unpack_pair<T>(rows[k], pair);
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        // Short sequences are done.
        if (t == kTileTokens / 2 && mask >> t == 0) break;
        exchange(t, pair, window);
        window[kHistory] = unpack_pair<T>(rows[kHistory + t], pair);
        float2 sum = taps.bias(pair);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          sum.x = __fmaf_rn(taps.tap(k, pair).x, window[k].x, sum.x);
          sum.y = __fmaf_rn(taps.tap(k, pair).y, window[k].y, sum.y);
        }
        float2 operand = window[kHistory];
        if constexpr (kGated) operand = unpack_pair<T>(gates.output[t], pair);
        pack_pair<T>(rows[t], pair, finish<kActivation, kFeatures>(call, sum, operand));
#pragma unroll
        for (int k = 0; k < kHistory; ++k) window[k] = window[k + 1];
      }
    }
  }

  /// Results of the rows of the mask.
  __device__ static void store(const Call& call, T* out, std::uint32_t mask, const Rows& rows) {
    if (mask == kAllTileRows) {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) store_words(nth_row(out, call.out_step, t), rows[t]);
    } else {
#pragma unroll
      for (int t = 0; t < kTileTokens; ++t) {
        if (mask >> t & 1u) store_words(nth_row(out, call.out_step, t), rows[t]);
      }
    }
  }

  /// A head that begins its sequence, whichever it is: up to 8 tokens, then the final state.
  __device__ static void begin(const Call& call) {
    const std::uint32_t sequence = call.head_channel_blocks.divide(blockIdx.x);
    const Channels channels(blockIdx.x - sequence * call.head_channel_blocks.divisor());
    const int channel = channels.first(call);
    TileTaps taps;
    taps.load(call.weights(), channel);  // under way during the lookup
    const Beginning beginning = beginning_of<kFeatures>(call, static_cast<int>(sequence));
    if (beginning.length == 0) return;
    Rows rows;
    const int tokens = min(beginning.length, kTileTokens);
    const std::uint32_t mask = tile_rows_between(0, tokens);
    load_history(call, beginning, channel, reinterpret_cast<Words(&)[kHistory]>(rows));
    load_tokens(call, x_of<T>(call, beginning.sequence, beginning.first, channel), tokens, rows);
    convolve(call, taps, mask, rows, {});
    const bool inside = channels.inside(call);
    if (inside) {
      store(call, out_of<T>(call, beginning.sequence, beginning.first, channel), mask, rows);
    }
    write_states(call, beginning, beginning.length - kHistory, inside, channel);
  }

  __device__ static void fill_row(const Call& call, const Stream& stream, int row, int channel) {
    if (call.padded_rows == PaddedRows::kUntouched) return;
    Words words;
    clear_words(words);
    if (call.padded_rows == PaddedRows::kCopy)
      load_words(x_at<T>(call, stream, row, channel), words);
    store_words(out_at<T>(call, stream, row, channel), words);
  }

  __device__ static void fill_padding(const Call& call, const TileRows& tile, int channel) {
    for (std::uint32_t left = tile.padding; left != 0; left &= left - 1) {
      fill_row(call, tile.stream, tile.first + __ffs(left) - 1, channel);
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

constexpr int resident(int wanted) {
  return wanted < kMostResidentBlocks ? wanted : kMostResidentBlocks;
}

constexpr int tile_blocks_of(Features features, std::size_t element_bytes, int width) {
  if (features == Features::kGated) return gated_tile_blocks(element_bytes, width);
  if (features == Features::kF32States) return kF32StateTileBlocks;
  return tile_blocks(element_bytes, width);
}

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, Features kFeatures>
__global__ void __launch_bounds__(tile_threads(sizeof(T)),
                                  resident(tile_blocks_of(kFeatures, sizeof(T), kWidth)))
    convolve_tiles(const __grid_constant__ Call call) {
  using Kernel = TileKernel<T, TWeight, kWidth, kActivation, kFeatures>;
  overlap_neighbours(call);
  typename Kernel::Rows rows;
  typename Kernel::Gates gates;
  typename Kernel::TileTaps taps;
  TileRows tile;
  typename Kernel::Channels channels;
  Beginning beginning;
  std::uint32_t rounds = 1;
  int tokens = 0;       // of a beginning that are convolved here
  bool loaded = false;  // the rows
  std::uint32_t unit_block = blockIdx.x;
  if constexpr (kFeatures == Features::kAll) {
    if (unit_block < call.snapshot_blocks) {
      const std::uint32_t snapshot = call.snapshot_channel_blocks.divide(unit_block);
      const std::uint32_t block = unit_block - snapshot * call.snapshot_channel_blocks.divisor();
      Kernel::take_snapshot(call, static_cast<int>(snapshot),
                            typename Kernel::Channels(block * kSnapshotRounds), kSnapshotRounds);
      return;
    }
    unit_block -= call.snapshot_blocks;
  }
  if (unit_block < call.head_blocks) {
    const std::uint32_t sequence = call.head_channel_blocks.divide(unit_block);
    const std::uint32_t block = unit_block - sequence * call.head_channel_blocks.divisor();
    rounds = call.head_rounds;
    channels = typename Kernel::Channels(block * rounds);
    taps.load(call.weights(), channels.first(call));  // under way during the lookup
    tile = head_of<kFeatures>(call, static_cast<int>(sequence), beginning);
    if (beginning.length == 0) return;
    if (!call.heads_begin && beginning.length >= kTileTokens) return;
    tokens = min(beginning.length, kTileTokens);
  } else {
    const std::uint32_t number = unit_block - call.head_blocks;
    const std::uint32_t unit = call.channel_blocks.divide(number);
    channels = typename Kernel::Channels(number - unit * call.channel_blocks.divisor());
    const int channel = channels.first(call);
    tile = tile_of(call, static_cast<int>(unit));
    Kernel::load_tile(call, tile, channel, rows);
    Kernel::load_input_gates(call, tile, channel, gates);
    taps.load(call.weights(), channel);
    if (lies_inside<Kernel::kHistory>(call, tile)) {
      // All rows, which the compiler is not to know, see convolve_joined.
      const std::uint32_t mask = call.channels != 0 ? kAllTileRows : 0;
      Kernel::pass_gates(call, tile, channel, 0, gates, rows);
      Kernel::convolve(call, taps, mask, rows, gates);
      if (channels.inside(call)) {
        Kernel::store(call, out_at<T>(call, tile.stream, tile.first, channel), kAllTileRows, rows);
      }
      return;
    }
    if (tile.padding != 0 && channels.inside(call)) {
      Kernel::fill_padding(call, tile, channel);
    }
    if (tile.beginning >= 0) {
      beginning = beginning_of<kFeatures>(call, tile.beginning);
      const int in_tile = tile.first + kTileTokens - beginning.first;
      tokens = min(beginning.length, max(in_tile, Kernel::kHistory));
    }
    if (tile.mask == 0 && tokens == 0) return;
    loaded = tile.mask != 0 || beginning.first - tile.first <= Kernel::kLastJoint;
    if (!loaded) tile.first = beginning.first;
  }
  // Rows of a sequence that comes into the tile, of one that begins in it, or of both; or, after
  // those that come in, of a beginning that reaches into the next tile.
  while (true) {
    const int channel = channels.first(call);
    const bool inside = channels.inside(call);
    const int joint = beginning.first - tile.first;
    const bool joined = tokens > 0 && joint <= Kernel::kLastJoint;
    typename Kernel::StateWords apart[Kernel::kHistory];
    if (joined) {
      static_assert(Kernel::kJoins || kFeatures != Features::kF32States, "has no place in rows");
      auto& in_rows = reinterpret_cast<typename Kernel::StateWords(&)[Kernel::kHistory]>(rows);
      Kernel::load_history(call, beginning, channel, Kernel::kJoins ? apart : in_rows);
      tile.mask |= tile_rows_between(joint, joint + tokens);
    }
    if (!loaded) {
      Kernel::load_tokens(call, x_at<T>(call, tile.stream, tile.first, channel), tokens, rows);
      Kernel::load_input_gates(call, tile, channel, gates);
    }
    Kernel::pass_gates(call, tile, channel, 0, gates, rows);
    Kernel::template convolve_joined<Kernel::kJoins>(
        call, taps, tile.mask, joined ? joint : Kernel::kNoJoint, apart, rows, gates);
    if (inside) {
      Kernel::store(call, out_at<T>(call, tile.stream, tile.first, channel), tile.mask, rows);
    }
    loaded = false;
    if (joined) {
      Kernel::write_states(call, beginning, beginning.length - Kernel::kHistory, inside, channel);
      if (!channels.next(call, rounds)) return;
      taps.load(call.weights(), channels.first(call));
    } else {
      if (tokens == 0) return;
      tile.first = beginning.first;
      tile.mask = 0;
    }
  }
}

/// The same for batches of short sequences: heads begin all of them, tiles search first, and a
/// block of a tile takes several groups of channels in turn.
template <typename T, typename TWeight, int kWidth, KnownActivation kActivation>
__global__ void __launch_bounds__(tile_threads(sizeof(T)), resident(tile_blocks(sizeof(T), kWidth)))
    convolve_short_sequences(const __grid_constant__ Call call) {
  using Kernel = TileKernel<T, TWeight, kWidth, kActivation, Features::kPlain>;
  overlap_neighbours(call);
  if (blockIdx.x < call.head_blocks) return Kernel::begin(call);
  const std::uint32_t number = blockIdx.x - call.head_blocks;
  const std::uint32_t unit = call.channel_blocks.divide(number);
  typename Kernel::Channels channels((number - unit * call.channel_blocks.divisor()) *
                                     kShortSequenceRounds);
  TileRows tile = tile_of(call, static_cast<int>(unit));
  classify_tile<Kernel::kHistory>(call, tile);
  if ((tile.mask | tile.padding) == 0) return;
  typename Kernel::Rows rows;
  typename Kernel::TileTaps taps;
  do {
    const int channel = channels.first(call);
    if (tile.mask != 0) {
      Kernel::load_tile(call, tile, channel, rows);
      taps.load(call.weights(), channel);
      Kernel::convolve(call, taps, tile.mask, rows, {});
      if (channels.inside(call)) {
        Kernel::store(call, out_at<T>(call, tile.stream, tile.first, channel), tile.mask, rows);
      }
    }
    if (tile.padding != 0 && channels.inside(call)) {
      Kernel::fill_padding(call, tile, channel);
    }
  } while (channels.next(call, kShortSequenceRounds));
}

/// The same for calls of no more than a wave of blocks, in which nothing hides the way of one
/// thread: heads begin all sequences, and twice as many threads have half as many channels.
template <typename T, typename TWeight, int kWidth, KnownActivation kActivation>
__global__ void __launch_bounds__(kSmallTileThreads, resident(small_tile_blocks(sizeof(T))))
    convolve_small_tiles(const __grid_constant__ Call call) {
  using Kernel = TileKernel<T, TWeight, kWidth, kActivation, Features::kPlain, kSmallTileThreads,
                            kSmallTileGroup>;
  overlap_neighbours(call);
  if (blockIdx.x < call.head_blocks) return Kernel::begin(call);
  const std::uint32_t number = blockIdx.x - call.head_blocks;
  const std::uint32_t unit = call.channel_blocks.divide(number);
  const typename Kernel::Channels channels(number - unit * call.channel_blocks.divisor());
  const int channel = channels.first(call);
  TileRows tile = tile_of(call, static_cast<int>(unit));
  typename Kernel::Rows rows;
  typename Kernel::TileTaps taps;
  Kernel::load_tile(call, tile, channel, rows);
  taps.load(call.weights(), channel);
  if (lies_inside<Kernel::kHistory>(call, tile)) {
    Kernel::convolve(call, taps, kAllTileRows, rows, {});
    if (channels.inside(call)) {
      Kernel::store(call, out_at<T>(call, tile.stream, tile.first, channel), kAllTileRows, rows);
    }
    return;
  }
  if (tile.mask != 0) {
    Kernel::convolve(call, taps, tile.mask, rows, {});
    if (channels.inside(call)) {
      Kernel::store(call, out_at<T>(call, tile.stream, tile.first, channel), tile.mask, rows);
    }
  }
  if (tile.padding != 0 && channels.inside(call)) Kernel::fill_padding(call, tile, channel);
}

}  // namespace shortconv::cuda
