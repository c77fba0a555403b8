// Random calls of verify, checked against forward calls of the same backend: a draft token is the
// last one of a sequence made of its ancestors. Its output, and the window it would leave behind,
// must be that sequence's last output and final state, bit for bit. The memory may be the host's or
// one that host and device share, so the same check serves both backends.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "call_memory.hpp"
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
  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(int percent) { return between(1, 100) <= percent; }
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
    dtype_ = kTypes[between(0, 2)];
    bytes_ = element_bytes(dtype_);
    width_ = kWidths[between(0, 10)];
    channels_ = kChannels[between(0, 6)];
    dense_ = chance(40);
    sequences_ = between(1, 6);
    const int uniform = between(1, 9);
    lengths_.resize(static_cast<std::size_t>(sequences_));
    for (int& length : lengths_) length = dense_ ? uniform : chance(15) ? 0 : between(1, 20);
    before_ = dense_ ? 0 : between(0, 2);
    tokens_ =
        std::accumulate(lengths_.begin(), lengths_.end(), before_) + (dense_ ? 0 : between(0, 2));
    tree_ = chance(50);
    windows_ = chance(75);
    by_slot_ = windows_ && chance(30);
    advance_ = !tree_ && chance(30);
  }

  void fill(void* data, std::int64_t elements) {
    std::normal_distribution<float> values(0.0f, 2.0f);
    for (std::int64_t i = 0; i < elements; ++i) {
      store_element(dtype_, static_cast<char*>(data) + i * bytes_, values(random_));
    }
  }
  [[nodiscard]] TensorRef tensor(void* data, std::initializer_list<std::int64_t> shape) const {
    return TensorRef::contiguous(data, dtype_, shape, memory_.device);
  }
  TensorRef indices(const std::vector<std::int64_t>& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    if (chance(50)) {
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
    columns_ = history + between(0, 2);
    slots_ = sequences_ + between(1, 4);
    state_ = make<char>(state_bytes());
    fill(state_, slots_ * columns_ * channels_);

    args_.op = Op::kVerify;
    const std::int64_t each = dense_ ? lengths_[0] : 0;
    args_.x = dense_ ? tensor(x_, {sequences_, each, channels_}) : tensor(x_, {tokens_, channels_});
    args_.out =
        dense_ ? tensor(out_, {sequences_, each, channels_}) : tensor(out_, {tokens_, channels_});
    args_.weight = tensor(weight, {channels_, width_});
    if (chance(50)) {
      void* bias = make<char>(channels_ * bytes_);
      fill(bias, channels_);
      args_.bias = tensor(bias, {channels_});
    }
    args_.state = tensor(state_, {slots_, columns_, channels_});
    if (chance(50)) {  // window-innermost
      args_.state->strides[1] = 1;
      args_.state->strides[2] = columns_;
    }
    args_.activation = chance(50) ? Activation::kSilu : Activation::kNone;
    constexpr PaddedRows kPolicies[] = {PaddedRows::kZero, PaddedRows::kUntouched,
                                        PaddedRows::kCopy};
    args_.padded_rows = kPolicies[between(0, 2)];

    begins_.assign(1, before_);
    for (const int length : lengths_) begins_.push_back(begins_.back() + length);
    if (!dense_) args_.query_start_loc = indices(begins_);
    slot_.resize(static_cast<std::size_t>(slots_));
    std::iota(slot_.begin(), slot_.end(), 0);
    std::shuffle(slot_.begin(), slot_.end(), random_);
    slot_.resize(static_cast<std::size_t>(sequences_));
    for (auto& slot : slot_) {
      if (chance(12)) slot = -1;
      if (chance(5)) slot = slots_ + 3;
    }
    args_.read_slots = indices(slot_);
    offset_.assign(static_cast<std::size_t>(sequences_), 0);
    if (columns_ > history && chance(60)) {
      for (auto& offset : offset_) offset = between(-1, static_cast<int>(columns_ - history) + 1);
      args_.read_offsets = indices(offset_);
    }
    resumed_.assign(static_cast<std::size_t>(sequences_), 1);
    if (chance(30)) {
      auto* flags = make<std::uint8_t>(sequences_);
      for (std::int64_t s = 0; s < sequences_; ++s) {
        flags[s] = resumed_[s] = static_cast<std::uint8_t>(chance(60));
      }
      args_.has_initial_state =
          TensorRef::contiguous(flags, DType::kBool, {sequences_}, memory_.device);
    }
    args_.advance_state = advance_;
    make_parents();
    make_windows();
    make_epilogue();
  }

  // Gates lie as x does.
  void make_epilogue() {
    if (chance(60)) return;
    args_.residual = chance(30);
    if (args_.residual) return;
    const auto gate = [&] {
      TensorRef made = args_.x;
      made.data = make<char>(tokens_ * channels_ * bytes_);
      fill(made.data, tokens_ * channels_);
      return made;
    };
    if (chance(70)) args_.input_gate = gate();
    if (chance(70)) args_.output_gate = gate();
  }

  void make_parents() {
    parents_.assign(static_cast<std::size_t>(tokens_), -7);  // bad, and of no row that counts
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s]; ++t) {
        parents_[begins_[s] + t] = tree_ ? between(-1, static_cast<int>(t) - 1) : t - 1;
      }
    }
    if (!tree_) return;
    std::vector<std::int64_t> given = parents_;
    for (auto& parent : given) {
      if (parent == -1 && chance(20)) parent = 1000;  // no token's parent: as good as none
    }
    args_.parents = indices(given);
    if (!dense_) return;
    args_.parents->ndim = 2;
    args_.parents->shape[0] = sequences_;
    args_.parents->shape[1] = lengths_[0];
    args_.parents->strides[0] = lengths_[0];
    args_.parents->strides[1] = 1;
  }

  void make_windows() {
    if (!windows_) return;
    if (by_slot_) return make_windows_by_slot();
    const std::int64_t history = width_ - 1;
    window_elements_ = tokens_ * history * channels_;
    window_ = make<char>(window_elements_ * bytes_);
    TensorRef packed = tensor(window_, {tokens_, history, channels_});
    if (chance(40)) {  // window-innermost
      packed.strides[1] = 1;
      packed.strides[2] = history;
    } else if (dense_ && !tree_ && chance(40)) {  // each one column on from the one before
      packed.strides[0] = packed.strides[1] = channels_;
    }
    overlap_ = packed.strides[0] == packed.strides[1] && history > 1;
    if (!dense_) {
      args_.windows = packed;
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
    args_.windows = dense;
  }

  // [window slots, tokens, width-1, channels]: too few tokens for some sequences, slots of nobody.
  void make_windows_by_slot() {
    const std::int64_t history = width_ - 1;
    const std::int64_t longest = *std::max_element(lengths_.begin(), lengths_.end());
    const std::int64_t captured = std::max<std::int64_t>(longest + between(-2, 1), 1);
    const std::int64_t count = sequences_ + between(0, 2);
    overlap_ = !tree_ && history > 1 && captured > 1 && chance(50);
    const std::int64_t columns = overlap_ ? captured + history - 1 : captured * history;
    window_elements_ = count * columns * channels_;
    window_ = make<char>(window_elements_ * bytes_);
    const bool innermost = chance(40);
    args_.windows = tensor(window_, {count, captured, history, channels_});
    std::int64_t* strides = args_.windows->strides;
    strides[0] = columns * channels_;
    strides[2] = innermost ? 1 : channels_;
    strides[1] = overlap_ ? strides[2] : history * strides[2];
    strides[3] = innermost ? columns : 1;
    window_slot_.resize(static_cast<std::size_t>(count));
    std::iota(window_slot_.begin(), window_slot_.end(), 0);
    std::shuffle(window_slot_.begin(), window_slot_.end(), random_);
    window_slot_.resize(static_cast<std::size_t>(sequences_));
    for (auto& slot : window_slot_) {
      if (chance(15)) slot = chance(50) ? -1 : count + 3;
    }
    args_.window_slots = indices(window_slot_);
  }
  [[nodiscard]] bool captured(std::int64_t s, std::int64_t t) const {
    if (!by_slot_) return windows_;
    const std::int64_t* shape = args_.windows->shape;
    return window_slot_[s] >= 0 && window_slot_[s] < shape[0] && t < shape[1];
  }

  [[nodiscard]] bool live(std::int64_t s) const { return slot_[s] >= 0 && slot_[s] < slots_; }
  [[nodiscard]] std::int64_t state_bytes() const { return slots_ * columns_ * channels_ * bytes_; }
  [[nodiscard]] const char* window_at(std::int64_t s, std::int64_t t, std::int64_t column,
                                      std::int64_t channel) const {
    const TensorRef& w = *args_.windows;
    if (by_slot_) s = window_slot_[s];
    const std::int64_t index =
        dense_ || by_slot_
            ? s * w.strides[0] + t * w.strides[1] + column * w.strides[2] + channel * w.strides[3]
            : (begins_[s] + t) * w.strides[0] + column * w.strides[1] + channel * w.strides[2];
    return static_cast<const char*>(w.data) + index * bytes_;
  }
  [[nodiscard]] std::int64_t state_index(std::int64_t slot, std::int64_t column,
                                         std::int64_t channel) const {
    return (slot * args_.state->strides[0] + column * args_.state->strides[1] +
            channel * args_.state->strides[2]) *
           bytes_;
  }

  // One forward call whose sequences are the lines of ancestors of all tokens.
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
    // The pool, and behind it a slot for each line.
    const std::int64_t slot_bytes = columns_ * row_bytes;
    auto* pool = make<char>((slots_ + lines) * slot_bytes);
    std::memcpy(pool, state_before.data(), state_before.size());
    std::vector<std::int64_t> write(read.size());
    std::iota(write.begin(), write.end(), slots_);

    ForwardArgs forward = args_;
    forward.op = Op::kForward;
    forward.parents.reset();
    forward.windows.reset();
    forward.window_slots.reset();
    forward.advance_state = false;
    forward.x = lines_of(args_.x);
    if (args_.input_gate) forward.input_gate = lines_of(*args_.input_gate);
    if (args_.output_gate) forward.output_gate = lines_of(*args_.output_gate);
    forward.out = tensor(out, {rows, channels_});
    forward.state->data = pool;
    forward.state->shape[0] = slots_ + lines;
    forward.query_start_loc = indices(bounds);
    forward.read_slots = indices(read);
    forward.write_slots = indices(write);
    if (args_.read_offsets) forward.read_offsets = indices(offsets);
    auto* line_flags = make<std::uint8_t>(lines);
    std::copy(flags.begin(), flags.end(), line_flags);
    forward.has_initial_state =
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
            ASSERT_EQ(
                0, std::memcmp(window_at(s, t, column, c), final, static_cast<std::size_t>(bytes_)))
                << "window of token " << t << " of sequence " << s << ", column " << column
                << ", channel " << c << "\n"
                << describe();
          }
          if (advance_ && t == lengths_[s] - 1) {
            std::memcpy(expected_state.data() + state_index(slot_[s], column, c), final,
                        static_cast<std::size_t>(bytes_));
          }
        }
      }
    }
    EXPECT_EQ(state_after, expected_state) << "states\n" << describe();
  }

  // Rows of nobody follow the policy; windows of nobody stay as they were.
  void expect_untouched() {
    std::vector<bool> owned(static_cast<std::size_t>(tokens_), false);
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s] && live(s); ++t) owned[begins_[s] + t] = true;
    }
    const std::int64_t row_bytes = channels_ * bytes_;
    for (std::int64_t row = 0; row < tokens_; ++row) {
      if (owned[row]) continue;
      std::vector<char> expected(static_cast<std::size_t>(row_bytes), 0);
      if (args_.padded_rows == PaddedRows::kUntouched)
        std::fill(expected.begin(), expected.end(), -1);
      if (args_.padded_rows == PaddedRows::kCopy)
        expected = bytes_of(x_ + row * row_bytes, row_bytes);
      EXPECT_EQ(bytes_of(out_ + row * row_bytes, row_bytes), expected) << "row " << row << "\n"
                                                                       << describe();
      if (!windows_ || overlap_ || by_slot_) continue;
      const std::int64_t window_bytes = (width_ - 1) * row_bytes;
      EXPECT_EQ(bytes_of(window_ + row * window_bytes, window_bytes),
                std::vector<char>(static_cast<std::size_t>(window_bytes), -1))
          << "window of row " << row << "\n"
          << describe();
    }
    if (by_slot_) expect_windows_of_nobody();
  }
  void expect_windows_of_nobody() {
    std::vector<char> rest = bytes_of(window_, window_elements_ * bytes_);
    for (std::int64_t s = 0; s < sequences_; ++s) {
      for (std::int64_t t = 0; t < lengths_[s] && live(s) && captured(s, t); ++t) {
        for (std::int64_t column = 0; column < width_ - 1; ++column) {
          for (std::int64_t c = 0; c < channels_; ++c) {
            std::memset(rest.data() + (window_at(s, t, column, c) - window_), -1,
                        static_cast<std::size_t>(bytes_));
          }
        }
      }
    }
    EXPECT_EQ(rest, std::vector<char>(rest.size(), -1)) << "windows of nobody\n" << describe();
  }

  const CallMemory& memory_;
  std::mt19937 random_;
  ForwardArgs args_;
  DType dtype_{};
  std::int64_t bytes_ = 0, width_ = 0, channels_ = 0, tokens_ = 0, columns_ = 0, slots_ = 0;
  std::int64_t sequences_ = 0, window_elements_ = 0;
  bool dense_ = false, tree_ = false, windows_ = false, advance_ = false, overlap_ = false;
  bool by_slot_ = false;
  int before_ = 0;
  std::vector<int> lengths_;
  std::vector<std::int64_t> begins_, slot_, offset_, parents_, window_slot_;
  std::vector<std::uint8_t> resumed_;
  char *x_ = nullptr, *out_ = nullptr, *state_ = nullptr, *window_ = nullptr;
};

}  // namespace shortconv::test
