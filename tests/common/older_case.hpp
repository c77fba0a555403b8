// Random calls over pools whose columns before the history move along. The outputs must be those of
// the same call without that, and every byte of the pool must be what the specification says, bit
// for bit. The memory may be the host's or one that host and device share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "call_memory.hpp"
#include "core/element.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

/// How the columns of a slot lie in memory.
enum class PoolLayout { kChannelsInnermost, kWindowInnermost, kStrided };

struct OlderShape {
  Op op = Op::kDecode;
  int width = 4;
  std::int32_t dilation = 1;
  DType x = DType::kF32, out = DType::kF32, weight = DType::kF32, state = DType::kF32;
  std::int64_t older = 1, further = 0;  // columns before and after the history
  PoolLayout layout = PoolLayout::kChannelsInnermost;
  std::int64_t channels = 64;
  std::vector<std::int64_t> lengths = {1, 1, 1, 1, 1};
  bool dense = true;  // all lengths are equal
  bool in_place = false, residual = false, own_write_slots = false, flags = false;
};

class OlderCase {
 public:
  OlderCase(const CallMemory& memory, const OlderShape& shape, std::uint32_t seed)
      : memory_(memory), shape_(shape), random_(seed) {
    make_rows();
    make_state();
  }

  /// Any shape that the library takes.
  static OlderShape random_shape(std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto between = [&](std::int64_t low, std::int64_t high) {
      return std::uniform_int_distribution<std::int64_t>(low, high)(random);
    };
    const auto chance = [&](int percent) { return between(1, 100) <= percent; };
    const auto any = [&](const auto& list) {
      return list[static_cast<std::size_t>(between(0, std::ssize(list) - 1))];
    };
    const auto dtypes = capabilities().dtypes;
    OlderShape shape;
    shape.op = chance(50) ? Op::kDecode : Op::kForward;
    shape.width = chance(85) ? any(capabilities().widths) : capabilities().widths.back() + 3;
    if (chance(15)) shape.dilation = static_cast<std::int32_t>(between(2, 3));
    shape.x = any(dtypes).value;
    shape.out = chance(80) ? shape.x : any(dtypes).value;
    shape.weight = chance(80) ? shape.x : DType::kF32;
    shape.state = chance(75) ? shape.x : any(dtypes).value;
    shape.older = chance(60) ? 1 : between(2, 9);
    shape.further = chance(70) ? 0 : between(1, 2);
    shape.layout = any(std::vector{PoolLayout::kChannelsInnermost, PoolLayout::kWindowInnermost,
                                   PoolLayout::kStrided});
    shape.channels = any(std::vector<std::int64_t>{1, 7, 32, 64, 96, 260});
    shape.dense = shape.op == Op::kDecode || chance(30);
    const std::int64_t each = chance(60) ? 1 : between(1, 24);
    shape.lengths.assign(static_cast<std::size_t>(between(1, 6)), each);
    for (auto& length : shape.lengths) {
      if (!shape.dense) length = chance(20) ? 0 : between(1, 24);
    }
    shape.in_place = shape.out == shape.x && chance(30);
    shape.residual = chance(20);
    shape.own_write_slots = chance(40);
    shape.flags = chance(40);
    return shape;
  }

  void check() {
    expect();
    run(false);
    if (testing::Test::HasFatalFailure()) return;
    const std::vector<char> plain = result();
    run(true);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_TRUE(result() == plain) << "outputs differ from those without keeps_older, " << text();
    ASSERT_EQ(std::memcmp(state_, expected_.data(), expected_.size()), 0)
        << "a byte of the pool differs, " << text();
  }

 private:
  struct Block {
    char* data = nullptr;
    std::vector<char> initial;
    void restore() const { std::memcpy(data, initial.data(), initial.size()); }
  };

  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool chance(int percent) { return between(1, 100) <= percent; }
  [[nodiscard]] std::int64_t sequences() const { return std::ssize(shape_.lengths); }
  [[nodiscard]] std::int64_t history() const {
    return std::int64_t{shape_.width - 1} * shape_.dilation;
  }
  [[nodiscard]] std::int64_t kept() const { return shape_.older + history(); }

  /// Poisoned: NaN in every type.
  char* memory(std::int64_t bytes) {
    auto* data = static_cast<char*>(
        memory_.allocate(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1))));
    std::memset(data, 0xff, static_cast<std::size_t>(bytes));
    return data;
  }
  void fill(char* data, DType dtype) {
    store_element(dtype, data, std::normal_distribution<float>(0.0f, 1.5f)(random_));
  }
  TensorRef filled(DType dtype, std::initializer_list<std::int64_t> shape) {
    const std::int64_t elements =
        std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    char* data = memory(elements * element_bytes(dtype));
    for (std::int64_t i = 0; i < elements; ++i) fill(data + i * element_bytes(dtype), dtype);
    return TensorRef::contiguous(data, dtype, shape, memory_.device);
  }
  TensorRef indices(const std::vector<std::int64_t>& values) {
    const DType dtype = chance(50) ? DType::kI32 : DType::kI64;
    char* data = memory(std::ssize(values) * element_bytes(dtype));
    for (std::int64_t i = 0; i < std::ssize(values); ++i) {
      std::memcpy(data + i * element_bytes(dtype), &values[i],  // little endian
                  static_cast<std::size_t>(element_bytes(dtype)));
    }
    return TensorRef::contiguous(data, dtype, {std::ssize(values)}, memory_.device);
  }

  void make_rows() {
    begins_ = {shape_.dense ? 0 : between(0, 2)};
    for (const std::int64_t length : shape_.lengths) begins_.push_back(begins_.back() + length);
    tokens_ = begins_.back() + (shape_.dense ? 0 : between(0, 2));
    args_.op = shape_.op;
    args_.x = filled(shape_.x, {tokens_, shape_.channels});
    const std::int64_t x_bytes = tokens_ * shape_.channels * element_bytes(shape_.x);
    x_.data = static_cast<char*>(args_.x.data);
    x_.initial.assign(x_.data, x_.data + x_bytes);
    const std::int64_t out_bytes = tokens_ * shape_.channels * element_bytes(shape_.out);
    out_ = x_;
    if (!shape_.in_place) {
      out_.data = memory(out_bytes);
      out_.initial.assign(out_.data, out_.data + out_bytes);
    }
    args_.out = args_.x;
    args_.out.data = out_.data;
    args_.out.dtype = shape_.out;
    const std::int64_t each = shape_.lengths[0];
    if (!shape_.dense) {
      args_.query_start_loc = indices(begins_);
    } else if (shape_.op == Op::kForward || each > 1 || chance(50)) {
      for (TensorRef* rows : {&args_.x, &args_.out}) {
        *rows = TensorRef::contiguous(rows->data, rows->dtype, {sequences(), each, shape_.channels},
                                      memory_.device);
      }
    }
    args_.weight = filled(shape_.weight, {shape_.channels, shape_.width});
    if (chance(50)) args_.bias = filled(shape_.weight, {shape_.channels});
    args_.activation = chance(50) ? Activation::kSilu : Activation::kNone;
    args_.padded_rows = chance(50) ? PaddedRows::kZero : PaddedRows::kCopy;
    args_.residual = shape_.residual;
    args_.dilation = shape_.dilation;
  }

  void make_state() {
    const std::int64_t slots = 2 * sequences() + 2, columns = kept() + shape_.further;
    const std::int64_t step = shape_.layout == PoolLayout::kStrided ? 3 : 1;
    const bool by_channel = shape_.layout == PoolLayout::kChannelsInnermost;
    TensorRef state;
    state.dtype = shape_.state;
    state.device = memory_.device;
    state.ndim = 3;
    const std::int64_t shape[] = {slots, columns, shape_.channels};
    std::copy(shape, shape + 3, state.shape);
    state.strides[by_channel ? 2 : 1] = step;
    state.strides[by_channel ? 1 : 2] = step * (by_channel ? shape_.channels : columns);
    state.strides[0] = step * columns * shape_.channels;
    const std::int64_t bytes = slots * state.strides[0] * element_bytes(shape_.state);
    state_ = memory(bytes);
    state.data = state_;
    args_.state = state;
    args_.state_base = shape_.older;
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      for (std::int64_t column = 0; column < columns; ++column) {
        for (std::int64_t c = 0; c < shape_.channels; ++c) {
          fill(state_ + offset(slot, column, c), shape_.state);
        }
      }
    }
    state_before_.assign(state_, state_ + bytes);
    std::vector<std::int64_t> order(static_cast<std::size_t>(slots));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (std::int64_t s = 0; s < sequences(); ++s) {
      read_.push_back(chance(10) ? -1 : order[s]);
      write_.push_back(shape_.own_write_slots && chance(60) ? order[sequences() + s] : order[s]);
      if (shape_.own_write_slots && chance(10)) write_.back() = -3;
      resumed_.push_back(shape_.flags ? chance(50) : 1);
    }
    args_.read_slots = indices(read_);
    if (shape_.own_write_slots) args_.write_slots = indices(write_);
    args_.initial_state = InitialState::kAll;
    if (!shape_.flags) return;
    char* flags = memory(sequences());
    std::copy(resumed_.begin(), resumed_.end(), flags);
    args_.has_initial_state =
        TensorRef::contiguous(flags, DType::kBool, {sequences()}, memory_.device);
  }

  [[nodiscard]] std::int64_t offset(std::int64_t slot, std::int64_t column, std::int64_t c) const {
    const std::int64_t* strides = args_.state->strides;
    return (slot * strides[0] + column * strides[1] + c * strides[2]) * element_bytes(shape_.state);
  }

  void expect() {
    expected_ = state_before_;
    const auto bytes = static_cast<std::size_t>(element_bytes(shape_.state));
    for (std::int64_t s = 0; s < sequences(); ++s) {
      const std::int64_t length = shape_.lengths[s];
      if (read_[s] < 0 || write_[s] < 0 || length == 0) continue;
      for (std::int64_t column = 0; column < kept(); ++column) {
        const std::int64_t number = length - kept() + column;  // of the input, in this call
        for (std::int64_t c = 0; c < shape_.channels; ++c) {
          char* to = expected_.data() + offset(write_[s], column, c);
          if (number >= 0) {
            const char* from = x_.initial.data() + ((begins_[s] + number) * shape_.channels + c) *
                                                       element_bytes(shape_.x);
            if (shape_.x == shape_.state) {
              std::memcpy(to, from, bytes);
            } else {
              store_element(shape_.state, to, load_element(shape_.x, from));
            }
          } else if (resumed_[s] != 0) {
            std::memcpy(to, state_before_.data() + offset(read_[s], kept() + number, c), bytes);
          } else {
            std::memset(to, 0, bytes);
          }
        }
      }
    }
  }

  void run(bool keeps_older) {
    x_.restore();
    out_.restore();
    std::memcpy(state_, state_before_.data(), state_before_.size());
    args_.keeps_older = keeps_older;
    const Status status = memory_.run_and_wait(args_);
    ASSERT_TRUE(status.ok()) << status.message() << ", " << text();
  }
  [[nodiscard]] std::vector<char> result() const {
    return {out_.data, out_.data + out_.initial.size()};
  }
  [[nodiscard]] std::string text() const {
    Problem problem;
    const Status status = make_problem(args_, problem);
    return status.ok() ? to_string(problem) : status.message();
  }

  const CallMemory& memory_;
  OlderShape shape_;
  std::mt19937 random_;
  ForwardArgs args_;
  Block x_, out_;
  char* state_ = nullptr;
  std::vector<char> state_before_, expected_;
  std::vector<std::int64_t> begins_, read_, write_, resumed_;
  std::int64_t tokens_ = 0;
};

/// One token a sequence and one older column: each width and type of the lists, each layout.
template <typename Check>
void for_each_decode_of_one_older_column(std::int64_t sequences, std::int64_t channels,
                                         Check&& check) {
  for (const int width : capabilities().widths) {
    for (const auto& [dtype, name] : capabilities().dtypes) {
      for (const PoolLayout layout :
           {PoolLayout::kChannelsInnermost, PoolLayout::kWindowInnermost, PoolLayout::kStrided}) {
        for (const bool elsewhere : {false, true}) {
          OlderShape shape;
          shape.width = width;
          shape.x = shape.out = shape.weight = shape.state = dtype;
          shape.layout = layout;
          shape.channels = channels;
          shape.lengths.assign(static_cast<std::size_t>(sequences), 1);
          shape.in_place = shape.own_write_slots = elsewhere;
          check(shape);
          if (testing::Test::HasFatalFailure()) {
            FAIL() << "width " << width << ", " << name << ", layout " << static_cast<int>(layout);
          }
        }
      }
    }
  }
}

}  // namespace shortconv::test
