#include "cuda/host/memory_layout.hpp"

#include <algorithm>
#include <array>

#include "shortconv/argument_table.hpp"

namespace shortconv::cuda {
namespace {

/// Whether steps along an axis keep groups of `group` elements aligned.
bool keeps_groups(std::int64_t extent, std::int64_t stride, std::int64_t group) {
  return extent <= 1 || is_multiple(stride, group);
}

constexpr std::int64_t kMaxCount = 0x7fffffff;

/// The stride that KernelParams has as 32 bits of bytes: of a list of indices, or from token to
/// token; 0 if there is none.
template <Axis... kAxes>
std::int64_t short_stride(const TensorLayout<kAxes...>& layout) {
  constexpr bool kList = sizeof...(kAxes) == 1 && ((kAxes == Axis::kSequence) && ...);
  constexpr bool kTokens = ((kAxes == Axis::kToken) || ...) && !((kAxes == Axis::kColumn) || ...);
  if constexpr (kList)
    return layout.sequence_stride;
  else if constexpr (kTokens)
    return layout.token_stride;
  else
    return 0;
}

}  // namespace

bool has_f32_states(const Problem& p) {
  return p.state.present && p.state.dtype == DType::kF32 && p.x.dtype != DType::kF32;
}

bool has_sized_types(const Problem& p) {
  return !p.state.present || p.state.dtype == p.x.dtype || has_f32_states(p);
}

bool has_one_type(const Problem& p) { return p.x.dtype == p.out.dtype && has_sized_types(p); }

bool is_dense(const Problem& p) { return !p.query_start_loc.present; }

bool has_single_tokens(const Problem& p) {
  return is_dense(p) && p.sequence_tokens == 1 && !p.seq_idx.present;
}

bool is_token_major(const Problem& p, std::int64_t group) {
  const std::int64_t rows = is_dense(p) ? p.sequence_tokens : p.tokens;
  const std::int64_t sequences = is_dense(p) ? p.sequences : 1;
  if (!is_multiple(p.channels, group)) return false;
  return std::ranges::all_of(
      std::to_array({&p.x, &p.out, &p.input_gate, &p.output_gate}), [&](const auto* tensor) {
        return !tensor->present ||
               (tensor->channel_stride == 1 && keeps_groups(rows, tensor->token_stride, group) &&
                keeps_groups(sequences, tensor->sequence_stride, group));
      });
}

bool is_countable(const Problem& p) {
  constexpr std::int64_t kMaxStride =
      (std::int64_t{1} << 25) - 1;  // in bytes, times 8 rows of a tile
  std::int64_t bits = 0;            // OR of all magnitudes
  visit_tensors(
      [&](const Argument&, const auto& layout) {
        const std::int64_t stride = short_stride(layout);
        bits |= stride ^ (stride >> 63);
      },
      p);
  return bits <= kMaxStride && p.tokens < kMaxCount - 64 && p.sequences < kMaxCount &&
         p.slots < kMaxCount && p.channels < kMaxCount - 4096 && p.state_columns < kMaxCount &&
         p.intermediate_slot_count < kMaxCount && p.intermediate_tokens < kMaxCount;
}

std::int64_t window_columns(const Problem& p) { return p.width - 1 + p.shifted_columns; }

std::int64_t run_vector(std::int64_t columns, std::int64_t group, DType dtype) {
  const std::int64_t limit = 16 / element_bytes(dtype), run = columns * group;
  return std::min(run & -run, limit);
}

StateAccess state_access(const Problem& p, std::int64_t group) {
  const auto& state = p.state;
  if (!state.present || !keeps_groups(p.slots, state.slot_stride, group)) {
    return StateAccess::kElements;
  }
  if (state.channel_stride == 1 && keeps_groups(p.state_columns, state.column_stride, group)) {
    return StateAccess::kChannelVectors;
  }
  // A pool with more columns has gaps between the windows of neighbouring channels.
  const std::int64_t window = window_columns(p);
  const bool run = p.state_columns == window && state.channel_stride == window &&
                   (window == 1 || state.column_stride == 1);
  return run && keeps_groups(p.slots, state.slot_stride, run_vector(window, group, state.dtype))
             ? StateAccess::kWindowVectors
             : StateAccess::kElements;
}

StateAccess intermediate_access(const Problem& p, std::int64_t group) {
  const auto& to = p.intermediate_states;
  const std::int64_t history = p.width - 1;
  const bool by_slot = p.intermediate_slots.present;
  const std::int64_t slots = by_slot ? p.intermediate_slot_count : p.sequences;
  const std::int64_t tokens = by_slot       ? p.intermediate_tokens
                              : is_dense(p) ? p.sequence_tokens
                                            : p.tokens;
  const auto keeps = [&](std::int64_t vector) {
    return keeps_groups(slots, to.sequence_stride, vector) &&
           keeps_groups(tokens, to.token_stride, vector);
  };
  if (!to.present || !keeps(group)) return StateAccess::kElements;
  if (to.channel_stride == 1 && keeps_groups(history, to.column_stride, group)) {
    return StateAccess::kChannelVectors;
  }
  const bool run = to.channel_stride == history && (history == 1 || to.column_stride == 1);
  return run && keeps(run_vector(history, group, p.state.dtype)) ? StateAccess::kWindowVectors
                                                                 : StateAccess::kElements;
}

namespace {
bool is_aligned(const void* address, std::int64_t bytes) {
  return is_multiple(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address)), bytes);
}
}  // namespace

bool has_aligned_rows(const Alignment& needed, const TensorPointers& at) {
  return is_aligned(at.x, needed.rows) && is_aligned(at.out, needed.rows) &&
         is_aligned(at.input_gate, needed.rows) && is_aligned(at.output_gate, needed.rows);
}

void restrict_to_alignment(const Alignment& needed, const TensorPointers& at,
                           LaunchParams& launch) {
  if (!is_aligned(at.state, needed.state)) launch.state_access = StateAccess::kElements;
  if (!is_aligned(at.intermediate_states, needed.intermediate_states)) {
    launch.intermediate_access = StateAccess::kElements;
  }
  if (!is_aligned(at.weight, 16) || !is_aligned(at.bias, 16)) launch.packed_taps = false;
}

}  // namespace shortconv::cuda
