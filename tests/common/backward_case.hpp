// Random backward calls with memory of their own, for the tests of every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::tests {

/// How the axes of a tensor lie in memory.
enum class MemoryLayout : std::uint8_t {
  kDense,
  kSwapped,  // the last two axes
  kGaps,     // between all elements
  kPitch,    // between rows, of 16 elements
  kRuns,     // tokens innermost, in runs of a multiple of 16 bytes
};

/// A tensor with memory of its own.
struct Memory {
  std::vector<char> bytes;
  TensorRef view;

  Memory() = default;
  Memory(DType dtype, const std::vector<std::int64_t>& shape,
         MemoryLayout layout = MemoryLayout::kDense) {
    view.dtype = dtype;
    view.ndim = static_cast<std::int32_t>(shape.size());
    std::int64_t stride = 1;
    std::vector<int> order;  // axes from the innermost outwards
    for (int axis = view.ndim - 1; axis >= 0; --axis) order.push_back(axis);
    const bool runs = layout == MemoryLayout::kRuns;
    if ((layout == MemoryLayout::kSwapped || runs) && order.size() > 1) {
      std::swap(order[0], order[1]);
    }
    for (const int axis : order) {
      view.shape[axis] = shape[static_cast<std::size_t>(axis)];
      view.strides[axis] = stride;
      stride *= std::max<std::int64_t>(view.shape[axis], 1);
      if (layout == MemoryLayout::kGaps) stride += 3;
      if (layout == MemoryLayout::kPitch) stride += 16;
      if (runs) stride = (stride + 7) / 8 * 8;
    }
    bytes.assign(static_cast<std::size_t>(stride * element_bytes(dtype)), '\x7f');
  }
  TensorRef& ref() {
    view.data = bytes.data();
    return view;
  }
  /// Calls visit(address) for each element, in the order of the shape.
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
  friend bool operator==(const Memory& a, const Memory& b) { return a.bytes == b.bytes; }
};

inline constexpr std::array kRowDTypes = {DType::kF32, DType::kF16, DType::kBF16};

/// The tensors that a call writes, with what was in them before.
struct BackwardResults {
  Memory x, weight, bias, state, input_gate, output_gate;

  /// Of every byte, those between the elements too.
  friend bool operator==(const BackwardResults&, const BackwardResults&) = default;
};

/// A call with its tensors.
struct BackwardCase {
  /// A call of any kind.
  static BackwardCase any(tools::Random& random) {
    BackwardCase one;
    one.draw_dtypes(random);
    one.width = random.chance(0.8) ? random.between(2, 8) : random.between(9, 64);
    one.args.dilation = random.chance(0.2) ? static_cast<std::int32_t>(63 / (one.width - 1)) : 1;
    one.channels = random.chance(0.2) ? random.between(250, 530) : random.between(1, 70);
    one.draw_rows(random, 150);
    one.draw_tensors(random);
    return one;
  }

  /// A call that has a kernel of its own on a GPU: rows of one type, token-major and aligned or,
  /// with widths up to 4, of any strides.
  static BackwardCase with_strips(tools::Random& random, DType dtype) {
    BackwardCase one;
    one.has_strips = true;
    one.x_dtype = one.grad_out_dtype = dtype;
    one.weight_dtype = random.chance(0.5) ? dtype : DType::kF32;
    if (random.chance(0.4)) {
      one.width = random.between(2, 4);
      one.channels = random.between(1, 100);
      one.rows_layout = random.chance(0.6) ? MemoryLayout::kRuns : MemoryLayout::kSwapped;
      one.has_one_layout = random.chance(0.7);
    } else {
      one.width = random.between(2, 8);
      const std::int64_t group = 8 / element_bytes(dtype) * (random.chance(0.5) ? 1 : 2);
      one.channels = group * random.between(1, 40);
    }
    one.draw_rows(random, random.chance(0.5) ? 150 : 600);
    one.draw_tensors(random);
    return one;
  }

  /// The call with results in `to`, a copy of `results`.
  [[nodiscard]] BackwardArgs args_to(BackwardResults& to, BackendId backend) {
    BackwardArgs copy = args;
    copy.backend = backend;
    const auto use = [](auto& tensor, Memory& memory) {
      if (!memory.bytes.empty()) tensor = memory.ref();
    };
    use(copy.x, x);
    use(copy.weight, weight);
    use(copy.bias, bias);
    use(copy.input_gate, input_gate);
    use(copy.output_gate, output_gate);
    use(copy.initial_state, state);
    use(copy.grad_out, grad_out);
    use(copy.grad_final_state, grad_final);
    if (!bounds.empty()) {
      copy.query_start_loc = TensorRef::contiguous(bounds.data(), DType::kI64, {sequences + 1});
    }
    if (args.seq_idx) {
      copy.seq_idx = TensorRef::contiguous(seq_idx.data(), DType::kI32, {sequences, length});
    }
    use(copy.grad_x, to.x);
    use(copy.grad_weight, to.weight);
    use(copy.grad_bias, to.bias);
    use(copy.grad_initial_state, to.state);
    use(copy.grad_input_gate, to.input_gate);
    use(copy.grad_output_gate, to.output_gate);
    return copy;
  }

  BackwardArgs args;
  BackwardResults results;
  Memory x, weight, bias, input_gate, output_gate, state, grad_out, grad_final;
  std::vector<std::int64_t> bounds;
  std::vector<std::int32_t> seq_idx;
  DType x_dtype{}, weight_dtype{}, grad_out_dtype{};
  std::int64_t width = 0, channels = 0, sequences = 0, length = 0;
  bool has_strips = false;
  MemoryLayout rows_layout = MemoryLayout::kDense;  // of rows; with kDense pitches as well
  bool has_one_layout = true;                       // for all rows

 private:
  static DType any_dtype(tools::Random& random) {
    return kRowDTypes[static_cast<std::size_t>(random.between(0, 2))];
  }

  void draw_dtypes(tools::Random& random) {
    x_dtype = any_dtype(random);
    weight_dtype = random.chance(0.5) ? x_dtype : DType::kF32;
    grad_out_dtype = any_dtype(random);
  }

  /// Sequences of `most` tokens in all.
  void draw_rows(tools::Random& random, std::int64_t most) {
    sequences = random.between(1, random.chance(0.2) ? 40 : 5);
    length = random.between(0, most / sequences);
    const std::int64_t kind = random.between(0, 2);
    if (kind == 0) {  // ragged, with rows of no sequence at both ends
      bounds = {random.between(0, 3)};
      for (std::int64_t s = 0; s < sequences; ++s) {
        bounds.push_back(bounds.back() + (random.chance(0.2) ? 0 : random.between(0, length)));
      }
      rows_ = {bounds.back() + random.between(0, 3), channels};
      return;
    }
    rows_ = {sequences, length, channels};
    if (kind == 1) {
      const double change = random.chance(0.5) ? 0.2 : 0.02;
      std::int32_t number = 0;
      for (std::int64_t i = 0; i < sequences * length; ++i) {
        if (random.chance(change)) number = static_cast<std::int32_t>(random.between(-2, 9));
        seq_idx.push_back(number);
      }
      args.seq_idx = TensorRef::contiguous(seq_idx.data(), DType::kI32, {sequences, length});
    }
  }

  void draw_tensors(tools::Random& random) {
    const bool with_seq_idx = args.seq_idx.has_value();
    args.activation = random.chance(0.5) ? Activation::kSilu : Activation::kNone;
    const auto tensor = [&](Memory& memory, DType dtype, const std::vector<std::int64_t>& shape) {
      auto layout = static_cast<MemoryLayout>(random.between(0, 2));
      if (has_strips && shape == rows_ && has_one_layout) {
        layout = rows_layout;
        if (layout == MemoryLayout::kDense && random.chance(0.5)) layout = MemoryLayout::kPitch;
      }
      memory = Memory(dtype, shape, layout);
      memory.fill(random);
      return memory.ref();
    };
    const std::vector<std::int64_t> states = {sequences, (width - 1) * args.dilation, channels};
    args.x = tensor(x, x_dtype, rows_);
    args.weight = tensor(weight, weight_dtype, {channels, width});
    args.grad_out = tensor(grad_out, grad_out_dtype, rows_);
    if (random.chance(0.5)) args.bias = tensor(bias, weight_dtype, {channels});
    const double gates = has_strips ? 0.15 : 0.3;
    if (random.chance(gates)) args.input_gate = tensor(input_gate, x_dtype, rows_);
    if (random.chance(gates)) args.output_gate = tensor(output_gate, x_dtype, rows_);
    args.residual = !args.input_gate && !args.output_gate && random.chance(gates);
    if (random.chance(0.5)) args.initial_state = tensor(state, any_dtype(random), states);
    if (!with_seq_idx && random.chance(0.5)) {
      args.grad_final_state = tensor(grad_final, any_dtype(random), states);
    }
    const auto or_f32 = [&](DType dtype) { return random.chance(0.5) ? dtype : DType::kF32; };
    args.grad_x = tensor(results.x, x_dtype, rows_);
    args.grad_weight = tensor(results.weight, or_f32(weight_dtype), {channels, width});
    if (args.bias) args.grad_bias = tensor(results.bias, or_f32(weight_dtype), {channels});
    if (args.initial_state) {
      args.grad_initial_state = tensor(results.state, or_f32(args.initial_state->dtype), states);
    }
    if (args.input_gate) args.grad_input_gate = tensor(results.input_gate, x_dtype, rows_);
    if (args.output_gate) args.grad_output_gate = tensor(results.output_gate, x_dtype, rows_);
    args.accumulate = args.grad_weight->dtype == DType::kF32 &&
                      (!args.grad_bias || args.grad_bias->dtype == DType::kF32) &&
                      random.chance(0.3);
  }

  std::vector<std::int64_t> rows_;

 public:
  /// For messages.
  [[nodiscard]] std::string text() const {
    std::string bounds_text;
    for (const std::int64_t bound : bounds) bounds_text += " " + std::to_string(bound);
    const auto flag = [](bool present, const char* name) {
      return present ? std::string(" ") + name : std::string();
    };
    return std::to_string(sequences) + " x " + std::to_string(length) + " x " +
           std::to_string(channels) + ", width " + std::to_string(width) +
           flag(args.seq_idx.has_value(), "seq_idx") + flag(args.residual, "residual") +
           flag(args.input_gate.has_value(), "input_gate") +
           flag(args.output_gate.has_value(), "output_gate") +
           flag(args.initial_state.has_value(), "initial_state") +
           flag(args.grad_final_state.has_value(), "grad_final_state") +
           flag(!bounds.empty(), "query_start_loc") + bounds_text + " ";
  }
};

inline void expect_close(Memory& found, Memory& expected, double magnitude,
                         const std::string& name) {
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

/// Inputs are below 2.5 and products add up to about 10; totals of 600 tokens to 800.
inline void expect_close(BackwardResults& found, BackwardResults& expected,
                         const std::string& where) {
  expect_close(found.x, expected.x, 30, where + "x");
  expect_close(found.weight, expected.weight, 1200, where + "weight");
  expect_close(found.bias, expected.bias, 1200, where + "bias");
  expect_close(found.state, expected.state, 30, where + "state");
  expect_close(found.input_gate, expected.input_gate, 30, where + "input_gate");
  expect_close(found.output_gate, expected.output_gate, 30, where + "output_gate");
}

}  // namespace shortconv::tests
