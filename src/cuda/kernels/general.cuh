// The general kernels: any prefill that the other kernels do not support, with different dtypes,
// any strides, widths up to 64, unaligned addresses, or in place. One token of each sequence is in
// general_decode.cuh, verify in general_verify.cuh.
//
// Threads: a thread processes one channel of up to 64 packed rows or of a token block of 8 tokens.
// States as in tile.cuh. The thread that writes a final state also writes the snapshots that need
// the history. Other snapshots have their inputs in x; each is a unit after those of the tokens. In
// place, and with wide windows in long sequences, a block processes 32 or 128 channels of a
// sequence.
//
// Bytes moved: x and out once, and again the inputs before the first row of a thread; states once
// in each direction. Ceiling: twice a copy of these bytes, because each load and store moves one
// element. The multiplications of 64 taps take as long.
#pragma once

#include <cstdint>

#include "cuda/device/general_thread.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/kernels/block_list.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// find_sequence of op/sequence.hpp, with all lanes of a warp, which look for the same row.
__device__ inline std::int64_t find_sequence_by_warp(const Problem& p, const TensorPointers& at,
                                                     std::int64_t row) {
  if (!p.query_start_loc.present) return row / p.sequence_tokens;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // The number of sequences that begin at or before the row is in [low, high].
  std::int64_t low = 0, high = p.sequences;
  while (low < high) {
    const std::int64_t stride = (high - low + 31) / 32;
    const std::int64_t probe = low + (lane + 1) * stride - 1;
    const bool begun = probe < high && sequence_begin(p, at, probe) <= row;
    low += __popc(__ballot_sync(kFullWarp, begun)) * stride;
    high = min(high, low + stride - 1);
  }
  return low - 1;
}

/// The packed rows of a unit, from those of `sequence` on. All lanes of a warp call it.
struct UnitRows {
  std::int64_t sequence = 0, begin = 0, end = 0;

  __device__ UnitRows(const Problem& p, const TensorPointers& at, const LaunchParams& grid,
                      std::uint32_t unit) {
    if (unit >= grid.tiles) return;
    if (p.schedule == Schedule::kFlat) {
      begin = std::int64_t{unit} * grid.unit_tokens;
      end = min(begin + grid.unit_tokens, p.tokens);
      sequence = max(find_sequence_by_warp(p, at, begin), std::int64_t{0});
      return;
    }
    TokenBlock token_block;
    if (!token_block_of_unit(p, at, grid, unit, token_block)) return;
    sequence = token_block.sequence;
    const Sequence s = sequence_at(p, at, sequence);
    begin = s.begin + token_block.first;
    if (begin < s.end) end = token_block.to_the_end ? s.end : min(begin + kBlockTokens, s.end);
  }
  __device__ bool is_empty() const { return begin >= end; }
};

/// What units after those of the tokens do for a channel.
template <typename Types>
__device__ inline void process_other_unit(const Problem& p, const TensorPointers& at,
                                          std::uint32_t unit, std::int64_t channel) {
  if (p.snapshot_count == 0) return pad_outside<Types>(p, at, channel);
  take_listed_snapshot(p, at, unit, history_of<Types>(p), false, channel);
}

/// Types: of runtime_strip.cuh.
template <typename Types>
__global__ void __launch_bounds__(kGeneralThreads, general_min_blocks(Types::kWidth))
    convolve_general(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const std::uint32_t tiles = params.launch.tiles;
  const auto [unit, channel] = GeneralThread(params.launch, kGeneralThreads);
  const UnitRows rows(p, at, params.launch, unit);
  if (channel >= p.channels) return;
  if (unit >= tiles) return process_other_unit<Types>(p, at, unit - tiles, channel);
  if (rows.is_empty()) return;
  convolve_rows_from<Types>(p, at, rows.sequence, rows.begin, rows.end, channel);
}

/// The state of a sequence, and all of its snapshots. Not inlined: otherwise the loop of
/// convolve_whole_sequences has its inputs in local memory.
template <typename Types>
__device__ __noinline__ void write_states(const Problem& p, const TensorPointers& at,
                                          const Sequence& s, std::int64_t sequence,
                                          std::int64_t channel) {
  const std::int64_t end = s.end - s.begin + 1;
  take_snapshots<Types>(p, at, s, sequence, end, false, channel);
  RuntimeStrips<Types>(p, at, s, channel).write_state();
  take_snapshots<Types>(p, at, s, sequence, end, true, channel);
}

/// A block processes kChannels channels of a sequence, perhaps in place, in steps of a strip for
/// each thread. The inputs of a step and those before it are in shared memory, as fp32; when all
/// threads have stored theirs, results may overwrite them in x, and the tokens of the next step are
/// being loaded. The threads of the last strip write the state and the snapshots, from inputs that
/// they load before the first step ends, while all of them are in x.
template <typename Types, int kChannels>
__global__ void __launch_bounds__(max_whole_threads(Types::kWidth, kChannels),
                                  min_whole_blocks(Types::kWidth, kChannels))
    convolve_whole_sequences(const __grid_constant__ GeneralParams params) {
  using Strips = RuntimeStrips<Types>;
  constexpr int kKeptInputs = Types::kWidth == 0 ? 1 : Types::kWidth - 1;
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const auto [unit, channel] = GeneralThread(params.launch, kChannels);
  const int lane = static_cast<int>(threadIdx.x) % kChannels;
  const int strip = static_cast<int>(threadIdx.x) / kChannels;
  const int block_strips = static_cast<int>(blockDim.x) / kChannels;
  const bool inside = channel < p.channels;
  if (unit >= params.launch.tiles) {
    if (inside && strip == 0) pad_outside<Types>(p, at, channel);
    return;
  }
  const Sequence s = sequence_at(p, at, unit);
  const std::int64_t length = s.end - s.begin;
  if (length <= 0) return;
  if (s.skipped) {
    if (inside && strip == 0) pad_rows<Types>(p, at, s.begin, s.end, channel);
    return;
  }
  const int history = history_of<Types>(p);
  const int step = block_strips * kGeneralStripTokens;
  const Strips strips(p, at, s, inside ? channel : 0);
  float* rows = reinterpret_cast<float*>(dynamic_shared_memory()) + lane;
  float* next_rows = rows + (history + step) * kChannels;
  typename Strips::RawTokens raw;
  const auto load_strip = [&](std::int64_t first) {
    const int count = Strips::tokens_of_strip(first, length);
    if (inside && count > 0) strips.load_strip(first, count, raw);
  };
  load_strip(strip * kGeneralStripTokens);
  typename Strips::Window window(strips);
  if constexpr (Types::kWidth == 0) {
    window.share(next_rows + (history + step) * kChannels, kChannels);
  }
  if (Types::kWidth != 0 || strip == 0) strips.load_taps(window);
  for (int k = strip; inside && k < history; k += block_strips) {
    rows[k * kChannels] = strips.input(k - history);
  }
  const bool writes_state = inside && strip == block_strips - 1;
  const bool state_is_in_x = Types::kWidth != 0 && p.snapshot_count == 0 && strips.state_is_in_x();
  RawElements<kKeptInputs> state;
  if (state_is_in_x) {
    if (writes_state) strips.load_state(state);
  } else {
    __syncthreads();
    if (writes_state) write_states<Types>(p, at, s, unit, channel);
  }
  for (std::int64_t begin = 0; begin < length; begin += step) {
    const std::int64_t first = begin + strip * kGeneralStripTokens;
    const int count = Strips::tokens_of_strip(first, length);
    float tokens[kGeneralStripTokens];
    float* strip_rows = rows + strip * kGeneralStripTokens * kChannels;
    if (inside && count > 0) {
      strips.convert_strip(first, count, raw, tokens);
#pragma unroll
      for (int t = 0; t < kGeneralStripTokens; ++t) {
        strip_rows[(history + t) * kChannels] = tokens[t];
      }
      load_strip(first + step);
    }
    __syncthreads();
    if (begin == 0 && state_is_in_x && writes_state) strips.store_state(state);
    for (int k = strip; k < history; k += block_strips) {
      next_rows[k * kChannels] = rows[(step + k) * kChannels];
    }
    if (inside && count > 0) {
      strips.convolve_strip(window, strip_rows, kChannels, first, count, tokens);
    }
    float* const last_rows = rows;
    rows = next_rows;
    next_rows = last_rows;
  }
}

/// Writes the snapshots that replace the history of their sequence, in a launch after that of the
/// tiles, all of which may need the history. A thread writes one channel of a snapshot.
__global__ void __launch_bounds__(kGeneralThreads)
    replace_histories(const __grid_constant__ GeneralParams params) {
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const auto [number, channel] = GeneralThread(params.launch, kGeneralThreads);
  if (channel >= p.channels) return;
  take_listed_snapshot(p, at, number, 0, true, channel);
}

}  // namespace shortconv::cuda
