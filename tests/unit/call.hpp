// A small ragged call on fp32 data for tests that state one rule each: everything in it may be
// changed before run().
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "shortconv/plan.hpp"

namespace shortconv {

inline constexpr float kPoison = -12345.0f;  // what memory holds that a call must not touch

struct Call {
  std::int64_t channels = 3;
  std::int64_t width = 4;
  std::int64_t slots = 4;
  std::int64_t columns = 3;
  std::vector<std::int32_t> bounds;
  std::vector<std::int32_t> read_slots, write_slots, read_offsets;  // empty: absent
  std::vector<std::uint8_t> flags;
  std::vector<float> x, out, weight, bias, state;
  ForwardArgs args;

  explicit Call(std::vector<std::int32_t> query_start_loc, std::int64_t rows = -1)
      : bounds(std::move(query_start_loc)) {
    resize(rows < 0 ? bounds.back() : rows);
  }

  void resize(std::int64_t rows) {
    tokens = rows;
    x.resize(static_cast<std::size_t>(rows * channels));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = 1.0f + static_cast<float>(i % 17);
    out.assign(x.size(), kPoison);
    weight.resize(static_cast<std::size_t>(channels * width));
    for (std::size_t i = 0; i < weight.size(); ++i)
      weight[i] = 0.5f * static_cast<float>(i % 5) - 1.0f;
    state.resize(static_cast<std::size_t>(slots * columns * channels));
    for (std::size_t i = 0; i < state.size(); ++i) state[i] = 100.0f + static_cast<float>(i);
  }

  [[nodiscard]] float& x_at(std::int64_t row, std::int64_t c) { return x[row * channels + c]; }
  [[nodiscard]] float& out_at(std::int64_t row, std::int64_t c) { return out[row * channels + c]; }
  [[nodiscard]] float& state_at(std::int64_t slot, std::int64_t column, std::int64_t c) {
    return state[(slot * columns + column) * channels + c];
  }

  const ForwardArgs& fill() {
    const auto sequences = static_cast<std::int64_t>(bounds.size()) - 1;
    args.x = TensorRef::contiguous(x.data(), DType::kF32, {tokens, channels});
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {tokens, channels});
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {channels, width});
    if (!bias.empty()) args.bias = TensorRef::contiguous(bias.data(), DType::kF32, {channels});
    args.sequences.query_start_loc =
        TensorRef::contiguous(bounds.data(), DType::kI32, {sequences + 1});
    if (!state.empty()) {
      args.pool.state =
          TensorRef::contiguous(state.data(), DType::kF32, {slots, columns, channels});
    }
    const auto index = [&](std::vector<std::int32_t>& values, std::optional<TensorRef>& to) {
      if (!values.empty()) to = TensorRef::contiguous(values.data(), DType::kI32, {sequences});
    };
    index(read_slots, args.pool.read_slots);
    index(write_slots, args.pool.write_slots);
    index(read_offsets, args.pool.read_offsets);
    if (!flags.empty()) {
      args.sequences.has_initial_state =
          TensorRef::contiguous(flags.data(), DType::kBool, {sequences});
    }
    return args;
  }

  void run() {
    const Status status = forward(fill());
    ASSERT_TRUE(status.ok()) << status.message();
  }

  [[nodiscard]] std::string refusal() {
    const std::vector<float> before_out = out, before_state = state;
    const Status status = forward(fill());
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(out, before_out) << "a refused call wrote to out";
    EXPECT_EQ(state, before_state) << "a refused call wrote to state";
    return status.message();
  }

  std::int64_t tokens = 0;
};

}  // namespace shortconv
