// Gradients of the CPU backend: against the fp64 reference on random calls of every kind, and what
// its bits do not depend on.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../common/backward_case.hpp"
#include "common/random.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

using tests::BackwardCase;
using tests::BackwardResults;
using tests::Memory;

TEST(CpuBackward, AgreesWithTheReference) {
  tools::Random random(31);
  for (int repetition = 0; repetition < 400; ++repetition) {
    const std::string where = std::to_string(repetition) + " ";
    BackwardCase one = BackwardCase::any(random);
    BackwardResults cpu = one.results, reference = one.results;
    BackwardArgs cpu_args = one.args_to(cpu, BackendId::kCpu);
    cpu_args.threads = static_cast<std::int32_t>(random.between(0, 3));
    Status status = backward(cpu_args);
    ASSERT_TRUE(status.ok()) << where << status.message();
    status = backward(one.args_to(reference, BackendId::kReference));
    ASSERT_TRUE(status.ok()) << where << status.message();
    tests::expect_close(cpu, reference, where);
    if (HasFatalFailure()) return;
  }
}

TEST(CpuBackward, BitsDoNotDependOnThreads) {
  tools::Random random(37);
  for (int repetition = 0; repetition < 60; ++repetition) {
    BackwardCase one = BackwardCase::any(random);
    BackwardResults first = one.results;
    BackwardArgs args = one.args_to(first, BackendId::kCpu);
    args.threads = 1;
    ASSERT_TRUE(backward(args).ok());
    for (const std::int32_t threads : {2, 3, 8}) {
      BackwardResults again = one.results;
      args = one.args_to(again, BackendId::kCpu);
      args.threads = threads;
      ASSERT_TRUE(backward(args).ok());
      ASSERT_TRUE(again == first) << repetition;
    }
  }
}

// The gradient of the state at the cut is carried in fp32.
TEST(CpuBackward, EveryCutOfASequenceGivesTheSameBits) {
  // Whole steps of channels and a rest, which have kernels of their own.
  constexpr std::int64_t kTokens = 97, kChannels = 85;
  for (const DType dtype : tests::kRowDTypes) {
    for (const std::int64_t width : {2, 4, 7, 9}) {
      tools::Random random(41);
      const std::int64_t history = width - 1;
      Memory x(dtype, {kTokens, kChannels}), grad_out = x, grad_x = x, cut_x = x;
      Memory weight(DType::kF32, {kChannels, width});
      Memory state(dtype, {1, history, kChannels}), middle = state;
      Memory final(DType::kF32, {1, history, kChannels});
      Memory grad_state = final, at_cut = final, cut_state = final;
      for (Memory* one : {&x, &grad_out, &weight, &state, &final}) one->fill(random);
      const auto rows = [&](Memory& of, std::int64_t begin, std::int64_t end) {
        TensorRef part = of.ref();
        part.data = of.bytes.data() + begin * kChannels * element_bytes(dtype);
        part.shape[0] = end - begin;
        return part;
      };
      const auto run = [&](std::int64_t begin, std::int64_t end, Memory& initial,
                           Memory& grad_final, Memory& to, Memory& to_state) {
        BackwardArgs args;
        args.activation = Activation::kSilu;
        args.x = rows(x, begin, end);
        args.weight = weight.ref();
        args.initial_state = initial.ref();
        args.grad_out = rows(grad_out, begin, end);
        args.grad_final_state = grad_final.ref();
        args.grad_x = rows(to, begin, end);
        args.grad_initial_state = to_state.ref();
        const Status status = backward(args);
        ASSERT_TRUE(status.ok()) << status.message();
      };
      run(0, kTokens, state, final, grad_x, grad_state);
      const std::size_t row_bytes = static_cast<std::size_t>(kChannels * element_bytes(dtype));
      for (std::int64_t cut = 0; cut <= kTokens; ++cut) {
        for (std::int64_t column = 0; column < history; ++column) {
          const std::int64_t n = cut - history + column;
          const char* from = n < 0 ? state.bytes.data() + (n + history) * row_bytes
                                   : x.bytes.data() + n * row_bytes;
          std::memcpy(middle.bytes.data() + column * row_bytes, from, row_bytes);
        }
        run(cut, kTokens, middle, final, cut_x, at_cut);
        run(0, cut, state, at_cut, cut_x, cut_state);
        ASSERT_EQ(cut_x.bytes, grad_x.bytes) << cut;
        ASSERT_EQ(cut_state.bytes, grad_state.bytes) << cut;
      }
    }
  }
}

// |error| <= 5e-7 * (s + |a| s (1 - s)) for the derivative of SiLU.
TEST(CpuBackward, SlopeOfSiluIsAsPreciseAsPromised) {
  constexpr std::int64_t kCount = 200000;
  std::vector<float> a(kCount), ones(kCount, 1.0f), slope(kCount), weight = {0.0f, 1.0f};
  for (std::int64_t i = 0; i < kCount; ++i) {
    a[static_cast<std::size_t>(i)] = static_cast<float>(-100 + 0.001 * static_cast<double>(i));
  }
  BackwardArgs args;
  args.activation = Activation::kSilu;
  args.x = TensorRef::contiguous(a.data(), DType::kF32, {kCount, 1});
  args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {1, 2});
  args.grad_out = TensorRef::contiguous(ones.data(), DType::kF32, {kCount, 1});
  args.grad_x = TensorRef::contiguous(slope.data(), DType::kF32, {kCount, 1});
  ASSERT_TRUE(backward(args).ok());
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double value = a[i], s = 1 / (1 + std::exp(-value));
    // Beyond -88.4, where the slope is at most 3.7e-37, e^-a counts as infinity.
    const double bound = 5e-7 * (s + std::fabs(value) * s * (1 - s)) + 3.7e-37;
    ASSERT_NEAR(slope[i], s * (1 + value * (1 - s)), bound) << value;
  }
}

}  // namespace
}  // namespace shortconv
