// One token a sequence, token-major.
//
// Who owns what: a thread owns kGroup adjacent channels of one sequence: 16 bytes, or 4 channels
// where the batch is so small that a short way through counts for more, where windows have an
// older column, or where states are fp32 beside rows of 16 bits. It reads the token, the window,
// the taps; writes the result; writes the window moved on by one. Nothing is shared, so working in
// place is safe.
//
// Bytes moved: x and out once, the state once each way, all in whole vectors: a channel-innermost
// pool has one a column, a window-innermost one is channels x window without gaps, a run of vectors
// that is taken apart in registers. The ceiling is a copy of these bytes; below some 64 sequences
// it is the latency of slot, then state, then store. Of small calls that overlap, a thread of each
// block has the state fetched into the L2 cache while the kernel in front is ending.
#pragma once

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/call.hpp"
#include "cuda/element.cuh"
#include "cuda/gates.cuh"
#include "cuda/memory.cuh"
#include "cuda/overlap.cuh"
#include "cuda/sequence.cuh"
#include "cuda/snapshot.cuh"
#include "cuda/state.cuh"
#include "cuda/taps.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

template <typename T, typename TWeight, int kWidth, KnownActivation kActivation, int kGroup,
          Features kFeatures>
__global__ void __launch_bounds__(most_decode_threads(kFeatures == Features::kRings),
                                  decode_blocks(kFeatures == Features::kRings))
    decode_tokens(const __grid_constant__ Call call) {
  using TState = StateOf<T, kFeatures>;
  constexpr int kHistory = kWidth - 1;
  constexpr int kWords = kWordsOf<T, kGroup>, kStateWords = kWordsOf<TState, kGroup>;
  let_next_start(call);
  const std::uint32_t sequence = of_each_lane(call.channel_blocks.divide(blockIdx.x));
  const std::uint32_t block = blockIdx.x - sequence * call.channel_blocks.divisor();
  const int channel = static_cast<int>(block * blockDim.x + threadIdx.x) * kGroup;
  // The lanes that stay, which look through the list of snapshots.
  const unsigned lanes =
      kFeatures == Features::kAll ? __ballot_sync(kFullWarp, channel < call.channels) : kFullWarp;
  if (channel >= call.channels) return;
  // A call of few sequences is one way from parameters to slot to state to result: what can be
  // known before the slot, and before the kernel in front is done, is not to stand behind them.
  const T* x = static_cast<const T*>(call.x) + sequence * call.x_sequence + channel;
  T* out = static_cast<T*>(call.out) + sequence * call.out_sequence + channel;
  const TState* pool = state_element<TState>(call, 0, 0, channel);
  pin(x);
  pin(out);
  pin(pool);
  std::int64_t slot_step = call.state_slot;
  pin(slot_step);
  constexpr bool kOrdered = kFeatures == Features::kPlain || kFeatures == Features::kGated ||
                            kFeatures == Features::kF32States;
  if constexpr (kOverlaps && kOrdered && kGroup == kSmallDecodeGroup) {
    if (call.early_state && threadIdx.x == 0) {
      const int channels = min(static_cast<int>(blockDim.x) * kGroup, call.channels - channel);
      prefetch_history<TState, kHistory>(call, pool, static_cast<int>(sequence), channels);
    }
  }
  wait_for_previous(call);

  std::uint32_t columns[kWidth][kStateWords];  // the window, newest last
  std::uint32_t token[kWords];
  StatedState stated;
  stated.read = read_slot_of(call, static_cast<int>(sequence));
  load_words(x, token);
  std::uint32_t input_gate[kWords], output_gate[kWords];
  if constexpr (kFeatures == Features::kGated) {
    const auto load = [&](const Gate& gate, std::uint32_t(&words)[kWords]) {
      const int row = 0;
      if (gate.data != nullptr) {
        load_words(gate_at<T>(gate, static_cast<int>(sequence), row, channel), words);
      }
    };
    load(call.input_gate, input_gate);
    load(call.output_gate, output_gate);
  }
  load_rare_state<kFeatures>(call, static_cast<int>(sequence), stated);
  // A ring without further columns is read as it lies, before it is known where it begins.
  const bool whole_ring = is_ring<kFeatures>(call) && call.ring_columns.divisor() == kHistory;
  const TState* from = pool;
  if (!is_ring<kFeatures>(call)) {
    const int column = call.has_read_offsets ? first_column(call, stated) : call.state_base;
    from += column * call.state_column;
    pin(from);
  }
  SequenceState s;
  s.read_slot = stated.read.value();
  if (!usable_slot(call, s.read_slot)) {
    if (call.padded_rows == PaddedRows::kUntouched) return;
    if (call.padded_rows == PaddedRows::kZero) clear_words(token);
    store_words(out, token);
    return;
  }
  if (kFeatures == Features::kGated && call.input_gate.data != nullptr) {
    pass_gate<T>(input_gate, token);
  }
  to_state<T, TState>(token, columns[kHistory]);
  from += s.read_slot * slot_step;
  // The weights are asked for after the state, which comes from further away, and before a window
  // is taken apart, which waits for it.
  Taps<TWeight, kWidth, kGroup> taps;
  auto& history = reinterpret_cast<std::uint32_t(&)[kHistory][kStateWords]>(columns);
  // With an older column a window has kWidth columns, before and after.
  const bool keeps_older =
      kFeatures == Features::kOlder || (kFeatures == Features::kAll && call.keeps_older);
  s.ring_position = stated.ring_position;
  if (!whole_ring) settle_ring<kFeatures>(call, s);
  if (keeps_older && call.state_form == StateForm::kWindowVectors) {
    std::uint32_t window[kWidth * kStateWords], older_first[kWidth][kStateWords];
    load_words(pool + s.read_slot * call.state_slot, window);
    taps.load(call.weights(), channel);
    split_columns<TState, kWidth, kGroup>(window, older_first);
#pragma unroll
    for (int k = 0; k < kHistory; ++k) copy_words(older_first[k + 1], history[k]);
  } else if (call.state_form == StateForm::kWindowVectors) {
    std::uint32_t window[kHistory * kStateWords];
    load_words(from, window);
    taps.load(call.weights(), channel);
    split_columns<TState, kHistory, kGroup>(window, history);
  } else {
    if (is_ring<kFeatures>(call) && !whole_ring) {
      load_history<TState, kHistory, kGroup, kFeatures>(call, s, channel, history);
    } else if (call.state_form == StateForm::kChannelVectors) {
#pragma unroll
      for (int k = 0; k < kHistory; ++k, from += call.state_column) load_words(from, history[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k, from += call.state_column) {
        load_state_column<TState, kGroup>(call, from, history[k]);
      }
    }
    taps.load(call.weights(), channel);
  }
  if (whole_ring) {
    settle_ring<kFeatures>(call, s);
    rotate(history, s.read_column);
  }
  const int write = call.has_write_slots ? stated.write.value() : s.read_slot;
  if (call.keeps_state && usable_slot(call, write)) s.write_slot = write;

  std::uint32_t result[kWords];
  const auto& operand = kFeatures == Features::kGated ? output_gate : token;
  convolve_window<T, kActivation, kFeatures, TState>(call, taps, columns, operand, result);
  store_words(out, result);
  auto& moved_on = reinterpret_cast<std::uint32_t(&)[kHistory][kStateWords]>(columns[1]);
  // The window that ends before `token`, which is 0 or 1.
  const auto store = [&](int slot, int token, const std::uint32_t(&window)[kHistory][kStateWords]) {
    if (!is_ring<kFeatures>(call)) {
      store_state<TState, kHistory, kGroup>(call, slot, channel, window);
    } else if (call.state_form == StateForm::kWindowVectors) {
      std::uint32_t turned[kHistory][kStateWords];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) copy_words(window[k], turned[k]);
      rotate(turned, wrapped(call, kHistory - wrapped(call, s.ring_column + token)));
      store_state<TState, kHistory, kGroup>(call, slot, channel, turned);
    } else {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        const int column = wrapped(call, s.ring_column + token + k - kHistory);
        store_state_column<TState, kGroup>(call, slot, column, channel, window[k]);
      }
    }
  };
  if constexpr (kFeatures == Features::kAll) {
    for_own_snapshots(call, lanes, static_cast<int>(sequence), 1, s, 2, [&](int token, int slot) {
      token == 0 ? store(slot, 0, history) : store(slot, 1, moved_on);
    });
  }
  if (s.write_slot < 0) return;
  if (keeps_older) {
    store_columns<TState, kWidth, kGroup>(state_element<TState>(call, s.write_slot, 0, channel),
                                          call.state_column, call.state_channel, call.state_form,
                                          columns);
    return;
  }
  // A ring that holds the older inputs gets the token alone, one that is a run of windows all.
  if (is_ring<kFeatures>(call) && s.write_slot == s.read_slot &&
      call.state_form != StateForm::kWindowVectors) {
    store_state_column<TState, kGroup>(call, s.write_slot, s.ring_column, channel,
                                       columns[kHistory]);
  } else {
    store(s.write_slot, 1, moved_on);
  }
}

}  // namespace shortconv::cuda
