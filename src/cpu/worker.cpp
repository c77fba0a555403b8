// Items of a CPU call: which rows of which sequences a thread computes.
#include "cpu/worker.hpp"

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>

#include "core/capability.hpp"
#include "cpu/move.hpp"

namespace shortconv::cpu {
namespace {

void zero_run(char* to, std::int64_t stride_bytes, std::int64_t bytes, std::int64_t count) {
  if (stride_bytes == bytes) {
    std::memset(to, 0, static_cast<std::size_t>(bytes * count));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::memset(to + i * stride_bytes, 0, static_cast<std::size_t>(bytes));
  }
}

}  // namespace

void Worker::process(std::int64_t item) {
  use_channels(item / config_.tiles);
  const std::int64_t tile = item % config_.tiles;
  if (p_.op == Op::kVerify) return tile == p_.sequences ? pad_outside() : process_drafts(tile);
  switch (p_.schedule) {
    case Schedule::kFlat:
      process_tile(tile);
      return;
    case Schedule::kBlockList:
      if (tile == p_.block_count) return pad_outside();
      process_block(
          load_index(DType::kI32, at_.block_sequence, tile * p_.block_sequence.entry_stride),
          load_index(DType::kI32, at_.block_offset, tile * p_.block_offset.entry_stride), false);
      return;
    case Schedule::kSequenceGrid: {
      const std::int64_t blocks = (config_.tiles - 1) / std::max<std::int64_t>(p_.sequences, 1);
      if (tile == p_.sequences * blocks) return pad_outside();
      // The last block extends to the end of the sequence, so that a too small max_seqlen leaves no
      // row unwritten.
      process_block(tile / blocks, tile % blocks, tile % blocks == blocks - 1);
      return;
    }
  }
}

void Worker::finish() const {
  if (stream_) hwy::FlushStream();
}

void Worker::use_channels(std::int64_t block) {
  if (block == block_) return;
  block_ = block;
  arranged_ = false;
  if (groups_ != nullptr) {
    use_group_block((*groups_)[block]);
  } else {
    channel_ = x_column_ = block * config_.block_channels;
    channels_ =
        static_cast<int>(std::min<std::int64_t>(config_.block_channels, p_.channels - channel_));
    out_data_ = static_cast<char*>(at_.out) +
                channel_ * p_.out.channel_stride * element_bytes(p_.out.dtype);
  }
  pitch_ = padded(channels_);
  if (!is_convolved()) return;
  has_only_rows_ = form() == Form::kTokenMajor && channels_ % config_.x_kernels->step == 0 &&
                   (!p_.state.present || p_.state.dtype == p_.x.dtype) && !p_.parents.present;
  if (!has_only_rows_) load_taps();
  load_bias();
}

void Worker::load_taps() {
  const std::int64_t bytes = element_bytes(p_.weight.dtype);
  if (has_dense_weight()) {
    config_.weight_kernels->load(weight(), stage_, std::int64_t{channels_} * p_.width);
    config_.f32_kernels->split(stage_, p_.width, channels_, taps_, pitch_);
  }
  for (int tap = 0; tap < p_.width; ++tap) {
    float* row = taps_ + std::int64_t{tap} * pitch_;
    if (!has_dense_weight()) {
      copy_run(weight() + tap * p_.weight.tap_stride * bytes, p_.weight.channel_stride,
               p_.weight.dtype, reinterpret_cast<char*>(row), 1, DType::kF32, channels_);
    }
    std::transform(row, row + channels_, row, canonical_nan);
    std::fill(row + channels_, row + pitch_, 0.0f);
  }
}

void Worker::load_bias() {
  if (!p_.bias.present) {
    if (pitch_ <= zeros_of_bias_) return;
    zeros_of_bias_ = pitch_;
    std::fill(bias_, bias_ + pitch_, 0.0f);
    std::fill(arranged_bias_, arranged_bias_ + pitch_, 0.0f);
    return;
  }
  std::fill(bias_ + channels_, bias_ + pitch_, 0.0f);
  copy_run(static_cast<const char*>(at_.bias) +
               channel_ * p_.bias.channel_stride * element_bytes(p_.weight.dtype),
           p_.bias.channel_stride, p_.weight.dtype, reinterpret_cast<char*>(bias_), 1, DType::kF32,
           channels_);
  std::transform(bias_, bias_ + channels_, bias_, canonical_nan);
  config_.x_kernels->arrange(bias_, arranged_bias_, pitch_);
}

void Worker::process_tile(std::int64_t tile) {
  const std::int64_t begin = tile * config_.tile_tokens;
  const std::int64_t end = std::min(begin + config_.tile_tokens, p_.tokens);
  std::int64_t row = begin;
  for (std::int64_t sequence = std::max<std::int64_t>(find_sequence(p_, at_, begin), 0);
       row < end && sequence < p_.sequences; ++sequence) {
    const Sequence s = sequence_at(p_, at_, sequence);
    if (row < s.begin) {
      pad_rows(row, std::min(s.begin, end));
      row = std::min(s.begin, end);
    }
    const std::int64_t last = std::min(s.end, end);
    if (row >= last) continue;
    if (s.skipped) {
      pad_rows(row, last);
    } else if (p_.seq_idx.present) {
      process_seq_idx(s, sequence, row, last);
    } else {
      process_tokens(s, sequence, row - s.begin, last - s.begin);
    }
    row = last;
  }
  if (row < end) pad_rows(row, end);
}

void Worker::process_seq_idx(const Sequence& s, std::int64_t sequence, std::int64_t row,
                             std::int64_t end) {
  const std::int64_t most = std::max(config_.tile_tokens, config_.start_tokens);
  while (row < end) {
    const Sequence part = seq_idx_part(p_, at_, s, row, most);
    const std::int64_t last = std::min(part.end, end);
    if (part.skipped) {
      pad_rows(row, last);
    } else {
      process_tokens(part, sequence, row - part.begin, last - part.begin);
    }
    row = last;
  }
}

void Worker::process_block(std::int64_t sequence, std::int64_t block, bool to_the_end) {
  if (sequence < 0 || sequence >= p_.sequences || block < 0) return;
  const Sequence s = sequence_at(p_, at_, sequence);
  const std::int64_t length = s.end - s.begin;
  const std::int64_t first = block * kBlockTokens;
  if (first >= length) return;
  const std::int64_t last = to_the_end ? length : std::min(first + kBlockTokens, length);
  if (s.skipped) {
    pad_rows(s.begin + first, s.begin + last);
  } else {
    process_tokens(s, sequence, first, last);
  }
}

void Worker::process_tokens(const Sequence& s, std::int64_t sequence, std::int64_t first,
                            std::int64_t last) {
  if (!is_convolved()) return finish_rows(s.begin + first, s.begin + last);
  if (first == 0 && uses_slots_directly()) return convolve_between_slots(s, last);
  if (first == 0) {
    load_history(s);
    write_state(s);
    if (replaces_histories_) replace_history(s, sequence);
  }
  convolve(s, first, last);
}

// Rows before the first sequence and after the last one, for schedules that divide sequences.
void Worker::pad_outside() {
  const std::int64_t begin = p_.sequences > 0 ? sequence_begin(p_, at_, 0) : p_.tokens;
  pad_rows(0, begin);
  if (p_.sequences > 0) pad_rows(std::max(begin, sequence_begin(p_, at_, p_.sequences)), p_.tokens);
}

void Worker::pad_rows(std::int64_t begin, std::int64_t end) {
  if (!is_convolved() && group_block_.group == nullptr) return pad_gates(begin, end);
  const std::int64_t bytes = element_bytes(out_.dtype);
  switch (p_.padded_rows) {
    case PaddedRows::kZero:
      for (std::int64_t row = begin; row < end; ++row) {
        zero_run(out(row, channel_), out_.channel_stride * bytes, bytes, channels_);
      }
      return;
    case PaddedRows::kUntouched:
      return;
    case PaddedRows::kCopy:
      for (std::int64_t row = begin; row < end; ++row) {
        copy_run(x(row, channel_), p_.x.channel_stride, p_.x.dtype, out(row, channel_),
                 out_.channel_stride, out_.dtype, channels_);
      }
      return;
  }
}

}  // namespace shortconv::cpu
