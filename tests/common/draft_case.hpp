// Random verify calls, checked against forward calls of the same backend. A draft token and its
// ancestors form a sequence. The token's output and intermediate state must equal the sequence's
// last output and final state bit for bit. The memory is host memory, or memory that host and
// device share, so this check serves both backends.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "call_memory.hpp"
#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

class DraftCase {
 public:
  DraftCase(const CallMemory& memory, std::uint32_t seed) : memory_(memory), random_(seed) {
    pick_shape();
    make_tensors();
  }

  void check() {
    const std::vector<char> state_before = bytes_of(state_, state_bytes());
    Status status = memory_.run_and_wait(args_);
    ASSERT_TRUE(status.ok()) << status.message() << "\n" << describe();
    const std::vector<char> state_after = bytes_of(state_, state_bytes());
    std::memcpy(state_, state_before.data(), state_before.size());
    expect_lines(state_after, state_before);
    expect_untouched();
  }

  [[nodiscard]] std::string describe() const {
    Problem problem;
    (void)make_problem(args_, problem);
    return to_string(problem);
  }

 private:
  template <typename T>
  T* make(std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(T);
    auto* data = static_cast<T*>(memory_.allocate(bytes));
    std::memset(data, 0xff, bytes);
    return data;
  }
  static std::vector<char> bytes_of(const void* data, std::int64_t bytes) {
    const auto* first = static_cast<const char*>(data);
    return {first, first + bytes};
  }

  void pick_shape() {
    constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
    constexpr int kWidths[] = {2, 3, 4, 4, 4, 5, 6, 7, 8, 9, 12};
    constexpr int kChannels[] = {1, 4, 7, 64, 132, 260, 512};
    dtype_ = random_.pick(kTypes);
    bytes_ = element_bytes(dtype_);
    width_ = random_.pick(kWidths);
    channels_ = random_.pick(kChannels);
    dense_ = random_.chance(0.4);
    sequences_ = random_.between(1, 6);
    const std::int64_t uniform = random_.between(1, 9);
    lengths_.resize(static_cast<std::size_t>(sequences_));
    for (std::int64_t& length : lengths_)
      length = dense_ ? uniform : random_.chance(0.15) ? 0 : random_.between(1, 20);
    before_ = dense_ ? 0 : random_.between(0, 2);
    tokens_ = std::accumulate(lengths_.begin(), lengths_.end(), before_) +
              (dense_ ? 0 : random_.between(0, 2));
    tree_ = random_.chance(0.5);
    has_intermediate_states_ = random_.chance(0.75);
    by_slot_ = has_intermediate_states_ && random_.chance(0.3);
    update_state_ = !tree_ && random_.chance(0.3);
  }

  void fill(void* data, std::int64_t elements) {
    for (std::int64_t i = 0; i < elements; ++i) {
      store_element(dtype_, static_cast<char*>(data) + i * bytes_, 2.0 * random_.normal());
    }
  }
  [[nodiscard]] TensorRef tensor(void* data, std::initializer_list<std::int64_t> shape) const {
    return TensorRef::contiguous(data, dtype_, shape, memory_.device);
  }
  TensorRef indices(const std::vector<std::int64_t>& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    if (random_.chance(0.5)) {
      auto* data = make<std::int64_t>(count);
      std::copy(values.begin(), values.end(), data);
      return TensorRef::contiguous(data, DType::kI64, {count}, memory_.device);
    }
    auto* data = make<std::int32_t>(count);
    std::transform(values.begin(), values.end(), data,
                   [](std::int64_t value) { return static_cast<std::int32_t>(value); });
    return TensorRef::contiguous(data, DType::kI32, {count}, memory_.device);
  }

  void make_tensors() {
    const std::int64_t history = width_ - 1;
    x_ = make<char>(tokens_ * channels_ * bytes_);
    fill(x_, tokens_ * channels_);
    out_ = make<char>(tokens_ * channels_ * bytes_);
    void* weight = make<char>(channels_ * width_ * bytes_);
    fill(weight, channels_ * width_);
    columns_ = history + random_.between(0, 2);
    slots_ = sequences_ + random_.between(1, 4);
    state_ = make<char>(state_bytes());
    fill(state_, slots_ * columns_ * channels_);

    args_.op = Op::kVerify;
    const std::int64_t each = dense_ ? lengths_[0] : 0;
    args_.x = dense_ ? tensor(x_, {sequences_, each, channels_}) : tensor(x_, {tokens_, channels_});
    args_.out =
        dense_ ? tensor(out_, {sequences_, each, channels_}) : tensor(out_, {tokens_, channels_});
    args_.weight = tensor(weight, {channels_, width_});
    if (random_.chance(0.5)) {
      void* bias = make<char>(channels_ * bytes_);
      fill(bias, channels_);
      args_.bias = tensor(bias, {channels_});
    }
    args_.pool.state = tensor(state_, {slots_, columns_, channels_});
    if (random_.chance(0.5)) {  // columns innermost
      args_.pool.state->strides[1] = 1;
      args_.pool.state->strides[2] = columns_;
    }
    args_.epilogue.activation = random_.chance(0.5) ? Activation::kSilu : Activation::kNone;
    args_.sequences.padded_rows =
        random_.pick({PaddedRows::kZero, PaddedRows::kUntouched, PaddedRows::kCopy});

    begins_.assign(1, before_);
    for (const std::int64_t length : lengths_) begins_.push_back(begins_.back() + length);
    if (!dense_) args_.sequences.query_start_loc = indices(begins_);
    slot_.resize(static_cast<std::size_t>(slots_));
    std::iota(slot_.begin(), slot_.end(), 0);
    random_.shuffle(slot_);
    slot_.resize(static_cast<std::size_t>(sequences_));
    for (auto& slot : slot_) {
      if (random_.chance(0.12)) slot = -1;
      if (random_.chance(0.05)) slot = slots_ + 3;
    }
    args_.pool.read_slots = indices(slot_);
    offset_.assign(static_cast<std::size_t>(sequences_), 0);
    if (columns_ > history && random_.chance(0.6)) {
      for (auto& offset : offset_) offset = random_.between(-1, columns_ - history + 1);
      args_.pool.read_offsets = indices(offset_);
    }
    resumed_.assign(static_cast<std::size_t>(sequences_), 1);
    if (random_.chance(0.3)) {
      auto* flags = make<std::uint8_t>(sequences_);
      for (std::int64_t s = 0; s < sequences_; ++s) {
        flags[s] = resumed_[s] = static_cast<std::uint8_t>(random_.chance(0.6));
      }
      args_.sequences.has_initial_state =
          TensorRef::contiguous(flags, DType::kBool, {sequences_}, memory_.device);
    }
    args_.drafts.update_state = update_state_;
    make_parents();
    make_intermediate_states();
    make_epilogue();
  }

  // Gates have the layout of x.
  void make_epilogue() {
    if (random_.chance(0.6)) return;
    args_.epilogue.residual = random_.chance(0.3);
    if (args_.epilogue.residual) return;
    const auto gate = [&] {
      TensorRef made = args_.x;
      made.data = make<char>(tokens_ * channels_ * bytes_);
      fill(made.data, tokens_ * channels_);
      return made;
    };
    if (random_.chance(0.7)) args_.input_gate = gate();
    if (random_.chance(0.7)) args_.epilogue.output_gate = gate();
  }

  void make_parents() {
    parents_.assign(static_cast<std::size_t>(tokens_), -7);  // invalid, for rows of padding
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s]; ++t) {
        parents_[begins_[s] + t] = tree_ ? random_.between(-1, t - 1) : t - 1;
      }
    }
    if (!tree_) return;
    std::vector<std::int64_t> given = parents_;
    for (auto& parent : given) {
      if (parent == -1 && random_.chance(0.2)) parent = 1000;  // no token before it: no parent
    }
    args_.drafts.parents = indices(given);
    if (!dense_) return;
    args_.drafts.parents->ndim = 2;
    args_.drafts.parents->shape[0] = sequences_;
    args_.drafts.parents->shape[1] = lengths_[0];
    args_.drafts.parents->strides[0] = lengths_[0];
    args_.drafts.parents->strides[1] = 1;
  }

  void make_intermediate_states() {
    if (!has_intermediate_states_) return;
    if (by_slot_) return make_intermediate_states_by_slot();
    const std::int64_t history = width_ - 1;
    intermediate_elements_ = tokens_ * history * channels_;
    intermediate_ = make<char>(intermediate_elements_ * bytes_);
    TensorRef packed = tensor(intermediate_, {tokens_, history, channels_});
    if (random_.chance(0.4)) {  // columns innermost
      packed.strides[1] = 1;
      packed.strides[2] = history;
    } else if (dense_ && !tree_ && random_.chance(0.4)) {
      // Each begins one column after the one before.
      packed.strides[0] = packed.strides[1] = channels_;
    }
    overlap_ = packed.strides[0] == packed.strides[1] && history > 1;
    if (!dense_) {
      args_.drafts.intermediate_states = packed;
      return;
    }
    TensorRef dense = packed;
    dense.ndim = 4;
    const std::int64_t each = lengths_[0];
    const std::int64_t sequence =
        overlap_ ? (each + history - 1) * channels_ : each * history * channels_;
    const std::int64_t shape[] = {sequences_, each, history, channels_};
    const std::int64_t strides[] = {sequence, packed.strides[0], packed.strides[1],
                                    packed.strides[2]};
    std::copy(std::begin(shape), std::end(shape), dense.shape);
    std::copy(std::begin(strides), std::end(strides), dense.strides);
    args_.drafts.intermediate_states = dense;
  }

  // [intermediate slots, tokens, width - 1, channels], with too few tokens for some sequences and
  // some slots that no sequence writes.
  void make_intermediate_states_by_slot() {
    const std::int64_t history = width_ - 1;
    const std::int64_t longest = *std::max_element(lengths_.begin(), lengths_.end());
    const std::int64_t captured = std::max<std::int64_t>(longest + random_.between(-2, 1), 1);
    const std::int64_t count = sequences_ + random_.between(0, 2);
    overlap_ = !tree_ && history > 1 && captured > 1 && random_.chance(0.5);
    const std::int64_t columns = overlap_ ? captured + history - 1 : captured * history;
    intermediate_elements_ = count * columns * channels_;
    intermediate_ = make<char>(intermediate_elements_ * bytes_);
    const bool innermost = random_.chance(0.4);
    args_.drafts.intermediate_states = tensor(intermediate_, {count, captured, history, channels_});
    std::int64_t* strides = args_.drafts.intermediate_states->strides;
    strides[0] = columns * channels_;
    strides[2] = innermost ? 1 : channels_;
    strides[1] = overlap_ ? strides[2] : history * strides[2];
    strides[3] = innermost ? columns : 1;
    intermediate_slot_.resize(static_cast<std::size_t>(count));
    std::iota(intermediate_slot_.begin(), intermediate_slot_.end(), 0);
    random_.shuffle(intermediate_slot_);
    intermediate_slot_.resize(static_cast<std::size_t>(sequences_));
    for (auto& slot : intermediate_slot_) {
      if (random_.chance(0.15)) slot = random_.chance(0.5) ? -1 : count + 3;
    }
    args_.drafts.intermediate_slots = indices(intermediate_slot_);
  }
  [[nodiscard]] bool captured(std::int64_t s, std::int64_t t) const {
    if (!by_slot_) return has_intermediate_states_;
    const std::int64_t* shape = args_.drafts.intermediate_states->shape;
    return intermediate_slot_[s] >= 0 && intermediate_slot_[s] < shape[0] && t < shape[1];
  }

  [[nodiscard]] bool live(std::int64_t s) const { return slot_[s] >= 0 && slot_[s] < slots_; }
  [[nodiscard]] std::int64_t state_bytes() const { return slots_ * columns_ * channels_ * bytes_; }
  [[nodiscard]] const char* intermediate_at(std::int64_t s, std::int64_t t, std::int64_t column,
                                            std::int64_t channel) const {
    const TensorRef& w = *args_.drafts.intermediate_states;
    if (by_slot_) s = intermediate_slot_[s];
    const std::int64_t index =
        dense_ || by_slot_
            ? s * w.strides[0] + t * w.strides[1] + column * w.strides[2] + channel * w.strides[3]
            : (begins_[s] + t) * w.strides[0] + column * w.strides[1] + channel * w.strides[2];
    return static_cast<const char*>(w.data) + index * bytes_;
  }
  [[nodiscard]] std::int64_t state_index(std::int64_t slot, std::int64_t column,
                                         std::int64_t channel) const {
    return (slot * args_.pool.state->strides[0] + column * args_.pool.state->strides[1] +
            channel * args_.pool.state->strides[2]) *
           bytes_;
  }

  // One forward call. Its sequences are the lines of all tokens: a token and its ancestors.
  void expect_lines(const std::vector<char>& state_after, const std::vector<char>& state_before) {
    std::vector<std::int64_t> bounds{0}, sources, read, offsets, sequence_of, token_of;
    std::vector<std::uint8_t> flags;
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s] && live(s); ++t) {
        std::vector<std::int64_t> line;
        for (std::int64_t a = t; a >= 0; a = parents_[begins_[s] + a])
          line.push_back(begins_[s] + a);
        sources.insert(sources.end(), line.rbegin(), line.rend());
        bounds.push_back(static_cast<std::int64_t>(sources.size()));
        read.push_back(slot_[s]);
        offsets.push_back(offset_[s]);
        flags.push_back(resumed_[s]);
        sequence_of.push_back(s);
        token_of.push_back(t);
      }
    }
    const auto lines = static_cast<std::int64_t>(read.size());
    const auto rows = static_cast<std::int64_t>(sources.size());
    const std::int64_t history = width_ - 1;
    const std::int64_t row_bytes = channels_ * bytes_;
    const auto lines_of = [&](const TensorRef& of) {
      auto* copy = make<char>(rows * row_bytes);
      for (std::int64_t row = 0; row < rows; ++row) {
        std::memcpy(copy + row * row_bytes,
                    static_cast<const char*>(of.data) + sources[row] * row_bytes,
                    static_cast<std::size_t>(row_bytes));
      }
      return tensor(copy, {rows, channels_});
    };
    auto* out = make<char>(rows * row_bytes);
    // The slots of the pool, then a slot for each line.
    const std::int64_t slot_bytes = columns_ * row_bytes;
    auto* pool = make<char>((slots_ + lines) * slot_bytes);
    std::memcpy(pool, state_before.data(), state_before.size());
    std::vector<std::int64_t> write(read.size());
    std::iota(write.begin(), write.end(), slots_);

    ForwardArgs forward = args_;
    forward.op = Op::kForward;
    forward.drafts.parents.reset();
    forward.drafts.intermediate_states.reset();
    forward.drafts.intermediate_slots.reset();
    forward.drafts.update_state = false;
    forward.x = lines_of(args_.x);
    if (args_.input_gate) forward.input_gate = lines_of(*args_.input_gate);
    if (args_.epilogue.output_gate)
      forward.epilogue.output_gate = lines_of(*args_.epilogue.output_gate);
    forward.out = tensor(out, {rows, channels_});
    forward.pool.state->data = pool;
    forward.pool.state->shape[0] = slots_ + lines;
    forward.sequences.query_start_loc = indices(bounds);
    forward.pool.read_slots = indices(read);
    forward.pool.write_slots = indices(write);
    if (args_.pool.read_offsets) forward.pool.read_offsets = indices(offsets);
    auto* line_flags = make<std::uint8_t>(lines);
    std::copy(flags.begin(), flags.end(), line_flags);
    forward.sequences.has_initial_state =
        TensorRef::contiguous(line_flags, DType::kBool, {lines}, memory_.device);
    const Status status = memory_.run_and_wait(forward);
    ASSERT_TRUE(status.ok()) << status.message();

    std::vector<char> expected_state = state_before;
    for (std::int64_t i = 0; i < lines; ++i) {
      const std::int64_t s = sequence_of[i], t = token_of[i];
      ASSERT_EQ(
          0, std::memcmp(out_ + (begins_[s] + t) * row_bytes, out + (bounds[i + 1] - 1) * row_bytes,
                         static_cast<std::size_t>(row_bytes)))
          << "output of token " << t << " of sequence " << s << "\n"
          << describe();
      for (std::int64_t column = 0; column < history; ++column) {
        for (std::int64_t c = 0; c < channels_; ++c) {
          const char* final = pool + state_index(slots_ + i, column, c);
          if (captured(s, t)) {
            ASSERT_EQ(0, std::memcmp(intermediate_at(s, t, column, c), final,
                                     static_cast<std::size_t>(bytes_)))
                << "intermediate state of token " << t << " of sequence " << s << ", column "
                << column << ", channel " << c << "\n"
                << describe();
          }
          if (update_state_ && t == lengths_[s] - 1) {
            std::memcpy(expected_state.data() + state_index(slot_[s], column, c), final,
                        static_cast<std::size_t>(bytes_));
          }
        }
      }
    }
    EXPECT_EQ(state_after, expected_state) << "states\n" << describe();
  }

  // Rows of padding follow padded_rows. Intermediate states of padding stay untouched.
  void expect_untouched() {
    std::vector<bool> owned(static_cast<std::size_t>(tokens_), false);
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s] && live(s); ++t) owned[begins_[s] + t] = true;
    }
    const std::int64_t row_bytes = channels_ * bytes_;
    for (std::int64_t row = 0; row < tokens_; ++row) {
      if (owned[row]) continue;
      std::vector<char> expected(static_cast<std::size_t>(row_bytes), 0);
      if (args_.sequences.padded_rows == PaddedRows::kUntouched)
        std::fill(expected.begin(), expected.end(), -1);
      if (args_.sequences.padded_rows == PaddedRows::kCopy)
        expected = bytes_of(x_ + row * row_bytes, row_bytes);
      EXPECT_EQ(bytes_of(out_ + row * row_bytes, row_bytes), expected) << "row " << row << "\n"
                                                                       << describe();
      if (!has_intermediate_states_ || overlap_ || by_slot_) continue;
      const std::int64_t bytes = (width_ - 1) * row_bytes;
      EXPECT_EQ(bytes_of(intermediate_ + row * bytes, bytes),
                std::vector<char>(static_cast<std::size_t>(bytes), -1))
          << "intermediate state of row " << row << "\n"
          << describe();
    }
    if (by_slot_) expect_unused_intermediate_states();
  }
  void expect_unused_intermediate_states() {
    std::vector<char> rest = bytes_of(intermediate_, intermediate_elements_ * bytes_);
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s] && live(s) && captured(s, t); ++t) {
        for (std::int64_t column = 0; column < width_ - 1; ++column) {
          for (std::int64_t c = 0; c < channels_; ++c) {
            std::memset(rest.data() + (intermediate_at(s, t, column, c) - intermediate_), -1,
                        static_cast<std::size_t>(bytes_));
          }
        }
      }
    }
    EXPECT_EQ(rest, std::vector<char>(rest.size(), -1)) << "unused intermediate states\n"
                                                        << describe();
  }

  const CallMemory& memory_;
  tools::Random random_;
  ForwardArgs args_;
  DType dtype_{};
  std::int64_t bytes_ = 0, width_ = 0, channels_ = 0, tokens_ = 0, columns_ = 0, slots_ = 0;
  std::int64_t sequences_ = 0, intermediate_elements_ = 0;
  bool dense_ = false, tree_ = false, has_intermediate_states_ = false, update_state_ = false,
       overlap_ = false;
  bool by_slot_ = false;
  std::int64_t before_ = 0;
  std::vector<std::int64_t> lengths_, begins_, slot_, offset_, parents_, intermediate_slot_;
  std::vector<std::uint8_t> resumed_;
  char *x_ = nullptr, *out_ = nullptr, *state_ = nullptr, *intermediate_ = nullptr;
};

}  // namespace shortconv::test
