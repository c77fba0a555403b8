// Groups of channels, norms of heads and gates, for any strides, dtypes and head sizes. Each group,
// all norms together, and the gates are a launch of their own.
//
// Threads: a thread convolves one channel of 16 packed rows, as the general kernel does, or copies
// it, or computes the gates of one head of 16 rows. A warp normalizes one head, of one row or of up
// to 16: a lane adds up adjacent elements, a subtree of the sum, and shuffles add up the subtrees.
//
// Bytes moved: every window is read again from the caches, and normalized rows are read and written
// again. Ceiling: a copy for norms of 16-bit rows, whose lanes have whole vectors; none is aimed at
// for the others.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/search.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/device/token.cuh"
#include "cuda/group_params.hpp"
#include "op/groups.hpp"

namespace shortconv::cuda {

/// What a thread of a group works on: a channel of the group, and packed rows.
struct GroupPart {
  std::uint32_t unit = 0;
  std::int64_t channel = 0;
  std::int64_t first = 0, last = 0;  // rows
};

__device__ inline GroupPart part_of_block(const Problem& p, const LaunchParams& grid) {
  const std::uint32_t unit = grid.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - unit * grid.channel_blocks.divisor();
  const std::int64_t first = std::int64_t{unit} * kGroupTokens;
  return {.unit = unit,
          .channel = std::int64_t{block} * kGroupThreads + threadIdx.x,
          .first = first,
          .last = min(first + kGroupTokens, p.tokens)};
}

/// The pointers of a channel: with them its elements in x and in the output are where those of a
/// call without groups would be.
__device__ inline TensorPointers pointers_of_channel(const GroupKernelParams& params,
                                                     std::int64_t channel) {
  const Problem& p = params.general.problem;
  const GroupLayout& group = params.group;
  const std::int64_t head = channel / group.head_dim, d = channel % group.head_dim;
  const std::int64_t from = (column_of(group.input, head) + d - channel) * p.x.channel_stride;
  const std::int64_t to = head * group.out.head_stride + d - channel;
  TensorPointers at = params.general.pointers;
  at.x = static_cast<char*>(at.x) + from * element_bytes(p.x.dtype);
  at.out = static_cast<char*>(at.out) + to * element_bytes(p.out.dtype);
  return at;
}

__global__ void __launch_bounds__(kGroupThreads)
    convolve_group(const __grid_constant__ GroupKernelParams params) {
  const Problem& p = params.general.problem;
  const GroupPart part = part_of_block(p, params.general.launch);
  if (part.channel >= p.channels) return;
  const TensorPointers at = pointers_of_channel(params, part.channel);
  if (part.unit >= params.general.launch.tiles) {
    take_listed_snapshot(p, at, part.unit - params.general.launch.tiles,
                         history_of<RuntimeTypes>(p), false, part.channel);
  } else {
    convolve_rows<RuntimeTypes>(p, at, part.first, part.last, part.channel);
  }
}

__global__ void __launch_bounds__(kGroupThreads)
    copy_group(const __grid_constant__ GroupKernelParams params) {
  const Problem& p = params.general.problem;
  const GroupPart part = part_of_block(p, params.general.launch);
  if (part.channel >= p.channels) return;
  const TensorPointers at = pointers_of_channel(params, part.channel);
  for (std::int64_t row = part.first; row < part.last; ++row) {
    if (!is_computed_row(p, at, row)) {
      pad_element<RuntimeTypes>(p, at, row, part.channel);
      continue;
    }
    move_element(p.x.dtype, at.x, row_offset(p, row, p.x) + part.channel * p.x.channel_stride,
                 p.out.dtype, at.out, row_offset(p, row, p.out) + part.channel);
  }
}

__device__ inline float sum_over_warp(float sum) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    sum = rounded_sum(sum, __shfl_xor_sync(kFullWarp, sum, distance));
  }
  return sum;
}

/// As normalize_head, of adjacent elements: kElements of a lane, which are all in the head or none.
template <typename T, int kElements>
__device__ inline void normalize_vectors(const void* from, void* to, std::int64_t head_dim,
                                         const L2Norm& norm) {
  constexpr int kPairs = kElements / 2;
  const int first = static_cast<int>(threadIdx.x % 32) * kElements;
  std::uint32_t words[kWordsOf<T, kElements>] = {};
  if (first < head_dim) load_words(static_cast<const T*>(from) + first, words);
  float sums[kElements];
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const float2 two = unpack_pair<T>(words, pair);
    sums[2 * pair] = rounded_product(two.x, two.x);
    sums[2 * pair + 1] = rounded_product(two.y, two.y);
  }
#pragma unroll
  for (int distance = 1; distance < kElements; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kElements; i += 2 * distance) {
      sums[i] = rounded_sum(sums[i], sums[i + distance]);
    }
  }
  const float inverse = inverse_norm(sum_over_warp(sums[0]), norm.eps);
  if (first >= head_dim) return;
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const float2 two = unpack_pair<T>(words, pair);
    pack_pair<T>(words, pair,
                 {normalized(two.x, inverse, norm.scale), normalized(two.y, inverse, norm.scale)});
  }
  store_words(static_cast<T*>(to) + first, words);
}

/// With `elements` of a lane. False: not possible.
template <typename T>
__device__ inline bool normalize_vectors(const void* from, void* to, std::int64_t head_dim,
                                         std::int64_t elements, const L2Norm& norm) {
  const std::uintptr_t addresses =
      reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  const std::int64_t bytes = elements * static_cast<std::int64_t>(sizeof(T));
  if (head_dim % elements != 0 || addresses % bytes != 0) return false;
  if (elements == 4) {
    normalize_vectors<T, 4>(from, to, head_dim, norm);
  } else if (elements == 8) {
    normalize_vectors<T, 8>(from, to, head_dim, norm);
  } else {
    return false;
  }
  return true;
}

/// All lanes of a warp call it for one head. `from` and `to` are the first elements.
__device__ inline void normalize_head(DType dtype, const void* from, std::int64_t from_stride,
                                      void* to, std::int64_t to_stride, std::int64_t head_dim,
                                      const L2Norm& norm) {
  constexpr int kLanes = 32;
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  std::int64_t elements = 1;  // of a lane, a power of two
  while (elements * kLanes < head_dim) elements *= 2;
  if (from_stride == 1 && to_stride == 1) {
    if (dtype == DType::kBF16 && normalize_vectors<BF16>(from, to, head_dim, elements, norm)) {
      return;
    }
    if (dtype == DType::kF16 && normalize_vectors<F16>(from, to, head_dim, elements, norm)) {
      return;
    }
  }
  const std::int64_t first = min(lane * elements, head_dim);
  const std::int64_t last = min(first + elements, head_dim);
  float sum = tree_sum(last - first, [&](std::int64_t i) {
    const float element = load_f32(dtype, from, (first + i) * from_stride);
    return rounded_product(element, element);
  });
  const float inverse = inverse_norm(sum_over_warp(sum), norm.eps);
  for (std::int64_t i = lane; i < head_dim; i += kLanes) {
    store_f32(dtype, to, i * to_stride,
              normalized(load_f32(dtype, from, i * from_stride), inverse, norm.scale));
  }
}

/// The warp's number in the grid.
__device__ inline std::int64_t warp_number() {
  return (std::int64_t{blockIdx.x} * kGroupThreads + threadIdx.x) / 32;
}

__device__ inline std::int64_t shuffle(std::int64_t number, int lane) {
  const auto bits = static_cast<std::uint64_t>(number);
  const std::uint64_t low = __shfl_sync(kFullWarp, static_cast<std::uint32_t>(bits), lane);
  const std::uint64_t high = __shfl_sync(kFullWarp, static_cast<std::uint32_t>(bits >> 32), lane);
  return static_cast<std::int64_t>(high << 32 | low);
}

__global__ void __launch_bounds__(kGroupThreads)
    normalize_groups(const __grid_constant__ NormKernelParams params) {
  const Problem& p = params.general.problem;
  const std::int64_t tile = warp_number() / params.heads;
  std::int64_t head = warp_number() % params.heads;
  const NormGroup* group = params.groups;
  for (; head >= group->heads; ++group) head -= group->heads;
  pdl_wait();  // for the tiles
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = tile * params.rows + lane;  // a lane finds one of the rows
  const bool is_row = lane < params.rows && row < p.tokens;
  std::uint32_t rows =
      __ballot_sync(kFullWarp, is_row && is_computed_row(p, params.general.pointers, row));
  const std::int64_t offset = is_row ? packed_row_offset(p.sequence_tokens, row, *group) : 0;
  for (; rows != 0; rows &= rows - 1) {
    const std::int64_t element =
        shuffle(offset, __ffs(static_cast<int>(rows)) - 1) + head * group->head_stride;
    void* const first = static_cast<char*>(group->out) + element * element_bytes(group->dtype);
    normalize_head(group->dtype, first, 1, first, 1, group->head_dim, group->norm);
  }
}

__global__ void __launch_bounds__(kGroupThreads)
    l2_norm_heads(const __grid_constant__ L2NormCall call) {
  const std::int64_t row = warp_number() / call.heads, head = warp_number() % call.heads;
  if (row >= call.rows) return;
  const auto offset = [&](const auto& layout) {
    return (packed_row_offset(call.sequence_tokens, row, layout) + head * layout.head_stride) *
           element_bytes(layout.dtype);
  };
  normalize_head(call.x.dtype, static_cast<const char*>(call.x_data) + offset(call.x),
                 call.x.channel_stride, static_cast<char*>(call.out_data) + offset(call.out),
                 call.out.channel_stride, call.head_dim, call.norm);
}

/// The gates of a head in a row, or zeros.
__device__ inline void store_gates_of_head(const GateProblem& p, const GatePointers& at,
                                           std::int64_t sequence_tokens, std::int64_t row,
                                           std::int64_t head, bool zeros) {
  const auto element = [&](const auto& layout, const HeadMap& map) {
    return packed_row_offset(sequence_tokens, row, layout) +
           column_of(map, head) * layout.channel_stride;
  };
  const auto store = [&](const auto& layout, void* to, float value) {
    static_cast<float*>(
        to)[packed_row_offset(sequence_tokens, row, layout) + head * layout.head_stride] = value;
  };
  float decay = 0, beta = 0;
  if (!zeros) {
    decay = decay_gate(p.decay, load_f32(p.a.dtype, at.a, element(p.a, p.a_map)),
                       load_f32(DType::kF32, at.a_log, head * p.a_log.head_stride),
                       load_f32(p.dt_bias.dtype, at.dt_bias, head * p.dt_bias.head_stride));
    beta = sigmoid(load_f32(p.b.dtype, at.b, element(p.b, p.b_map)));
    if (p.round_beta) beta = rounded_to(p.b.dtype, beta);
    beta = rounded_product(beta, p.beta_factor);
  }
  store(p.g, at.g, decay);
  store(p.beta, at.beta, beta);
}

__global__ void __launch_bounds__(kGroupThreads)
    store_gates(const __grid_constant__ GateKernelParams params) {
  const Problem& p = params.general.problem;
  const GroupPart part = part_of_block(p, params.general.launch);  // its channel is a head
  if (part.channel >= params.gates.heads) return;
  for (std::int64_t row = part.first; row < part.last; ++row) {
    const bool zeros = !is_computed_row(p, params.general.pointers, row);
    if (zeros && p.padded_rows == PaddedRows::kUntouched) continue;
    store_gates_of_head(params.gates, params.at, p.sequence_tokens, row, part.channel, zeros);
  }
}

__global__ void __launch_bounds__(kGroupThreads)
    delta_gates(const __grid_constant__ GatesCall call) {
  const std::int64_t number = std::int64_t{blockIdx.x} * kGroupThreads + threadIdx.x;
  const std::int64_t row = number / call.gates.heads, head = number % call.gates.heads;
  if (row >= call.rows) return;
  store_gates_of_head(call.gates, call.at, call.sequence_tokens, row, head, false);
}

}  // namespace shortconv::cuda
