// Random calls with shift_full_state. The outputs must equal those of the same call without it, and
// every byte of the pool must be what the specification says. The memory is host memory, or memory
// that host and device share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "call_memory.hpp"
#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

/// The order of a slot's elements in memory.
enum class PoolLayout { kChannelsInnermost, kColumnsInnermost, kStrided };

struct ShiftFullStateShape {
  Op op = Op::kDecode;
  int width = 4;
  std::int32_t dilation = 1;
  DType x = DType::kF32, out = DType::kF32, weight = DType::kF32, state = DType::kF32;
  std::int64_t shifted_columns = 1;  // columns before the history
  std::int64_t columns_after = 0;    // columns after the history
  PoolLayout layout = PoolLayout::kChannelsInnermost;
  std::int64_t channels = 64;
  std::vector<std::int64_t> lengths = {1, 1, 1, 1, 1};
  bool dense = true;  // all lengths are equal
  bool in_place = false, residual = false, has_write_slots = false, has_flags = false;
};

class ShiftFullStateCase {
 public:
  ShiftFullStateCase(const CallMemory& memory, const ShiftFullStateShape& shape, std::uint32_t seed)
      : memory_(memory), shape_(shape), random_(seed) {
    make_rows();
    make_state();
  }

  /// A shape that the library supports.
  static ShiftFullStateShape random_shape(std::uint32_t seed) {
    tools::Random random(seed);
    const auto dtypes = capabilities().dtypes;
    ShiftFullStateShape shape;
    shape.op = random.chance(0.5) ? Op::kDecode : Op::kForward;
    shape.width =
        random.chance(0.85) ? random.pick(capabilities().widths) : capabilities().widths.back() + 3;
    if (random.chance(0.15)) shape.dilation = static_cast<std::int32_t>(random.between(2, 3));
    shape.x = random.pick(dtypes).value;
    shape.out = random.chance(0.8) ? shape.x : random.pick(dtypes).value;
    shape.weight = random.chance(0.8) ? shape.x : DType::kF32;
    shape.state = random.chance(0.75) ? shape.x : random.pick(dtypes).value;
    shape.shifted_columns = random.chance(0.6) ? 1 : random.between(2, 9);
    shape.columns_after = random.chance(0.7) ? 0 : random.between(1, 2);
    shape.layout = random.pick(
        {PoolLayout::kChannelsInnermost, PoolLayout::kColumnsInnermost, PoolLayout::kStrided});
    shape.channels = random.pick({1, 7, 32, 64, 96, 260});
    shape.dense = shape.op == Op::kDecode || random.chance(0.3);
    const std::int64_t each = random.chance(0.6) ? 1 : random.between(1, 24);
    shape.lengths.assign(static_cast<std::size_t>(random.between(1, 6)), each);
    for (auto& length : shape.lengths) {
      if (!shape.dense) length = random.chance(0.2) ? 0 : random.between(1, 24);
    }
    shape.in_place = shape.out == shape.x && random.chance(0.3);
    shape.residual = random.chance(0.2);
    shape.has_write_slots = random.chance(0.4);
    shape.has_flags = random.chance(0.4);
    return shape;
  }

  void check() {
    expect();
    run(false);
    if (testing::Test::HasFatalFailure()) return;
    const std::vector<char> plain = result();
    run(true);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_TRUE(result() == plain)
        << "outputs differ from those without shift_full_state, " << text();
    ASSERT_EQ(std::memcmp(state_, expected_.data(), expected_.size()), 0)
        << "a byte of the pool differs, " << text();
  }

 private:
  struct Block {
    char* data = nullptr;
    std::vector<char> initial;
    void restore() const { std::copy(initial.begin(), initial.end(), data); }
  };

  [[nodiscard]] std::int64_t sequences() const { return std::ssize(shape_.lengths); }
  [[nodiscard]] std::int64_t history() const {
    return std::int64_t{shape_.width - 1} * shape_.dilation;
  }
  /// The columns that shift_full_state moves.
  [[nodiscard]] std::int64_t full_columns() const { return shape_.shifted_columns + history(); }

  /// Memory filled with NaN of every type.
  char* memory(std::int64_t bytes) {
    auto* data = static_cast<char*>(
        memory_.allocate(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1))));
    std::memset(data, 0xff, static_cast<std::size_t>(bytes));
    return data;
  }
  void fill(char* data, DType dtype) { store_element(dtype, data, 1.5 * random_.normal()); }
  TensorRef filled(DType dtype, std::initializer_list<std::int64_t> shape) {
    const std::int64_t elements =
        std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    char* data = memory(elements * element_bytes(dtype));
    for (std::int64_t i = 0; i < elements; ++i) fill(data + i * element_bytes(dtype), dtype);
    return TensorRef::contiguous(data, dtype, shape, memory_.device);
  }
  TensorRef indices(const std::vector<std::int64_t>& values) {
    const DType dtype = random_.chance(0.5) ? DType::kI32 : DType::kI64;
    char* data = memory(std::ssize(values) * element_bytes(dtype));
    for (std::int64_t i = 0; i < std::ssize(values); ++i) {
      std::memcpy(data + i * element_bytes(dtype), &values[i],  // little endian
                  static_cast<std::size_t>(element_bytes(dtype)));
    }
    return TensorRef::contiguous(data, dtype, {std::ssize(values)}, memory_.device);
  }

  void make_rows() {
    begins_ = {shape_.dense ? 0 : random_.between(0, 2)};
    for (const std::int64_t length : shape_.lengths) begins_.push_back(begins_.back() + length);
    tokens_ = begins_.back() + (shape_.dense ? 0 : random_.between(0, 2));
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
      args_.sequences.query_start_loc = indices(begins_);
    } else if (shape_.op == Op::kForward || each > 1 || random_.chance(0.5)) {
      for (TensorRef* rows : {&args_.x, &args_.out}) {
        *rows = TensorRef::contiguous(rows->data, rows->dtype, {sequences(), each, shape_.channels},
                                      memory_.device);
      }
    }
    args_.weight = filled(shape_.weight, {shape_.channels, shape_.width});
    if (random_.chance(0.5)) args_.bias = filled(shape_.weight, {shape_.channels});
    args_.epilogue.activation = random_.chance(0.5) ? Activation::kSilu : Activation::kNone;
    args_.sequences.padded_rows = random_.chance(0.5) ? PaddedRows::kZero : PaddedRows::kCopy;
    args_.epilogue.residual = shape_.residual;
    args_.dilation = shape_.dilation;
  }

  void make_state() {
    const std::int64_t slots = 2 * sequences() + 2, columns = full_columns() + shape_.columns_after;
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
    args_.pool.state = state;
    args_.pool.base_column = shape_.shifted_columns;
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
    random_.shuffle(order);
    for (std::int64_t s = 0; s < sequences(); ++s) {
      read_.push_back(random_.chance(0.1) ? -1 : order[s]);
      write_.push_back(shape_.has_write_slots && random_.chance(0.6) ? order[sequences() + s]
                                                                     : order[s]);
      if (shape_.has_write_slots && random_.chance(0.1)) write_.back() = -3;
      resumed_.push_back(shape_.has_flags ? random_.chance(0.5) : 1);
    }
    args_.pool.read_slots = indices(read_);
    if (shape_.has_write_slots) args_.pool.write_slots = indices(write_);
    args_.sequences.initial_state = InitialState::kAll;
    if (!shape_.has_flags) return;
    char* flags = memory(sequences());
    std::copy(resumed_.begin(), resumed_.end(), flags);
    args_.sequences.has_initial_state =
        TensorRef::contiguous(flags, DType::kBool, {sequences()}, memory_.device);
  }

  [[nodiscard]] std::int64_t offset(std::int64_t slot, std::int64_t column, std::int64_t c) const {
    const std::int64_t* strides = args_.pool.state->strides;
    return (slot * strides[0] + column * strides[1] + c * strides[2]) * element_bytes(shape_.state);
  }

  void expect() {
    expected_ = state_before_;
    const auto bytes = static_cast<std::size_t>(element_bytes(shape_.state));
    for (std::int64_t s = 0; s < sequences(); ++s) {
      const std::int64_t length = shape_.lengths[s];
      if (read_[s] < 0 || write_[s] < 0 || length == 0) continue;
      for (std::int64_t column = 0; column < full_columns(); ++column) {
        const std::int64_t token = length - full_columns() + column;  // below 0: an older input
        for (std::int64_t c = 0; c < shape_.channels; ++c) {
          char* to = expected_.data() + offset(write_[s], column, c);
          if (token >= 0) {
            const char* from = x_.initial.data() + ((begins_[s] + token) * shape_.channels + c) *
                                                       element_bytes(shape_.x);
            if (shape_.x == shape_.state) {
              std::memcpy(to, from, bytes);
            } else {
              store_element(shape_.state, to, load_element(shape_.x, from));
            }
          } else if (resumed_[s] != 0) {
            std::memcpy(to, state_before_.data() + offset(read_[s], full_columns() + token, c),
                        bytes);
          } else {
            std::memset(to, 0, bytes);
          }
        }
      }
    }
  }

  void run(bool shift_full_state) {
    x_.restore();
    out_.restore();
    std::memcpy(state_, state_before_.data(), state_before_.size());
    args_.pool.shift_full_state = shift_full_state;
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
  ShiftFullStateShape shape_;
  tools::Random random_;
  ForwardArgs args_;
  Block x_, out_;
  char* state_ = nullptr;
  std::vector<char> state_before_, expected_;
  std::vector<std::int64_t> begins_, read_, write_, resumed_;
  std::int64_t tokens_ = 0;
};

/// Decode of one token per sequence with one shifted column: all widths and types of
/// capabilities(), and all pool layouts.
template <typename Check>
void for_each_decode_with_one_shifted_column(std::int64_t sequences, std::int64_t channels,
                                             Check&& check) {
  for (const int width : capabilities().widths) {
    for (const auto& [dtype, name] : capabilities().dtypes) {
      for (const PoolLayout layout :
           {PoolLayout::kChannelsInnermost, PoolLayout::kColumnsInnermost, PoolLayout::kStrided}) {
        for (const bool other_slots : {false, true}) {  // written slots are not those read
          ShiftFullStateShape shape;
          shape.width = width;
          shape.x = shape.out = shape.weight = shape.state = dtype;
          shape.layout = layout;
          shape.channels = channels;
          shape.lengths.assign(static_cast<std::size_t>(sequences), 1);
          shape.in_place = shape.has_write_slots = other_slots;
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
