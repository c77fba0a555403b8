// Histories, final states and snapshots of a block of channels. Each history is read once from its
// slot; each final state and snapshot is written once. The ceiling is memcpy.
#include <cstring>

#include "core/capability.hpp"
#include "cpu/move.hpp"
#include "cpu/worker.hpp"

namespace shortconv::cpu {

bool Worker::uses_slots_directly() const {
  return has_only_rows_ && (!p_.state.present || p_.state.channel_stride == 1) &&
         !p_.cache_seqlens.present && p_.shifted_columns == 0 && !p_.input_gate.present &&
         !replaces_histories_ && !has_general_kernels(p_);
}

void Worker::load_history(const Sequence& s) {
  const int history = history_of(p_);
  if (s.read_slot < 0) {
    const std::int64_t bytes = history * pitch_ * element_bytes(p_.state.dtype);
    std::memset(raw_history(0), 0, static_cast<std::size_t>(bytes));
  } else if (has_dense_slots() && s.read_column + history <= p_.state_columns) {
    config_.state_kernels->split(state(s.read_slot, s.read_column), history, channels_,
                                 raw_history(0), pitch_);
  } else {
    for (int column = 0; column < history; ++column) {
      copy_run(state(s.read_slot, history_column(p_, s, column - history)), p_.state.channel_stride,
               p_.state.dtype, raw_history(column), 1, p_.state.dtype, channels_);
    }
  }
}

// The inputs come from rows of x or from columns of the old history. Those that are not a run of
// channels with the dtype of the state become one in the stage.
void Worker::write_state(const Sequence& s) {
  if (s.write_slot < 0) return;
  if (p_.cache_seqlens.present || p_.shifted_columns > 0) {
    return write_inputs(s, first_written_input(p_, s), s.end - s.begin, s.write_slot);
  }
  const int history = history_of(p_);
  const std::int64_t length = s.end - s.begin;
  const void* columns[kMaxWidth - 1];
  for (int column = 0; column < history; ++column) {
    auto* scratch = reinterpret_cast<char*>(stage_ + std::int64_t{column} * pitch_);
    const std::int64_t token = length - history + column;
    columns[column] = scratch;
    if (token < 0) {
      columns[column] = raw_history(length + column);
    } else if (p_.x.channel_stride == 1 && p_.x.dtype == p_.state.dtype && !p_.input_gate.present &&
               input_scale_ == 1) {
      columns[column] = x(s.begin + token, channel_);
    } else {
      move_inputs(s.begin + token, scratch, 1, p_.state.dtype,
                  stage_ + std::int64_t{history} * pitch_);
    }
  }
  if (has_dense_slots()) {
    config_.state_kernels->join(columns, history, channels_, state(s.write_slot, p_.base_column));
    return;
  }
  for (int column = 0; column < history; ++column) {
    copy_run(static_cast<const char*>(columns[column]), 1, p_.state.dtype,
             state(s.write_slot, p_.base_column + column), p_.state.channel_stride, p_.state.dtype,
             channels_);
  }
}

void Worker::write_inputs(const Sequence& s, std::int64_t first, std::int64_t end,
                          std::int64_t slot) {
  const int history = history_of(p_);
  const char* const zeros = raw_history(0);  // if the sequence starts from zeros
  for (std::int64_t input = first; input < end; ++input) {
    char* to = state(slot, written_column(p_, s, input, end));
    if (input >= 0) {
      move_inputs(s.begin + input, to, p_.state.channel_stride, p_.state.dtype, stage_);
      continue;
    }
    const char* from = zeros;
    std::int64_t stride = 1;
    if (input >= -history) {
      from = raw_history(history + input);
    } else if (s.read_slot >= 0) {
      from = state(s.read_slot, history_column(p_, s, input));
      stride = p_.state.channel_stride;
    }
    copy_run(from, stride, p_.state.dtype, to, p_.state.channel_stride, p_.state.dtype, channels_);
  }
}

void Worker::take_snapshot(std::int64_t item) {
  const Snapshot snapshot = snapshot_at(p_, at_, item % p_.snapshot_count);
  if (snapshot.sequence < 0 || snapshot.sequence >= p_.sequences) return;
  const Sequence s = sequence_at(p_, at_, snapshot.sequence);
  if (!is_taken(p_, s, snapshot) || replaces_history(s, snapshot)) return;
  use_channels(item / p_.snapshot_count);
  const std::int64_t oldest = snapshot.token - history_of(p_);
  if (oldest < 0) load_history(s);
  write_inputs(s, oldest, snapshot.token, snapshot.slot);
}

void Worker::replace_history(const Sequence& s, std::int64_t sequence) {
  for (std::int64_t row = 0; row < p_.snapshot_count; ++row) {
    const Snapshot snapshot = snapshot_at(p_, at_, row);
    if (snapshot.sequence != sequence || !is_taken(p_, s, snapshot)) continue;
    if (!replaces_history(s, snapshot)) continue;
    write_inputs(s, snapshot.token - history_of(p_), snapshot.token, snapshot.slot);
  }
}

void Worker::move_inputs(std::int64_t row, char* to, std::int64_t to_stride, DType to_dtype,
                         void* scratch) {
  const char* from = x(row, channel_);
  std::int64_t stride = p_.x.channel_stride;
  if (p_.input_gate.present) {
    const std::int64_t bytes = element_bytes(p_.x.dtype);
    const Rows gates = input_gates(row);
    const auto* gate = static_cast<const char*>(gates.data);
    auto* products = static_cast<char*>(scratch);
    if (stride == 1 && gates.channel_stride == 1) {
      config_.x_kernels->multiply(from, gate, products, channels_);
    } else {
      for (int c = 0; c < channels_; ++c) {
        store_f32(p_.x.dtype, products + c * bytes,
                  gated_f32(p_.x.dtype, from + c * stride * bytes,
                            gate + c * gates.channel_stride * bytes));
      }
    }
    from = products;
    stride = 1;
  } else if (input_scale_ != 1) {
    auto* products = static_cast<char*>(scratch);
    const std::int64_t bytes = element_bytes(p_.x.dtype);
    for (int c = 0; c < channels_; ++c) {
      store_f32(p_.x.dtype, products + c * bytes,
                rounded_product(load_f32(p_.x.dtype, from + c * stride * bytes), input_scale_));
    }
    from = products;
    stride = 1;
  }
  copy_run(from, stride, p_.x.dtype, to, to_stride, to_dtype, channels_);
}

}  // namespace shortconv::cpu
