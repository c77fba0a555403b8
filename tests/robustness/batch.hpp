// A ragged batch for tests of threads and processes: large enough for several items.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "shortconv/plan.hpp"

namespace shortconv {

struct Batch {
  static constexpr std::int64_t kChannels = 96, kWidth = 4, kSequences = 4, kTokens = 1500;

  std::vector<std::int32_t> bounds{0, 3, 700, 701, kTokens};
  std::vector<float> x, out, weight, state;
  std::int32_t threads;

  explicit Batch(std::int32_t count, int seed = 0) : threads(count) {
    const auto fill = [&](std::vector<float>& values, std::int64_t size, int step) {
      values.resize(static_cast<std::size_t>(size));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>((static_cast<int>(i) * step + seed) % 31) / 8.0f - 2.0f;
      }
    };
    fill(x, kTokens * kChannels, 7);
    fill(weight, kChannels * kWidth, 5);
    fill(state, kSequences * (kWidth - 1) * kChannels, 3);
    out.assign(x.size(), -12345.0f);
  }

  [[nodiscard]] ForwardArgs args() {
    ForwardArgs args;
    args.x = TensorRef::contiguous(x.data(), DType::kF32, {kTokens, kChannels});
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {kTokens, kChannels});
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {kChannels, kWidth});
    args.pool.state =
        TensorRef::contiguous(state.data(), DType::kF32, {kSequences, kWidth - 1, kChannels});
    args.sequences.query_start_loc =
        TensorRef::contiguous(bounds.data(), DType::kI32, {kSequences + 1});
    args.sequences.initial_state = InitialState::kAll;
    args.epilogue.activation = Activation::kSilu;
    args.options.threads = threads;
    return args;
  }

  /// Runs the call and compares all bits with those of one thread.
  [[nodiscard]] bool is_right() {
    Batch expected = *this;
    expected.threads = 1;
    return forward(expected.args()).ok() && forward(args()).ok() && has_bits_of(expected);
  }

  [[nodiscard]] bool has_bits_of(const Batch& other) const {
    return std::memcmp(out.data(), other.out.data(), out.size() * sizeof(float)) == 0 &&
           std::memcmp(state.data(), other.state.data(), state.size() * sizeof(float)) == 0;
  }
};

}  // namespace shortconv
