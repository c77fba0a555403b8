// Known defects: shapes of batches, padded rows, element types, options.
#pragma once

#include <cmath>
#include <limits>

#include "defects.hpp"

namespace shortconv::test {

// Rows behind the last sequence stayed uninitialised, and their NaN reached the layers behind
// (sglang 28487).
TEST_P(Defects, RowsOfNobodyAreWritten) {
  Call call = make({2, 5, 5, 9}, {}, 30);
  std::fill(call.out.begin(), call.out.end(), std::numeric_limits<float>::quiet_NaN());
  Call old = call;
  run(call);
  for (std::int64_t row = 0; row < 30; ++row) {
    if (row < 2 || row >= 9) expect_value(call, row, 0.0f);
  }
  expect_rows(call, {.call = old, .begin = 2}, 3);
  expect_rows(call, {.call = old, .begin = 5}, 4);
  // Whole tiles of them too, with a valid slot in front of the list's first entry.
  Call tiles = make({24, 44, 64}, {}, 100);
  std::fill(tiles.out.begin(), tiles.out.end(), std::numeric_limits<float>::quiet_NaN());
  Call before = tiles;
  std::vector<std::int32_t> slots{0, 1, 2};
  ForwardArgs args = tiles.fill();
  args.pool.write_slots = TensorRef::contiguous(slots.data(), DType::kI32, {2});
  args.pool.read_slots = TensorRef::contiguous(slots.data() + 1, DType::kI32, {2});
  run(args);
  for (std::int64_t row = 0; row < 100; ++row) {
    if (row < 24 || row >= 64) expect_value(tiles, row, 0.0f);
  }
  expect_rows(tiles, {.call = before, .begin = 24}, 20);
  expect_rows(tiles, {.call = before, .begin = 44}, 20);
}

// Rows of padded sequences stayed uninitialised, in prefill and in decode (all Triton kernels).
TEST_P(Defects, RowsOfPaddedSequencesAreWritten) {
  Call call = make({0, 1, 20, 29});
  call.read_slots = {-1, -1, 2};
  std::fill(call.out.begin(), call.out.end(), std::numeric_limits<float>::quiet_NaN());
  run(call);
  for (std::int64_t row = 0; row < 20; ++row) expect_value(call, row, 0.0f);
  Call rows = make({0, 1, 2, 3});
  rows.read_slots = {1, -1, -1};
  std::fill(rows.out.begin(), rows.out.end(), std::numeric_limits<float>::quiet_NaN());
  decode(rows);
  for (const std::int64_t row : {1, 2}) expect_value(rows, row, 0.0f);
}

// A first chunk of a few tokens more than 1024 went through a state pointer that was null
// (vllm 10895, 9838): the final state lay across two parts of the sequence.
TEST_P(Defects, LengthsJustOverAThousandNeedNoState) {
  for (const std::int32_t length : {1023, 1024, 1025, 1026, 1027, 2049}) {
    for (const bool keeps : {false, true}) {
      Call call = make({0, length, length + 3});
      if (!keeps) call.state.clear();
      Call old = call;
      run(call);
      expect_rows(call, {.call = old}, length);
      if (keeps) expect_state(call, 0, {.call = old}, length);
    }
  }
}

// One long sequence took more blocks than the second axis of a grid may have (fla 1097; kernels
// with 8 tokens a block end at 524,280).
TEST_P(Defects, OneSequenceMayBeLongerThan524280Tokens) {
  constexpr std::int32_t kTokens = 524280 + 77;
  Call call = make({0, kTokens}, {.channels = 1, .width = 2});
  Call old = call;
  run(call);
  const Line line{.call = old};
  for (std::int64_t token = 0; token < kTokens; ++token) {
    ASSERT_EQ(call.out_at(token, 0), line.output(token, 0)) << token;
  }
  expect_state(call, 0, line, kTokens);
}

// Long sequences with wide windows have a kernel for which random cases are too small.
TEST_P(Defects, WideWindowsOfLongSequencesAreExact) {
  constexpr std::int32_t kBegin = 3, kEnd = 1030, kRows = 1040;
  Call call = make({kBegin, kEnd}, {.channels = 99 * 32, .width = 9}, kRows);
  call.flags = {1};
  std::fill(call.out.begin(), call.out.end(), std::numeric_limits<float>::quiet_NaN());
  Call old = call;
  run(call);
  const Line line{.call = old, .begin = kBegin, .slot = 0};
  expect_rows(call, line, kEnd - kBegin);
  expect_state(call, 0, line, kEnd - kBegin);
  for (std::int64_t row = 0; row < kRows; ++row) {
    if (row < kBegin || row >= kEnd) expect_value(call, row, 0.0f);
  }
}

// A batch with as many tokens as sequences was taken for one token each (fla).
TEST_P(Defects, AsManyTokensAsSequencesAreNotOneEach) {
  Call call = make({0, 0, 2, 2, 4, 4});
  call.slots = 5;
  call.resize(5);  // and a row of nobody
  call.flags = {1, 1, 1, 0, 1};
  Call old = call;
  run(call);
  expect_rows(call, {.call = old, .begin = 0, .slot = 1}, 2);
  expect_rows(call, {.call = old, .begin = 2}, 2);
  for (const std::int64_t slot : {0, 2, 4}) expect_untouched(call, old, slot);
}

// Tails beyond the length that the host had stated were silently left out (sglang's grid of
// sequences x longest).
TEST_P(Defects, TokensBeyondTheStatedLongestLengthAreComputed) {
  Call call = make({0, 3, 40});
  call.args.options.schedule = Schedule::kSequenceGrid;
  call.args.options.max_seqlen = 8;
  Call old = call;
  run(call);
  expect_rows(call, {.call = old, .begin = 3}, 37);
  expect_state(call, 1, {.call = old, .begin = 3}, 37);
}

// With one token a tensor's strides do not tell its layout, and a library that guessed it refused
// some of its arguments (causal-conv1d).
TEST_P(Defects, OneTokenMayHaveAnyStrides) {
  for (const std::int64_t token_stride : {std::int64_t{1}, kChannels, std::int64_t{1000003}}) {
    Call call = make({0, 1});
    call.flags = {1};
    ForwardArgs args = call.fill();
    args.x.strides[0] = args.out.strides[0] = token_stride;
    Call old = call;
    run(args);
    expect_rows(call, {.call = old, .slot = 0}, 1);
    expect_state(call, 0, {.call = old, .slot = 0}, 1);
  }
}

// A launch without blocks is an error (causal-conv1d has no test for empty tensors).
TEST_P(Defects, EmptyBatchesAreNoErrors) {
  Call no_sequences = make({0}, {}, 0);
  run(no_sequences);
  Call no_tokens = make({0, 0, 0}, {}, 0);
  no_tokens.flags = {1, 1};
  Call old = no_tokens;
  run(no_tokens);
  ASSERT_TRUE(no_tokens.state == old.state);
  Call no_channels = make({0, 4}, {.channels = 0});
  run(no_channels);
  Call decoded = make({0}, {}, 0);
  decode(decoded);
}

// The vector path was chosen by the length alone: odd pitches and addresses faulted
// (causal-conv1d, channel-first).
TEST_P(Defects, OddPitchesAndAddressesAreServed) {
  Call dense = make({0, 8, 24});
  dense.flags = {1, 0};
  Call old = dense;
  run(dense);
  for (const bool channel_major : {false, true}) {
    for (const std::int64_t shift : {0, 1, 3}) {
      for (const std::int64_t gap : {0, 1, 5}) {
        const std::int64_t pitch = (channel_major ? 24 : kChannels) + gap;
        std::vector<float> x(
            static_cast<std::size_t>((channel_major ? kChannels : 24) * pitch + shift), kPoison),
            out = x;
        std::vector<float> expected = out;
        const auto index = [&](std::int64_t row, std::int64_t c) {
          return static_cast<std::size_t>(shift +
                                          (channel_major ? c * pitch + row : row * pitch + c));
        };
        for (std::int64_t row = 0; row < 24; ++row) {
          for (std::int64_t c = 0; c < kChannels; ++c) {
            x[index(row, c)] = old.x_at(row, c);
            expected[index(row, c)] = dense.out_at(row, c);
          }
        }
        Call call = old;
        ForwardArgs args = call.fill();
        args.x.data = x.data() + shift;
        args.out.data = out.data() + shift;
        for (TensorRef* tensor : {&args.x, &args.out}) {
          tensor->strides[0] = channel_major ? 1 : pitch;
          tensor->strides[1] = channel_major ? pitch : 1;
        }
        run(args);
        ASSERT_TRUE(out == expected) << "shift " << shift << ", pitch " << pitch;
        ASSERT_TRUE(call.state == dense.state);
      }
    }
  }
}

// Masking by a product let NaN of the rows before a sequence into it.
TEST_P(Defects, NanOfTheNeighbourStaysThere) {
  Call call = make({0, 7, 30});
  for (std::int64_t row = 0; row < 7; ++row) {
    for (std::int64_t c = 0; c < kChannels; ++c) {
      call.x_at(row, c) = std::numeric_limits<float>::quiet_NaN();
    }
  }
  Call old = call;
  run(call);
  expect_rows(call, {.call = old, .begin = 7}, 23);
}

// A decode with a state of another type wrote its result to a converted copy of x, which nobody
// looked at (vllm).
TEST_P(Defects, InPlaceMeansXWhateverTheTypeOfTheState) {
  for (const bool one_token : {false, true}) {
    Call call = make({0, 1, 2});
    std::vector<std::uint16_t> pool(call.state.size());
    for (std::size_t i = 0; i < pool.size(); ++i) {
      pool[i] = bf16_from_f32(call.state[i]);
      call.state[i] = f32_from_bf16(pool[i]);
    }
    Call old = call;
    ForwardArgs args = call.fill();
    args.pool.state->data = pool.data();
    args.pool.state->dtype = DType::kBF16;
    args.out = args.x;
    args.op = one_token ? Op::kDecode : Op::kForward;
    if (one_token) args.sequences.query_start_loc.reset();
    args.sequences.initial_state = InitialState::kAll;
    run(args);
    for (const std::int64_t s : {0, 1}) {
      const Line line{.call = old, .begin = s, .slot = s};
      for (std::int64_t c = 0; c < kChannels; ++c) ASSERT_EQ(call.x_at(s, c), line.output(0, c));
    }
  }
}

/// A call of width 2 on two tokens of equal channels: one value of each of the three kinds.
class TypedCall {
 public:
  TypedCall(DType x, DType weight, DType out, DType state)
      : x_(x), weight_(weight), out_(out), state_(state) {}
  /// out[1] = older * x[0] + newer * x[1]
  void set(double first, double second, double older, double newer) {
    for (std::int64_t c = 0; c < kChannels; ++c) {
      store_element(x_, x + c * element_bytes(x_), first);
      store_element(x_, x + (kChannels + c) * element_bytes(x_), second);
      store_element(weight_, weight + 2 * c * element_bytes(weight_), older);
      store_element(weight_, weight + (2 * c + 1) * element_bytes(weight_), newer);
    }
  }
  [[nodiscard]] ForwardArgs args() {
    ForwardArgs args;
    args.x = TensorRef::contiguous(x, x_, {2, kChannels});
    args.out = TensorRef::contiguous(out, out_, {2, kChannels});
    args.weight = TensorRef::contiguous(weight, weight_, {kChannels, 2});
    args.pool.state = TensorRef::contiguous(state, state_, {1, 1, kChannels});
    return args;
  }
  [[nodiscard]] double output(std::int64_t c) const {
    return load_element(out_, out + (kChannels + c) * element_bytes(out_));
  }
  [[nodiscard]] double kept(std::int64_t c) const {
    return load_element(state_, state + c * element_bytes(state_));
  }

 private:
  DType x_, weight_, out_, state_;
  alignas(16) char x[2 * kChannels * 8] = {}, weight[2 * kChannels * 8] = {};
  alignas(16) char out[2 * kChannels * 8] = {}, state[kChannels * 8] = {};
};

// Each product of two bf16 numbers was rounded to bf16 before it was added (the Triton kernels).
TEST_P(Defects, ProductsAreNotRoundedToTheTypeOfTheInputs) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const double step = dtype == DType::kF16 ? 0x1p-10 : 0x1p-7;
    TypedCall call(dtype, dtype, dtype, dtype);
    call.set(1 + step, 1 + 2 * step, 1 + step, -1);  // (1 + step)^2 - (1 + 2 step)
    run(call.args());
    for (std::int64_t c = 0; c < kChannels; ++c) ASSERT_EQ(call.output(c), step * step);
  }
}

// Results were cut off instead of rounded to nearest even (aiter).
TEST_P(Defects, ResultsAreRoundedToNearestEven) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const double step = dtype == DType::kF16 ? 0x1p-10 : 0x1p-7;
    const double exact[][2] = {{0.75, 1}, {0.5, 0}, {1.5, 2}, {0.25, 0}, {2.5, 2}, {-0.25, 0}};
    for (const auto& [value, rounded] : exact) {
      for (const double sign : {1.0, -1.0}) {
        TypedCall call(dtype, DType::kF32, dtype, DType::kF32);
        call.set(0, 1, 0, sign * (1 + value * step));
        run(call.args());
        for (std::int64_t c = 0; c < kChannels; ++c) {
          ASSERT_EQ(call.output(c), sign * (1 + rounded * step)) << value << " steps";
        }
      }
    }
  }
}

// The bits of weights were read as if they had the type of x (the CUDA operators of
// causal-conv1d's lineage), and fp16 rows with a bf16 state did not compile (sglang 24261).
TEST_P(Defects, TypesOfInputsWeightsAndStatesAreIndependent) {
  for (const auto& [x, x_name] : kDTypes) {
    for (const auto& [weight, weight_name] : kDTypes) {
      for (const auto& [state, state_name] : kDTypes) {
        for (const auto& [out, out_name] : kDTypes) {
          TypedCall call(x, weight, out, state);
          call.set(3, -2.5, 1.25, 0.5);
          run(call.args());
          for (std::int64_t c = 0; c < kChannels; ++c) {
            ASSERT_EQ(call.output(c), 2.5) << x_name << ", " << weight_name << ", " << out_name;
            ASSERT_EQ(call.kept(c), -2.5) << x_name << ", " << state_name;
          }
        }
      }
    }
  }
}

// Widths that the kernel had no branch for were accepted and computed wrongly, or not at all (vllm
// and sglang: 5; aiter: above 4; the CUDA operators: any).
TEST_P(Defects, EveryWidthThatIsAcceptedIsComputed) {
  for (const std::int64_t width : widths()) {
    Call call = make({0, 3, 60}, {.width = width});
    call.flags = {1, 0};
    Call old = call;
    run(call);
    expect_rows(call, {.call = old, .slot = 0}, 3);
    expect_rows(call, {.call = old, .begin = 3}, 57);
    Call one = make({0, 1, 2}, {.width = width});
    old = one;
    decode(one);
    for (const std::int64_t s : {0, 1}) {
      expect_rows(one, {.call = old, .begin = s, .slot = s}, 1);
      expect_state(one, s, {.call = old, .begin = s, .slot = s}, 1);
    }
  }
  for (const std::int64_t width : {std::int64_t{1}, std::int64_t{kMaxWidth + 1}}) {
    Call call = make({0, 3}, {.width = width});
    call.state.clear();
    const Status status = GetParam().forward(call.fill());
    ASSERT_EQ(status.code(), Code::kInvalidArgument);
    ASSERT_NE(status.message().find("weight: width"), std::string::npos);
  }
}

// A name that was not known meant no activation, silently (vllm, sglang).
TEST_P(Defects, UnknownActivationsAreRefused) {
  Call call = make({0, 3});
  call.args.epilogue.activation = static_cast<Activation>(9);
  const Status status = GetParam().forward(call.fill());
  ASSERT_EQ(status.code(), Code::kInvalidArgument);
  ASSERT_NE(status.message().find("activation: "), std::string::npos) << status.message();
}

// SiLU by an approximate tangent loses all digits of small results at negative inputs.
TEST_P(Defects, SiluOfNegativeNumbersKeepsItsDigits) {
  for (const double a : {-0.5, -4.0, -8.0, -12.0, -20.0, -40.0, -80.0}) {
    TypedCall call(DType::kF32, DType::kF32, DType::kF32, DType::kF32);
    call.set(0, a, 0, 1);
    ForwardArgs args = call.args();
    args.epilogue.activation = Activation::kSilu;
    run(args);
    const double exact = a / (1 + std::exp(-a));
    for (std::int64_t c = 0; c < kChannels; ++c) {
      ASSERT_LT(std::fabs(call.output(c) / exact - 1), 1e-6) << a;
    }
  }
}

// Prefill and decode gave other bits, packed sequences could not be continued in chunks, and a path
// that was to give the same bits forgot to keep the state (sglang 35632, causal-conv1d 75).
TEST_P(Defects, ChunksAndSingleTokensGiveTheBitsOfTheWhole) {
  constexpr std::int64_t kTokens = 29;
  Call whole = make({0, kTokens, 2 * kTokens});
  for (std::size_t i = 0; i < whole.x.size(); ++i) whole.x[i] = std::sin(static_cast<float>(i));
  for (std::size_t i = 0; i < whole.weight.size(); ++i) {
    whole.weight[i] = std::cos(static_cast<float>(i));
  }
  whole.args.epilogue.activation = Activation::kSilu;
  Call old = whole;
  run(whole);
  for (const std::int32_t chunk : {1, 2, 3, 5, 16}) {
    for (const bool one_token : {false, true}) {
      if (one_token && chunk > 1) continue;
      std::vector<float> pool = old.state;
      for (std::int32_t done = 0; done < kTokens; done += chunk) {
        const std::int32_t now = std::min(chunk, static_cast<std::int32_t>(kTokens) - done);
        Call call = make({0, now, 2 * now});
        call.weight = whole.weight;
        call.args.epilogue.activation = Activation::kSilu;
        call.state = pool;
        call.flags = {done > 0, done > 0};
        for (std::int64_t row = 0; row < 2 * now; ++row) {
          const std::int64_t from = row / now * kTokens + done + row % now;
          for (std::int64_t c = 0; c < kChannels; ++c) call.x_at(row, c) = old.x_at(from, c);
        }
        one_token&& done > 0 ? decode(call) : run(call);
        for (std::int64_t row = 0; row < 2 * now; ++row) {
          const std::int64_t from = row / now * kTokens + done + row % now;
          for (std::int64_t c = 0; c < kChannels; ++c) {
            ASSERT_EQ(call.out_at(row, c), whole.out_at(from, c)) << "chunks of " << chunk;
          }
        }
        pool = call.state;
      }
      ASSERT_TRUE(pool == whole.state) << "chunks of " << chunk;
    }
  }
}

// Bounds that make no sense ended the process or reached outside of the tensors (cuDNN's frontend
// traps).
TEST_P(Defects, BoundsThatMakeNoSenseAreSurvived) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  for (const std::vector<std::int32_t>& bounds : {std::vector<std::int32_t>{0, 9, 3, 8},
                                                  {-5, 2, 100, 8},
                                                  {8, 6, 4, 2},
                                                  {kMost, -kMost - 1, 0, 8},
                                                  {0, kMost, kMost, kMost}}) {
    Call call = make(bounds, {}, 8);
    call.flags = {1, 1, 1};
    Call old = call;
    run(call);
    ASSERT_TRUE(call.x == old.x);
    expect_untouched(call, old, 3);
    Call good = make({0, 8}, {}, 8);
    run(good);  // the device is still there
  }
}

}  // namespace shortconv::test
