// Elements and index values of a call by sequence, token and channel.
#pragma once

#include <algorithm>

#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::reference {

/// Entry of a tensor with one index value per sequence.
inline std::int64_t load_entry(const TensorLayout<Axis::kSequence>& layout, const void* data,
                               std::int64_t index, std::int64_t if_absent = 0) {
  return layout.present ? load_index(layout.dtype, data, index * layout.sequence_stride)
                        : if_absent;
}

/// Entry of query_start_loc.
inline std::int64_t load_bound(const TensorLayout<Axis::kSequence>& layout, const void* data,
                               std::int64_t index, std::int64_t tokens) {
  return std::clamp<std::int64_t>(load_entry(layout, data, index), 0, tokens);
}

/// True for negative slots and the null slot.
template <typename AnyProblem>
bool is_padding(const AnyProblem& p, std::int64_t slot) {
  return slot < 0 || (p.has_null_slot && slot == p.null_slot);
}

template <typename Layout>
char* element(const Layout& layout, void* data, std::int64_t offset) {
  return static_cast<char*>(data) + offset * element_bytes(layout.dtype);
}

/// Offset of a packed row. Row r of a dense batch is token r % L of sequence r / L; packed rows
/// have one stride.
template <typename AnyProblem, typename Layout>
std::int64_t row_offset(const AnyProblem& p, const Layout& layout, std::int64_t row) {
  if (p.query_start_loc.present) return row * layout.token_stride;
  return row / p.sequence_tokens * layout.sequence_stride +
         row % p.sequence_tokens * layout.token_stride;
}

/// The first column of a head.
inline std::int64_t column_of(const HeadMap& map, std::int64_t head) {
  return map.offset + head / map.block_heads * map.block_stride +
         head % map.block_heads * map.head_stride;
}

/// Where a channel of the convolution is in a grouped call.
struct GroupedChannel {
  std::int64_t column = 0;  // of x
  double input_scale = 1;
  const TensorLayout<Axis::kSequence, Axis::kToken, Axis::kHead, Axis::kChannel>* out = nullptr;
  void* out_data = nullptr;
  std::int64_t out_offset = 0;  // in a row of the output
};
GroupedChannel grouped_channel(const GroupedProblem& p, const GroupedPointers& at,
                               std::int64_t channel);

struct TensorViews {
  const Problem& p;
  const TensorPointers& at;
  const GroupedProblem* groups = nullptr;  // null: a call without groups
  const GroupedPointers* groups_at = nullptr;

  template <typename Layout>
  std::int64_t row_offset(const Layout& layout, std::int64_t row) const {
    return reference::row_offset(p, layout, row);
  }
  template <typename Layout>
  char* row_element(const Layout& layout, void* data, std::int64_t row,
                    std::int64_t channel) const {
    return element(layout, data, row_offset(layout, row) + channel * layout.channel_stride);
  }
  const char* x(std::int64_t row, std::int64_t channel) const {
    const std::int64_t column =
        groups == nullptr ? channel : grouped_channel(*groups, *groups_at, channel).column;
    return row_element(p.x, at.x, row, column);
  }
  double input_scale(std::int64_t channel) const {
    return groups == nullptr ? 1 : grouped_channel(*groups, *groups_at, channel).input_scale;
  }
  char* out(std::int64_t row, std::int64_t channel) const {
    if (groups == nullptr) return row_element(p.out, at.out, row, channel);
    const GroupedChannel to = grouped_channel(*groups, *groups_at, channel);
    return element(*to.out, to.out_data, row_offset(*to.out, row) + to.out_offset);
  }
  double weight(std::int64_t channel, std::int64_t tap) const {
    const std::int64_t offset = channel * p.weight.channel_stride + tap * p.weight.tap_stride;
    return load_element(p.weight.dtype, element(p.weight, at.weight, offset));
  }
  double bias(std::int64_t channel) const {
    if (!p.bias.present) return 0;
    return load_element(p.bias.dtype, element(p.bias, at.bias, channel * p.bias.channel_stride));
  }
  std::int64_t seq_idx(std::int64_t row) const {
    return load_index(p.seq_idx.dtype, at.seq_idx, row_offset(p.seq_idx, row));
  }

  std::int64_t begin(std::int64_t sequence) const {
    if (!p.query_start_loc.present) return sequence * p.sequence_tokens;
    return load_bound(p.query_start_loc, at.query_start_loc, sequence, p.tokens);
  }
  std::int64_t length(std::int64_t sequence) const {
    return std::max<std::int64_t>(begin(sequence + 1) - begin(sequence), 0);
  }
  std::int64_t read_slot(std::int64_t sequence) const {
    return load_entry(p.read_slots, at.read_slots, sequence, sequence);
  }
  std::int64_t write_slot(std::int64_t sequence) const {
    return load_entry(p.write_slots, at.write_slots, sequence, read_slot(sequence));
  }
  bool continues_from_state(std::int64_t sequence) const {
    switch (p.initial_state) {
      case InitialState::kNone:
        break;
      case InitialState::kAll:
        return true;
      case InitialState::kByFlag:
        return static_cast<const unsigned char*>(
                   at.has_initial_state)[sequence * p.has_initial_state.sequence_stride] != 0;
    }
    return false;
  }

  bool is_usable(std::int64_t slot) const {
    return !is_padding(p, slot) && (!p.state.present || slot < p.slots);
  }
  char* state(std::int64_t slot, std::int64_t column, std::int64_t channel) const {
    return element(p.state, at.state,
                   slot * p.state.slot_stride + column * p.state.column_stride +
                       channel * p.state.channel_stride);
  }
  /// Field 0, 1 or 2 of a row of snapshots: sequence, token, slot.
  std::int64_t snapshot(std::int64_t row, std::int64_t field) const {
    return load_index(p.snapshots.dtype, at.snapshots,
                      row * p.snapshots.entry_stride + field * p.snapshots.column_stride);
  }

  // Draft tokens are counted from the first token of their sequence, which is row `begin`.
  std::int64_t parent(std::int64_t begin, std::int64_t token) const {
    return load_index(p.parents.dtype, at.parents, row_offset(p.parents, begin + token));
  }
  /// The input before a token: another token, -1 for the newest input of the history, and so on.
  std::int64_t before(std::int64_t begin, std::int64_t token) const {
    if (!p.parents.present || token <= 0) return token - 1;
    const std::int64_t parent = this->parent(begin, token);
    return parent >= 0 && parent < token ? parent : -1;
  }
  std::int64_t intermediate_slot(std::int64_t sequence) const {
    return load_entry(p.intermediate_slots, at.intermediate_slots, sequence);
  }
  /// True if the state after a token is written to intermediate_states.
  bool is_captured(std::int64_t sequence, std::int64_t token) const {
    if (!p.intermediate_slots.present) return p.intermediate_states.present;
    const std::int64_t slot = intermediate_slot(sequence);
    return !is_padding(p, slot) && slot < p.intermediate_slot_count &&
           token < p.intermediate_tokens;
  }
};

}  // namespace shortconv::reference
