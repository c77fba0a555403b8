// Decode: one token per sequence, token-major.
//
// Threads: a thread processes kGroup adjacent channels of one sequence: 16 bytes, or 4 channels in
// small batches, where latency counts for more, with shift_full_state, and for fp32 states beside
// 16-bit rows. It reads the token, the state and the taps, and writes the result and the state
// shifted by one column. Threads share nothing, so a call in place is safe.
//
// Bytes moved: x and out once, the state once in each direction, in whole vectors: with channels
// innermost one vector per column; with columns innermost and no gaps one run of vectors, which is
// transposed in registers. Ceiling: a copy of these bytes; below some 64 sequences the latency of
// slot, then state, then store. In small calls with PDL a thread of each block prefetches the state
// into the L2 cache while the previous kernel ends.
#pragma once

#include <cstdint>

#include "cuda/device/activation.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/gates.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/sequence.cuh"
#include "cuda/device/snapshot.cuh"
#include "cuda/device/state.cuh"
#include "cuda/device/taps.cuh"
#include "cuda/device/tile_groups.cuh"
#include "cuda/device/traits.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// The steps of decode_tokens.
template <typename Traits, int kGroup>
struct DecodeKernel {
  using T = typename Traits::Input;
  using TState = typename Traits::State;
  static constexpr int kWidth = Traits::kWidth, kHistory = Traits::kHistory;
  static constexpr Variant kVariant = Traits::kVariant;
  using Words = std::uint32_t[kWordsOf<T, kGroup>];
  using StateWords = std::uint32_t[kWordsOf<TState, kGroup>];
  using Columns = StateWords[kHistory];
  using Window = StateWords[kWidth];
  using Taps = shortconv::cuda::Taps<typename Traits::Weight, kWidth, kGroup>;

  template <typename Call, typename Place>
  __device__ static T* out_of(const Call& call, const Place& place, std::uint32_t sequence,
                              int channel) {
    if constexpr (kVariant == Variant::kGroups) {
      const TileGroup& group = call.groups[place.group];
      return static_cast<T*>(group.out) + sequence * call.out_sequence_strides[place.group] +
             place.out_column;
    } else {
      return static_cast<T*>(call.out) + sequence * call.out_sequence_stride + channel;
    }
  }

  __device__ static void prefetch(const KernelParams& params, const TState* pool, int sequence,
                                  int channel) {
    constexpr bool kOrdered = kVariant == Variant::kBase || kVariant == Variant::kGated;
    if constexpr (kHasPdl && kOrdered && kGroup == kSmallDecodeGroup) {
      if (params.prefetch_state && threadIdx.x == 0) {
        const int channels = min(static_cast<int>(blockDim.x) * kGroup, params.channels - channel);
        prefetch_history<TState, kHistory>(params, pool, sequence, channels);
      }
    }
  }

  __device__ static void load_gates(const KernelParams& params, int sequence, int channel,
                                    Words& input, Words& output) {
    if constexpr (kVariant == Variant::kGated) {
      const auto load = [&](const Gate& gate, Words& words) {
        constexpr int kRow = 0;
        if (gate.data != nullptr) load_words(gate_at<T>(gate, sequence, kRow, channel), words);
      };
      load(params.input_gate, input);
      load(params.output_gate, output);
    }
  }

  __device__ static void apply_input_gate(const KernelParams& params, const Words& gate,
                                          Words& token) {
    if (kVariant == Variant::kGated && params.input_gate.data != nullptr) {
      apply_gate<T>(gate, token);
    }
  }

  /// Writes the row of a skipped sequence. With a switch the machine code of all variants changes.
  __device__ static void fill_row(const KernelParams& params, Words& token, T* out) {
    if (params.padded_rows == PaddedRows::kUntouched) return;
    if (params.padded_rows == PaddedRows::kZero) clear_words(token);
    store_words(out, token);
  }

  /// Whether the circular buffer has no more columns than the history. All of its columns are then
  /// loaded before it is known where the history begins.
  __device__ static bool is_whole_buffer(const KernelParams& params) {
    return is_circular<kVariant>(params) && params.buffer_columns.divisor() == kHistory;
  }

  /// Whether a state has kWidth columns, before and after.
  __device__ static bool shifts_full_state(const KernelParams& params) {
    return kVariant == Variant::kShiftFullState ||
           (kVariant == Variant::kExtended && params.shift_full_state);
  }

  /// Moves `from` to the first column of a history that is not in a circular buffer.
  __device__ static void move_to_history(const KernelParams& params, const RawState& raw,
                                         const TState*& from) {
    const int column = params.has_read_offsets ? first_column(params, raw) : params.base_column;
    from += column * params.state_column_stride;
    opaque(from);
  }

  /// Loads a history that is not one run of vectors, which begins at `from`.
  __device__ static void load_columns(const KernelParams& params, const SequenceState& s,
                                      int channel, bool whole_buffer, const TState* from,
                                      Columns& history) {
    if (is_circular<kVariant>(params) && !whole_buffer) {
      load_history<TState, kHistory, kGroup, kVariant>(params, s, channel, history);
    } else if (params.state_access == StateAccess::kChannelVectors) {
#pragma unroll
      for (int k = 0; k < kHistory; ++k, from += params.state_column_stride)
        load_words(from, history[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k, from += params.state_column_stride) {
        load_state_column<TState, kGroup>(params, from, history[k]);
      }
    }
  }

  __device__ static void resolve_columns(const KernelParams& params, const RawState& raw,
                                         SequenceState& s) {
    s.cache_seqlen = raw.cache_seqlen;
    resolve_circular_columns<kVariant>(params, s);
  }

  /// Puts the columns of a whole buffer in order, oldest first.
  __device__ static void order_whole_buffer(const KernelParams& params, const RawState& raw,
                                            SequenceState& s, Columns& history) {
    resolve_columns(params, raw, s);
    rotate(history, s.read_column);
  }

  /// Stores the state before token `end`, which is 0 or 1.
  __device__ static void store_columns_before(const KernelParams& params, const SequenceState& s,
                                              int slot, int end, int channel,
                                              const Columns& columns) {
    if (!is_circular<kVariant>(params)) {
      store_state<TState, kHistory, kGroup>(params, slot, channel, columns);
    } else if (params.state_access == StateAccess::kWindowVectors) {
      Columns rotated;
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(columns[k], rotated[k]);
      rotate(rotated, wrap_column(params, kHistory - wrap_column(params, s.next_column + end)));
      store_state<TState, kHistory, kGroup>(params, slot, channel, rotated);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        const int column = wrap_column(params, s.next_column + end + k - kHistory);
        store_state_column<TState, kGroup>(params, slot, column, channel, columns[k]);
      }
    }
  }

  __device__ static void set_write_slot(const KernelParams& params, const RawState& raw,
                                        SequenceState& s) {
    const int write = params.has_write_slots ? raw.write.value() : s.read_slot;
    if (params.writes_state && usable_slot(params, write)) s.write_slot = write;
  }

  /// Writes the snapshots of the sequence: of its history and of the state after the token.
  template <typename StoreBefore>
  __device__ static void write_snapshots(const KernelParams& params, const SequenceState& s,
                                         unsigned lanes, int sequence, const Columns& history,
                                         const Columns& shifted, const StoreBefore& store_before) {
    if constexpr (kVariant == Variant::kExtended) {
      for_sequence_snapshots(params, lanes, sequence, 1, s, 2, [&](int token, int slot) {
        token == 0 ? store_before(slot, 0, history) : store_before(slot, 1, shifted);
      });
    }
  }

  __device__ static void write_full_state(const KernelParams& params, int slot, int channel,
                                          const Window& columns) {
    store_columns<TState, kWidth, kGroup>(state_element<TState>(params, slot, 0, channel),
                                          params.state_column_stride, params.state_channel_stride,
                                          params.state_access, columns);
  }

  /// Writes the state after the token. A circular buffer that holds the older inputs takes only the
  /// token, unless it is one run of vectors.
  template <typename StoreBefore>
  __device__ static void write_state(const KernelParams& params, const SequenceState& s,
                                     int channel, bool shift_full_state, const Window& columns,
                                     const Columns& shifted, const StoreBefore& store_before) {
    if (s.write_slot < 0) return;
    if (shift_full_state) return write_full_state(params, s.write_slot, channel, columns);
    if (is_circular<kVariant>(params) && s.write_slot == s.read_slot &&
        params.state_access != StateAccess::kWindowVectors) {
      store_state_column<TState, kGroup>(params, s.write_slot, s.next_column, channel,
                                         columns[kHistory]);
    } else {
      store_before(s.write_slot, 1, shifted);
    }
  }
};

/// With the loads of runs in functions, the machine code of all variants changes.
template <typename Traits, int kGroup>
__global__ void __launch_bounds__(most_decode_threads(Traits::kVariant == Variant::kCircular),
                                  decode_blocks(Traits::kVariant == Variant::kCircular))
    decode_tokens(const __grid_constant__ CallParams<Traits::kVariant> call) {
  using Kernel = DecodeKernel<Traits, kGroup>;
  using T = typename Traits::Input;
  using TState = typename Traits::State;
  using Columns = typename Kernel::Columns;
  constexpr Variant kVariant = Traits::kVariant;
  const KernelParams& params = forward_params(call);
  pdl_launch_dependents(params);
  const std::uint32_t sequence = make_nonuniform(params.channel_blocks.divide(blockIdx.x));
  const std::uint32_t block = blockIdx.x - sequence * params.channel_blocks.divisor();
  int channel = static_cast<int>(block * blockDim.x + threadIdx.x) * kGroup;
  const unsigned lanes = kVariant == Variant::kExtended  // that search the list of snapshots
                             ? __ballot_sync(kFullWarp, channel < params.channels)
                             : kFullWarp;
  if (channel >= params.channels) return;
  int column = channel;  // of x
  [[maybe_unused]] GroupChannels<32, kGroup> place;
  if constexpr (kVariant == Variant::kGroups) {
    place.block = static_cast<std::uint32_t>(channel) / (32 * kGroup);  // one of each warp
    enter_group<kGroup>(call, place);
    if (!place.is_inside()) return;
    channel = place.channel;
    column = place.column;
  }
  // Small calls are one chain from parameters to slot to state to result. Values that depend
  // neither on the slot nor on the previous kernel are computed before.
  const T* x = static_cast<const T*>(params.x) + sequence * params.x_sequence_stride + column;
  T* out = Kernel::out_of(call, place, sequence, channel);
  const TState* pool = state_element<TState>(params, 0, 0, channel);
  opaque(x);
  opaque(out);
  opaque(pool);
  std::int64_t slot_stride = params.state_slot_stride;
  opaque(slot_stride);
  Kernel::prefetch(params, pool, static_cast<int>(sequence), channel);
  pdl_wait(params);

  typename Kernel::Window columns;  // newest input last
  typename Kernel::Words token;
  RawState raw;
  raw.read = read_slot_of(params, static_cast<int>(sequence));
  load_words(x, token);
  typename Kernel::Words input_gate, output_gate;
  Kernel::load_gates(params, static_cast<int>(sequence), channel, input_gate, output_gate);
  load_rare_state<kVariant>(params, static_cast<int>(sequence), raw);
  const bool whole_buffer = Kernel::is_whole_buffer(params);
  const TState* from = pool;
  if (!is_circular<kVariant>(params)) Kernel::move_to_history(params, raw, from);
  SequenceState s;
  s.read_slot = raw.read.value();
  if (!usable_slot(params, s.read_slot)) return Kernel::fill_row(params, token, out);
  if constexpr (kVariant == Variant::kGroups) {
    if (place.block >= call.convolved_blocks) return store_words(out, token);
  }
  Kernel::apply_input_gate(params, input_gate, token);
  to_state<T, TState>(token, columns[Kernel::kHistory]);
  from += s.read_slot * slot_stride;
  // Taps are loaded after the state, whose latency is longer, and before a run is transposed.
  typename Kernel::Taps taps;
  auto& history = reinterpret_cast<Columns&>(columns);
  const bool shift_full_state = Kernel::shifts_full_state(params);
  if (!whole_buffer) Kernel::resolve_columns(params, raw, s);
  if (shift_full_state && params.state_access == StateAccess::kWindowVectors) {
    std::uint32_t run[Kernel::kWidth * kWordsOf<TState, kGroup>];
    typename Kernel::Window older_first;
    load_words(pool + s.read_slot * params.state_slot_stride, run);
    taps.load(params.weights(), channel);
    split_columns<TState, Kernel::kWidth, kGroup>(run, older_first);
#pragma unroll
    for (int k = 0; k < Kernel::kHistory; ++k) copy_words(older_first[k + 1], history[k]);
  } else if (params.state_access == StateAccess::kWindowVectors) {
    std::uint32_t run[Kernel::kHistory * kWordsOf<TState, kGroup>];
    load_words(from, run);
    taps.load(params.weights(), channel);
    split_columns<TState, Kernel::kHistory, kGroup>(run, history);
  } else {
    Kernel::load_columns(params, s, channel, whole_buffer, from, history);
    taps.load(params.weights(), channel);
  }
  if (whole_buffer) Kernel::order_whole_buffer(params, raw, s, history);
  Kernel::set_write_slot(params, raw, s);
  typename Kernel::Words result;
  const auto& operand = kVariant == Variant::kGated ? output_gate : token;
  convolve_window<T, Traits::kActivation, kVariant, TState>(params, taps, columns, operand, result);
  store_words(out, result);
  auto& shifted = reinterpret_cast<Columns&>(columns[1]);
  const auto store_before = [&](int slot, int end, const Columns& state) {
    Kernel::store_columns_before(params, s, slot, end, channel, state);
  };
  Kernel::write_snapshots(params, s, lanes, static_cast<int>(sequence), history, shifted,
                          store_before);
  Kernel::write_state(params, s, channel, shift_full_state, columns, shifted, store_before);
}

}  // namespace shortconv::cuda
