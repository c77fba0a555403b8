// States in the tile kernels: histories, final states and snapshots of sequences.
#pragma once

#include <cstdint>

#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/sequence.cuh"
#include "cuda/device/snapshot.cuh"
#include "cuda/device/state.cuh"
#include "cuda/device/tile_loader.cuh"
#include "cuda/device/tile_rows.cuh"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

template <typename Shape>
struct TileState {
  using T = typename Shape::T;
  using TState = typename Shape::TState;
  using Words = typename Shape::Words;
  using StateWords = typename Shape::StateWords;
  using Channels = typename Shape::Channels;
  using Gates = TileGates<Shape>;
  static constexpr Variant kVariant = Shape::kVariant;
  static constexpr int kHistory = Shape::kHistory, kGroup = Shape::kGroup;

  __device__ static void load_history(const KernelParams& params, const SequenceStart& start,
                                      int channel, StateWords (&history)[kHistory]) {
    if (start.state.read_slot >= 0) {
      cuda::load_history<TState, kHistory, kGroup, kVariant>(params, start.state, channel, history);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) clear_words(history[k]);
    }
  }

  /// Loads an input of the sequence: a token in x, from 0 on, or an input of the history, below 0.
  /// Here and below, `x_column` is where x has the channel.
  __device__ static void load_input(const KernelParams& params, const SequenceStart& start,
                                    int input, int channel, int x_column, StateWords& words) {
    if (input >= 0) {
      const int row = start.first + input;
      Words inputs[1];
      load_words(x_of<T>(params, start.sequence, row, x_column), inputs[0]);
      Gates::apply_to_rows(params, start.sequence, row, channel, inputs);
      to_state<T, TState>(inputs[0], words);
    } else if (start.state.read_slot >= 0) {
      int column = start.state.read_column + kHistory + input;
      if (is_circular<kVariant>(params)) column = wrap_column(params, column);
      load_state_column<TState, kGroup>(
          params, state_element<TState>(params, start.state.read_slot, column, channel), words);
    } else {
      clear_words(words);
    }
  }

  /// Writes the state after the inputs before token `end` to a slot. All of its inputs are read
  /// before the first is written. A circular buffer takes the inputs from `first` on: fewer than
  /// the history if it has the others already, or more. Split into functions, the machine code of
  /// tiles and trees changes.
  __device__ static void write_state(const KernelParams& params, const SequenceStart& start,
                                     int end, int slot, int first, int channel, int x_column) {
    const int oldest = end - kHistory;
    StateWords columns[kHistory];
    if (oldest >= 0) {
      const T* x = x_of<T>(params, start.sequence, start.first + oldest, x_column);
      Words inputs[kHistory];
#pragma unroll
      for (int k = 0; k < kHistory; ++k)
        load_words(nth_row(x, params.x_stride_bytes, k), inputs[k]);
      Gates::apply_to_rows(params, start.sequence, start.first + oldest, channel, inputs);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) to_state<T, TState>(inputs[k], columns[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        load_input(params, start, oldest + k, channel, x_column, columns[k]);
      }
    }
    if (!is_circular<kVariant>(params)) {
      store_state<TState, kHistory, kGroup>(params, slot, channel, columns);
      return;
    }
    const int next = start.state.next_column;
    for (int input = first; input < oldest; ++input) {
      StateWords words;
      load_input(params, start, input, channel, x_column, words);
      store_state_column<TState, kGroup>(params, slot, wrap_column(params, next + input), channel,
                                         words);
    }
#pragma unroll
    for (int k = 0; k < kHistory; ++k) {
      if (oldest + k < first) continue;
      store_state_column<TState, kGroup>(params, slot, wrap_column(params, next + oldest + k),
                                         channel, columns[k]);
    }
  }

  /// Writes the snapshots of a sequence that need its history, then its final state, so that the
  /// history is read before its slot is written. The kernel replace_histories writes the snapshots
  /// that overwrite it. `needed` as for first_written_input.
  __device__ static void write_states(const KernelParams& params, const SequenceStart& start,
                                      int needed, bool inside, int channel, int x_column) {
    if constexpr (kVariant == Variant::kExtended) {
      for_sequence_snapshots(params, kFullWarp, start.sequence, start.length, start.state, kHistory,
                             [&](int token, int slot) {
                               if (!inside || replaces_history(start.state, slot)) return;
                               write_state(params, start, token, slot, token - kHistory, channel,
                                           x_column);
                             });
    }
    if (!inside || start.state.write_slot < 0) return;
    write_state(params, start, start.length, start.state.write_slot,
                first_written_input(params, start, needed), channel, x_column);
  }

  /// Writes a row of the list if all inputs of the snapshot are in x, which no thread writes.
  __device__ static void take_snapshot(const KernelParams& params, int number, Channels channels,
                                       std::uint32_t rounds) {
    const SnapshotRow snapshot = load_snapshot_row(params, number);
    if (snapshot.token < kHistory || snapshot.sequence < 0 ||
        snapshot.sequence >= params.sequences) {
      return;
    }
    const SequenceStart start = sequence_start<kVariant>(params, snapshot.sequence);
    const bool taken = is_taken(params, snapshot, start.length, start.state);
    if (!taken || replaces_history(start.state, snapshot.slot)) return;
    do {
      if (!channels.inside(params)) return;
      const int channel = channels.first(params);
      write_state(params, start, snapshot.token, snapshot.slot, snapshot.token - kHistory, channel,
                  channel);
    } while (channels.next(params, rounds));
  }

 private:
  /// first_written_input of op/sequence.hpp for a circular buffer, which then holds the inputs from
  /// `needed` on, or as many as it has columns.
  __device__ static int first_written_input(const KernelParams& params, const SequenceStart& start,
                                            int needed) {
    const bool held = start.state.read_slot == start.state.write_slot;
    const int columns = static_cast<int>(params.buffer_columns.divisor());
    return max(held ? 0 : min(needed, 0), start.length - columns);
  }
};

}  // namespace shortconv::cuda
