// Gradients of the CPU backend: against the fp64 reference on random calls of every kind, and what
// its bits do not depend on.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

// A tensor with memory of its own. The last axis may have gaps, or come first in memory.
struct Memory {
  std::vector<char> bytes;
  TensorRef view;

  Memory() = default;
  Memory(DType dtype, const std::vector<std::int64_t>& shape, tools::Random& random,
         bool may_be_strided = true) {
    view.dtype = dtype;
    view.ndim = static_cast<std::int32_t>(shape.size());
    const std::int64_t layout = may_be_strided ? random.between(0, 2) : 0;
    std::int64_t stride = 1;
    std::vector<int> order;  // axes from the innermost outwards
    for (int axis = view.ndim - 1; axis >= 0; --axis) order.push_back(axis);
    if (layout == 1 && order.size() > 1) std::swap(order[0], order[1]);
    for (const int axis : order) {
      view.shape[axis] = shape[static_cast<std::size_t>(axis)];
      view.strides[axis] = stride;
      stride *= std::max<std::int64_t>(view.shape[axis], 1);
      if (layout == 2) stride += 3;
    }
    bytes.assign(static_cast<std::size_t>(stride * element_bytes(dtype)), '\x7f');
  }
  TensorRef& ref() {
    view.data = bytes.data();
    return view;
  }
  // Calls visit(address) for each element, in the order of the shape.
  template <typename Visit>
  void for_each(const Visit& visit) {
    for (std::int64_t i = 0; i < count(); ++i) {
      std::int64_t rest = i, offset = 0;
      for (int axis = view.ndim - 1; axis >= 0; --axis) {
        offset += rest % view.shape[axis] * view.strides[axis];
        rest /= view.shape[axis];
      }
      visit(bytes.data() + offset * element_bytes(view.dtype));
    }
  }
  [[nodiscard]] std::int64_t count() const {
    if (bytes.empty()) return 0;
    std::int64_t all = 1;
    for (int axis = 0; axis < view.ndim; ++axis) all *= view.shape[axis];
    return all;
  }
  void fill(tools::Random& random) {
    for_each([&](char* at) { store_element(view.dtype, at, random.normal() * 0.7); });
  }
  std::vector<double> numbers() {
    std::vector<double> all;
    for_each([&](const char* at) { all.push_back(load_element(view.dtype, at)); });
    return all;
  }
};

constexpr std::array kRowDTypes = {DType::kF32, DType::kF16, DType::kBF16};

struct Outputs {
  Memory x, weight, bias, state, input_gate, output_gate;
};

// A call with its tensors.
struct Case {
  BackwardArgs args;
  Memory x, weight, bias, input_gate, output_gate, state, grad_out, grad_final;
  std::vector<std::int64_t> bounds;
  std::vector<std::int32_t> seq_idx;
  Outputs outputs;

  explicit Case(tools::Random& random) {
    const auto any = [&] { return kRowDTypes[static_cast<std::size_t>(random.between(0, 2))]; };
    const std::int64_t width = random.chance(0.8) ? random.between(2, 8) : random.between(9, 64);
    args.dilation = random.chance(0.2) ? static_cast<std::int32_t>(63 / (width - 1)) : 1;
    const std::int64_t channels =
        random.chance(0.2) ? random.between(250, 530) : random.between(1, 70);
    const std::int64_t history = (width - 1) * args.dilation;
    std::int64_t sequences = random.between(1, 5), length = random.between(0, 150 / sequences);
    const std::int64_t kind = random.between(0, 2);
    std::vector<std::int64_t> rows = {sequences, length, channels};
    const DType x_dtype = any(), weight_dtype = random.chance(0.5) ? x_dtype : DType::kF32;
    if (kind == 0) {  // ragged, with rows of no sequence at both ends
      bounds = {random.between(0, 3)};
      for (std::int64_t s = 0; s < sequences; ++s) {
        bounds.push_back(bounds.back() + (random.chance(0.2) ? 0 : random.between(0, length)));
      }
      rows = {bounds.back() + random.between(0, 3), channels};
      args.query_start_loc = TensorRef::contiguous(bounds.data(), DType::kI64, {sequences + 1});
    }
    if (kind == 1) {
      std::int32_t number = 0;
      for (std::int64_t i = 0; i < sequences * length; ++i) {
        if (random.chance(0.2)) number = static_cast<std::int32_t>(random.between(-2, 9));
        seq_idx.push_back(number);
      }
      args.seq_idx = TensorRef::contiguous(seq_idx.data(), DType::kI32, {sequences, length});
    }
    args.activation = random.chance(0.5) ? Activation::kSilu : Activation::kNone;
    const auto input = [&](Memory& memory, DType dtype, const std::vector<std::int64_t>& shape) {
      memory = Memory(dtype, shape, random);
      memory.fill(random);
      return memory.ref();
    };
    const std::vector<std::int64_t> states = {sequences, history, channels};
    args.x = input(x, x_dtype, rows);
    args.weight = input(weight, weight_dtype, {channels, width});
    args.grad_out = input(grad_out, any(), rows);
    if (random.chance(0.5)) args.bias = input(bias, weight_dtype, {channels});
    if (random.chance(0.3)) args.input_gate = input(input_gate, x_dtype, rows);
    if (random.chance(0.3)) args.output_gate = input(output_gate, x_dtype, rows);
    args.residual = !args.input_gate && !args.output_gate && random.chance(0.3);
    if (random.chance(0.6)) args.initial_state = input(state, any(), states);
    if (kind != 1 && random.chance(0.6)) args.grad_final_state = input(grad_final, any(), states);
    const auto output = [&](Memory& memory, DType dtype, const std::vector<std::int64_t>& shape) {
      memory = Memory(dtype, shape, random);
      memory.fill(random);
      return memory.ref();
    };
    const auto or_f32 = [&](DType dtype) { return random.chance(0.5) ? dtype : DType::kF32; };
    args.grad_x = output(outputs.x, x_dtype, rows);
    args.grad_weight = output(outputs.weight, or_f32(weight_dtype), {channels, width});
    if (args.bias) args.grad_bias = output(outputs.bias, or_f32(weight_dtype), {channels});
    if (args.initial_state) {
      args.grad_initial_state = output(outputs.state, or_f32(args.initial_state->dtype), states);
    }
    if (args.input_gate) args.grad_input_gate = output(outputs.input_gate, x_dtype, rows);
    if (args.output_gate) args.grad_output_gate = output(outputs.output_gate, x_dtype, rows);
    args.accumulate = args.grad_weight->dtype == DType::kF32 &&
                      (!args.grad_bias || args.grad_bias->dtype == DType::kF32) &&
                      random.chance(0.3);
  }

  // The call with results in `to`, a copy of `outputs`.
  [[nodiscard]] BackwardArgs args_to(Outputs& to, BackendId backend) const {
    BackwardArgs copy = args;
    copy.backend = backend;
    const auto use = [](std::optional<TensorRef>& tensor, Memory& memory) {
      if (tensor) tensor = memory.ref();
    };
    use(copy.grad_x, to.x);
    use(copy.grad_weight, to.weight);
    use(copy.grad_bias, to.bias);
    use(copy.grad_initial_state, to.state);
    use(copy.grad_input_gate, to.input_gate);
    use(copy.grad_output_gate, to.output_gate);
    return copy;
  }
};

void expect_close(Memory& found, Memory& expected, double magnitude, const std::string& name) {
  const std::vector<double> one = found.numbers(), other = expected.numbers();
  const double ulp = found.view.dtype == DType::kF32   ? 0x1p-23
                     : found.view.dtype == DType::kF16 ? 0x1p-10
                                                       : 0x1p-7;
  for (std::size_t i = 0; i < one.size(); ++i) {
    // One unit of the dtype, and the rounding of chains in fp32, 64 products at most.
    ASSERT_NEAR(one[i], other[i], ulp * std::fabs(other[i]) + 64 * 0x1p-24 * magnitude)
        << name << " " << i;
  }
}

TEST(CpuBackward, AgreesWithTheReference) {
  tools::Random random(31);
  for (int repetition = 0; repetition < 400; ++repetition) {
    const std::string where = std::to_string(repetition) + " ";
    Case one(random);
    Outputs cpu = one.outputs, reference = one.outputs;
    BackwardArgs cpu_args = one.args_to(cpu, BackendId::kCpu);
    cpu_args.threads = static_cast<std::int32_t>(random.between(0, 3));
    Status status = backward(cpu_args);
    ASSERT_TRUE(status.ok()) << where << status.message();
    status = backward(one.args_to(reference, BackendId::kReference));
    ASSERT_TRUE(status.ok()) << where << status.message();
    // Inputs are below 2.5 and products add up to about 10; totals of 150 tokens to 200.
    expect_close(cpu.x, reference.x, 30, where + "x");
    expect_close(cpu.weight, reference.weight, 300, where + "weight");
    expect_close(cpu.bias, reference.bias, 300, where + "bias");
    expect_close(cpu.state, reference.state, 30, where + "state");
    expect_close(cpu.input_gate, reference.input_gate, 30, where + "input_gate");
    expect_close(cpu.output_gate, reference.output_gate, 30, where + "output_gate");
    if (HasFatalFailure()) return;
  }
}

TEST(CpuBackward, BitsDoNotDependOnThreads) {
  tools::Random random(37);
  for (int repetition = 0; repetition < 60; ++repetition) {
    Case one(random);
    Outputs first = one.outputs;
    BackwardArgs args = one.args_to(first, BackendId::kCpu);
    args.threads = 1;
    ASSERT_TRUE(backward(args).ok());
    for (const std::int32_t threads : {2, 3, 8}) {
      Outputs again = one.outputs;
      args = one.args_to(again, BackendId::kCpu);
      args.threads = threads;
      ASSERT_TRUE(backward(args).ok());
      for (Memory Outputs::* memory :
           {&Outputs::x, &Outputs::weight, &Outputs::bias, &Outputs::state, &Outputs::input_gate,
            &Outputs::output_gate}) {
        ASSERT_EQ((again.*memory).bytes, (first.*memory).bytes) << repetition;
      }
    }
  }
}

// The gradient of the state at the cut is carried in fp32.
TEST(CpuBackward, EveryCutOfASequenceGivesTheSameBits) {
  constexpr std::int64_t kTokens = 97, kChannels = 21;
  for (const DType dtype : kRowDTypes) {
    for (const std::int64_t width : {2, 4, 7, 9}) {
      tools::Random random(41);
      const std::int64_t history = width - 1;
      Memory x(dtype, {kTokens, kChannels}, random, false), grad_out = x, grad_x = x, cut_x = x;
      Memory weight(DType::kF32, {kChannels, width}, random, false);
      Memory state(dtype, {1, history, kChannels}, random, false), middle = state;
      Memory final(DType::kF32, {1, history, kChannels}, random, false);
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
