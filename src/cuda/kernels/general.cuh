// The general kernel: any call that the other kernels do not support, with different dtypes, any
// strides, widths up to 64, unaligned addresses, or prefill in place.
//
// Threads: a thread processes one channel of up to 16 packed rows, of a token block of 8 tokens,
// or, in place and for draft tokens, of a whole sequence. States as in tile.cuh. The thread that
// writes a final state also writes the snapshots that need the history, and in place all of them.
// Other snapshots have their inputs in x; each is a unit after those of the tokens.
//
// Bytes moved: every window is read again from the caches. Ceiling: none is aimed at.
#pragma once

#include <cstdint>

#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/kernels/block_list.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

inline constexpr int kGeneralHistory = kMaxWidth - 1;

/// Processes all tokens of a sequence with x == out. `kept` holds the inputs that later tokens
/// need, in the dtype of x if it is that of the state, otherwise as fp32.
__device__ inline void convolve_in_place(const Problem& p, const TensorPointers& at,
                                         const Sequence& s, std::int64_t sequence,
                                         std::int64_t channel) {
  const int history = history_of<RuntimeTypes>(p);
  const std::int64_t length = s.end - s.begin;
  take_snapshots<RuntimeTypes>(p, at, s, sequence, length + 1, false, channel);
  const bool same = p.state.present && p.state.dtype == p.x.dtype;
  const DType kept_dtype = same ? p.x.dtype : DType::kF32;
  const std::int64_t step = 4 / element_bytes(kept_dtype);  // one word per element
  std::uint32_t kept[kGeneralHistory];                      // input i at index i mod history
  for (int k = 0; k < history; ++k) {
    kept[k] = 0;
    if (s.read_slot < 0) continue;
    move_element(p.state.dtype, at.state,
                 state_index(p, s.read_slot, history_column(p, s, k - history), channel),
                 kept_dtype, kept, k * step);
  }
  take_snapshots<RuntimeTypes>(p, at, s, sequence, length + 1, true, channel);
  // Circular buffers and shift_full_state may take more inputs than `kept` holds, so they take each
  // input when it is read.
  const bool write_early = p.cache_seqlens.present || p.shifted_columns > 0;
  const std::int64_t first = write_early && s.write_slot >= 0 ? first_written_input(p, s) : length;
  const auto write = [&](std::int64_t input, const std::uint32_t* from, std::int64_t index) {
    move_element(kept_dtype, from, index, p.state.dtype, at.state,
                 state_index(p, s.write_slot, written_column(p, s, input, length), channel));
  };
  for (std::int64_t input = first; input < 0; ++input) {
    if (input < -history) {
      move_input<RuntimeTypes>(
          p, at, s, input, channel, at.state,
          state_index(p, s.write_slot, written_column(p, s, input, length), channel));
    } else {
      write(input, kept, (history + input) * step);
    }
  }
  int oldest = 0;
  for (std::int64_t row = s.begin; row < s.end; ++row) {
    std::uint32_t newest = 0;
    move_input_of_row<RuntimeTypes>(p, at, row, channel, kept_dtype, &newest, 0);
    if (row - s.begin >= first) write(row - s.begin, &newest, 0);
    float sum = bias_at(p, at, channel);
    for (int k = 0; k + 1 < p.width; ++k) {
      const int from = oldest + k * p.dilation;
      const int place = from < history ? from : from - history;
      sum = __fmaf_rn(weight_at(p, at, channel, k), load_f32(kept_dtype, kept, place * step), sum);
    }
    sum = __fmaf_rn(weight_at(p, at, channel, p.width - 1), load_f32(kept_dtype, &newest, 0), sum);
    store_result<RuntimeTypes>(p, at, s, row - s.begin, channel, sum);
    kept[oldest] = newest;
    oldest = oldest + 1 < history ? oldest + 1 : 0;
  }
  if (s.write_slot < 0 || write_early) return;
  for (int k = 0; k < history; ++k) {
    const int place = oldest + k < history ? oldest + k : oldest + k - history;
    write(length - history + k, kept, place * step);
  }
}

__global__ void __launch_bounds__(kGeneralThreads)
    convolve_general(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const LaunchParams& grid = params.launch;
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const std::int64_t channel = std::int64_t{block} * kGeneralThreads + threadIdx.x;
  if (channel >= p.channels) return;
  if (unit >= grid.tiles && p.snapshot_count > 0 && !p.in_place) {
    take_listed_snapshot(p, at, unit - grid.tiles, history_of<RuntimeTypes>(p), false, channel);
  } else if (unit >= grid.tiles) {
    pad_outside<RuntimeTypes>(p, at, channel);
  } else if (p.op == Op::kVerify) {
    const Sequence s = sequence_at(p, at, unit);
    for (std::int64_t row = s.begin; row < s.end; ++row) {
      if (s.skipped) {
        pad_element<RuntimeTypes>(p, at, row, channel);
      } else {
        convolve_draft<RuntimeTypes>(p, at, s, unit, row - s.begin, channel);
      }
    }
    if (s.begin >= s.end || s.skipped) return;
    // Each of the two may overwrite history that the other reads.
    const bool elsewhere = s.write_slot != s.read_slot;
    if (elsewhere) write_state_of_channel<RuntimeTypes>(p, at, s, channel);
    write_intermediate_states<RuntimeTypes>(p, at, s, unit, channel);
    if (!elsewhere) write_state_of_channel<RuntimeTypes>(p, at, s, channel);
  } else if (p.in_place) {
    const Sequence s = sequence_at(p, at, unit);
    if (s.begin >= s.end) return;
    if (!s.skipped) return convolve_in_place(p, at, s, unit, channel);
    for (std::int64_t row = s.begin; row < s.end; ++row)
      pad_element<RuntimeTypes>(p, at, row, channel);
  } else if (p.schedule == Schedule::kFlat) {
    const std::int64_t first = std::int64_t{unit} * grid.unit_tokens;
    convolve_rows<RuntimeTypes>(p, at, first, min(first + grid.unit_tokens, p.tokens), channel);
  } else {
    TokenBlock token_block;
    if (!token_block_of_unit(p, at, grid, unit, token_block)) return;
    const Sequence s = sequence_at(p, at, token_block.sequence);
    const std::int64_t length = s.end - s.begin;
    if (token_block.first >= length) return;
    const std::int64_t last =
        token_block.to_the_end ? length : min(token_block.first + kBlockTokens, length);
    if (!s.skipped) {
      return convolve_part<RuntimeTypes>(p, at, s, token_block.sequence,
                                         s.begin + token_block.first, s.begin + last, channel);
    }
    for (std::int64_t token = token_block.first; token < last; ++token) {
      pad_element<RuntimeTypes>(p, at, s.begin + token, channel);
    }
  }
}

/// Writes the snapshots that replace the history of their sequence, in a launch after that of the
/// tiles, all of which may need the history. A thread writes one channel of a snapshot.
__global__ void __launch_bounds__(kGeneralThreads)
    replace_histories(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const LaunchParams& grid = params.launch;
  const std::uint32_t number = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - number * grid.channel_blocks.divisor();
  const std::int64_t channel = std::int64_t{block} * kGeneralThreads + threadIdx.x;
  if (channel >= p.channels) return;
  take_listed_snapshot(p, at, number, 0, true, channel);
}

}  // namespace shortconv::cuda
