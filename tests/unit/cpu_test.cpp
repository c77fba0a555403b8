// Paths of the CPU backend that only large calls take.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "../common/backward_case.hpp"
#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

constexpr std::int64_t kTokens = 4100, kChannels = 4096, kPiece = 820;

struct Data {
  std::vector<std::uint16_t> x, weight;
  Data() : x(kTokens * kChannels), weight(kChannels * 4) {
    tools::Random random(1);
    for (auto& value : x) value = bf16_from_f32(static_cast<float>(random.normal()));
    for (auto& value : weight) value = bf16_from_f32(static_cast<float>(random.normal()));
  }
};

ForwardArgs arguments(Data& data, std::uint16_t* out, std::int64_t first, std::int64_t tokens,
                      std::vector<std::uint16_t>& state) {
  ForwardArgs args;
  args.x =
      TensorRef::contiguous(data.x.data() + first * kChannels, DType::kBF16, {tokens, kChannels});
  args.out = TensorRef::contiguous(out + first * kChannels, DType::kBF16, {tokens, kChannels});
  args.weight = TensorRef::contiguous(data.weight.data(), DType::kBF16, {kChannels, 4});
  args.pool.state = TensorRef::contiguous(state.data(), DType::kBF16, {1, 3, kChannels});
  args.sequences.initial_state = first > 0 ? InitialState::kAll : InitialState::kNone;
  args.epilogue.activation = Activation::kSilu;
  args.options.threads = 2;
  return args;
}

// An output of 32 MiB or more bypasses the caches if it is aligned; smaller ones and others do not.
TEST(Cpu, StreamedOutputsHaveTheBitsOfStoredOnes) {
  Data data;
  std::vector<std::uint16_t> pieces(kTokens * kChannels), piece_state(3 * kChannels);
  for (std::int64_t first = 0; first < kTokens; first += kPiece) {
    ASSERT_TRUE(forward(arguments(data, pieces.data(), first, kPiece, piece_state)).ok());
  }
  for (const std::size_t offset : {0, 1, 32}) {  // aligned, odd, aligned to the next line
    std::vector<std::uint16_t> memory(kTokens * kChannels + 96, 0x7fc1), state(3 * kChannels);
    auto* aligned = reinterpret_cast<std::uint16_t*>(
        (reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
    std::uint16_t* out = aligned + offset;
    ASSERT_TRUE(forward(arguments(data, out, 0, kTokens, state)).ok());
    EXPECT_EQ(std::memcmp(out, pieces.data(), pieces.size() * sizeof pieces[0]), 0) << offset;
    EXPECT_EQ(state, piece_state);
    for (const std::uint16_t* p = memory.data(); p < out; ++p) EXPECT_EQ(*p, 0x7fc1);
    for (const std::uint16_t* p = out + kTokens * kChannels; p < &memory.back(); ++p) {
      EXPECT_EQ(*p, 0x7fc1);
    }
  }
}

// Calls of one token have a loop of their own, which takes the taps from the weights where it can.
TEST(Cpu, OneTokenAfterTheOtherHasTheBitsOfAPrefill) {
  constexpr std::int64_t kRows = 5, kWide = 101;  // whole steps of channels and a rest
  tools::Random random(3);
  for (const DType dtype : tests::kRowDTypes) {
    for (const std::int64_t width : {2, 3, 4, 5}) {
      for (const std::int64_t channels : {std::int64_t{96}, kWide}) {
        for (const bool has_bias : {false, true}) {
          tests::Memory x(dtype, {kRows, channels}), whole = x, single = x;
          tests::Memory weight(dtype, {channels, width}), bias(dtype, {channels});
          tests::Memory state(dtype, {1, width - 1, channels}), last = state;
          for (tests::Memory* one : {&x, &weight, &bias, &state}) one->fill(random);
          last.bytes = state.bytes;
          const auto run = [&](std::int64_t first, std::int64_t tokens, tests::Memory& out,
                               tests::Memory& pool) {
            const auto rows = [&](tests::Memory& of) {
              TensorRef part = of.ref();
              part.data = of.bytes.data() + first * channels * element_bytes(dtype);
              part.shape[0] = tokens;
              return part;
            };
            ForwardArgs args;
            args.x = rows(x);
            args.out = rows(out);
            args.weight = weight.ref();
            if (has_bias) args.bias = bias.ref();
            args.pool.state = pool.ref();
            args.sequences.initial_state = InitialState::kAll;
            args.epilogue.activation = Activation::kSilu;
            ASSERT_TRUE(forward(args).ok());
          };
          run(0, kRows, whole, state);
          for (std::int64_t row = 0; row < kRows; ++row) run(row, 1, single, last);
          EXPECT_EQ(single.bytes, whole.bytes) << width << ' ' << channels << ' ' << has_bias;
          EXPECT_EQ(last.bytes, state.bytes) << width << ' ' << channels << ' ' << has_bias;
        }
      }
    }
  }
}

}  // namespace
}  // namespace shortconv
