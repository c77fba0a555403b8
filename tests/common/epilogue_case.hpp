// Random calls with gates, residual and dilation, checked against plain calls of the same backend
// with fp32 results. The inputs of the plain calls are the gated products, a dilated sequence is
// split into several plain ones, and this file computes the epilogue. All bits must agree for one
// call, for chunks and for single tokens, and the states must hold the inputs' bits. The memory is
// host memory, or memory that host and device share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "call_memory.hpp"
#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

class EpilogueCase {
 public:
  EpilogueCase(const CallMemory& memory, std::uint32_t seed) : memory_(memory), random_(seed) {
    pick_shape();
    make_tensors();
    expect_from_plain_calls();
  }

  /// The call itself, then the same tokens in several calls.
  void check() {
    check_one("in one call", [&] { return run_whole(); });
    if (op_ == Op::kVerify || !can_carry()) return;
    check_one("in chunks", [&] { return run_in_chunks(); });
    check_one("token by token", [&] { return run_token_by_token(); });
  }

  [[nodiscard]] std::string describe() const {
    Problem problem;
    const Status status = make_problem(args_, problem);
    return status.ok() ? to_string(problem) : status.message();
  }

 private:
  // [rows, channels] in a separate allocation. All other bytes of it are NaN.
  struct Rows {
    DType dtype = DType::kF32;
    std::vector<char> initial;
    char* data = nullptr;
    std::int64_t origin = 0, token = 0, channel = 0;  // in elements

    [[nodiscard]] char* at(std::int64_t row, std::int64_t c) const {
      return data + (origin + row * token + c * channel) * element_bytes(dtype);
    }
    void restore() const { std::memcpy(data, initial.data(), initial.size()); }
  };

  void pick_shape() {
    const auto dtypes = capabilities().dtypes;
    const auto any_dtype = [&] { return random_.pick(dtypes).value; };
    x_dtype_ = any_dtype();
    out_dtype_ = random_.chance(0.75) ? x_dtype_ : any_dtype();
    state_dtype_ = random_.chance(0.75) ? x_dtype_ : any_dtype();
    weight_dtype_ = random_.chance(0.6) ? x_dtype_ : DType::kF32;
    width_ = random_.pick({2, 3, 4, 4, 4, 5, 7, 8, 9, 13});
    if (random_.chance(0.35)) {
      dilation_ = random_.pick<std::int64_t>({2, 3, 4, 63 / (width_ - 1)});
      dilation_ = std::clamp<std::int64_t>(dilation_, 1, 63 / (width_ - 1));
    }
    channels_ = random_.pick<std::int64_t>({1, 4, 7, 32, 64, 96, 132, 260, 512});
    op_ = random_.pick({Op::kForward, Op::kForward, Op::kForward, Op::kDecode, Op::kVerify});
    if (op_ == Op::kVerify) dilation_ = 1;
    epilogue_ = random_.pick(capabilities().epilogues).value;
    input_gate_ = epilogue_ != Epilogue::kResidual && random_.chance(0.5);
    activation_ = random_.pick({Activation::kNone, Activation::kSilu});
    dense_ = op_ == Op::kDecode || random_.chance(0.3);
    single_ = op_ == Op::kDecode && random_.chance(0.5);  // x is [sequences, channels]

    lengths_.resize(static_cast<std::size_t>(random_.between(1, 5)));
    const std::int64_t uniform = single_ ? 1 : random_.between(1, op_ == Op::kDecode ? 6 : 40);
    for (auto& length : lengths_) {
      length = dense_                 ? uniform
               : random_.chance(0.15) ? 0
                                      : random_.between(1, random_.chance(0.15) ? 100 : 20);
    }
    before_ = dense_ ? 0 : random_.between(0, 2);
    tokens_ = std::accumulate(lengths_.begin(), lengths_.end(), before_);
    if (!dense_) tokens_ += random_.between(0, 2);
    begins_.assign(1, before_);
    for (const std::int64_t length : lengths_) begins_.push_back(begins_.back() + length);
    in_place_ = op_ != Op::kVerify && out_dtype_ == x_dtype_ && random_.chance(0.15);
    specials_ = random_.chance(0.2);
  }

  [[nodiscard]] std::int64_t sequences() const { return std::ssize(lengths_); }
  [[nodiscard]] std::int64_t history() const { return (width_ - 1) * dilation_; }

  void* poisoned(std::int64_t bytes) {
    void* data = memory_.allocate(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1)));
    std::memset(data, 0xff, static_cast<std::size_t>(bytes));
    return data;
  }
  double value() {
    if (specials_ && random_.chance(0.01)) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      return random_.pick({kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()});
    }
    return 1.5 * random_.normal();
  }
  Rows make_rows(DType dtype, std::int64_t rows, bool filled) {
    Rows made;
    made.dtype = dtype;
    const bool channels_first = layout_ == 1, strided = layout_ == 2;
    const std::int64_t gap = random_.chance(0.5) ? 0 : random_.pick<std::int64_t>({1, 8, 32});
    made.channel = channels_first ? rows + gap : strided ? 2 : 1;
    made.token = channels_first ? 1 : channels_ * made.channel + gap;
    made.origin = random_.chance(0.7) ? 0 : random_.between(1, 7);
    const std::int64_t elements =
        made.origin + std::max<std::int64_t>(rows, 1) * made.token + channels_ * made.channel + 16;
    const std::int64_t bytes = elements * element_bytes(dtype);
    made.data = static_cast<char*>(poisoned(bytes));
    for (std::int64_t row = 0; row < rows && filled; ++row) {
      for (std::int64_t c = 0; c < channels_; ++c) {
        store_element(dtype, made.at(row, c), value());
      }
    }
    made.initial.assign(made.data, made.data + bytes);
    return made;
  }
  [[nodiscard]] TensorRef view(const Rows& rows) const {
    TensorRef tensor;
    tensor.data = rows.at(0, 0);
    tensor.dtype = rows.dtype;
    tensor.device = memory_.device;
    tensor.ndim = 0;
    const auto axis = [&](std::int64_t extent, std::int64_t stride) {
      tensor.shape[tensor.ndim] = extent;
      tensor.strides[tensor.ndim++] = stride;
    };
    if (dense_ && !single_) axis(sequences(), lengths_[0] * rows.token);
    axis(dense_ && !single_ ? lengths_[0] : tokens_, rows.token);
    axis(channels_, rows.channel);
    return tensor;
  }
  TensorRef indices(const std::vector<std::int64_t>& values) {
    const std::int64_t count = std::ssize(values);
    const DType dtype = random_.chance(0.5) ? DType::kI32 : DType::kI64;
    char* data = static_cast<char*>(poisoned(count * element_bytes(dtype)));
    for (std::int64_t i = 0; i < count; ++i) {
      std::memcpy(data + i * element_bytes(dtype), &values[i],  // little endian
                  static_cast<std::size_t>(element_bytes(dtype)));
    }
    return TensorRef::contiguous(data, dtype, {count}, memory_.device);
  }
  TensorRef flags(const std::vector<std::int64_t>& values) {
    auto* data = static_cast<char*>(poisoned(std::ssize(values)));
    std::copy(values.begin(), values.end(), data);
    return TensorRef::contiguous(data, DType::kBool, {std::ssize(values)}, memory_.device);
  }
  TensorRef filled(DType dtype, std::initializer_list<std::int64_t> shape) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape) elements *= extent;
    auto* data = static_cast<char*>(poisoned(elements * element_bytes(dtype)));
    for (std::int64_t i = 0; i < elements; ++i) {
      store_element(dtype, data + i * element_bytes(dtype), 0.5 * random_.normal());
    }
    return TensorRef::contiguous(data, dtype, shape, memory_.device);
  }

  void make_tensors() {
    layout_ = random_.pick({0, 0, 0, 1, 2});
    x_ = make_rows(x_dtype_, tokens_, true);
    if (!in_place_) out_ = make_rows(out_dtype_, tokens_, false);
    if (random_.chance(0.15)) layout_ = random_.pick({0, 1, 2});  // gates may have another layout
    if (input_gate_) gate_in_ = make_rows(x_dtype_, tokens_, true);
    if (epilogue_ == Epilogue::kOutputGate) gate_out_ = make_rows(x_dtype_, tokens_, true);
    args_.op = op_;
    args_.x = view(x_);
    args_.out = view(in_place_ ? x_ : out_);
    if (input_gate_) args_.input_gate = view(gate_in_);
    if (epilogue_ == Epilogue::kOutputGate) args_.epilogue.output_gate = view(gate_out_);
    args_.epilogue.residual = epilogue_ == Epilogue::kResidual;
    args_.dilation = static_cast<std::int32_t>(dilation_);
    args_.weight = filled(weight_dtype_, {channels_, width_});
    if (random_.chance(0.5)) args_.bias = filled(weight_dtype_, {channels_});
    args_.epilogue.activation = activation_;
    args_.sequences.padded_rows =
        random_.pick({PaddedRows::kZero, PaddedRows::kUntouched, PaddedRows::kCopy});
    make_state();
    if (!dense_) args_.sequences.query_start_loc = indices(begins_);
  }

  void make_state() {
    slots_ = sequences() + random_.between(1, 3);
    columns_ = history() + random_.pick<std::int64_t>({0, 0, 0, 2});
    const std::int64_t elements = slots_ * columns_ * channels_;
    const std::int64_t bytes = elements * element_bytes(state_dtype_);
    state_ = static_cast<char*>(poisoned(bytes));
    for (std::int64_t i = 0; i < elements; ++i) {
      store_element(state_dtype_, state_ + i * element_bytes(state_dtype_), value());
    }
    state_before_.assign(state_, state_ + bytes);
    args_.pool.state =
        TensorRef::contiguous(state_, state_dtype_, {slots_, columns_, channels_}, memory_.device);
    if (random_.chance(0.5)) {  // columns innermost
      args_.pool.state->strides[1] = 1;
      args_.pool.state->strides[2] = columns_;
    }
    args_.pool.base_column = random_.between(0, columns_ - history());
    slot_.resize(static_cast<std::size_t>(slots_));
    std::iota(slot_.begin(), slot_.end(), 0);
    random_.shuffle(slot_);
    slot_.resize(lengths_.size());
    for (auto& slot : slot_) {
      if (random_.chance(0.1)) slot = -1;
    }
    args_.pool.read_slots = indices(slot_);
    resumed_.assign(lengths_.size(), op_ == Op::kForward ? 0 : 1);
    if (op_ == Op::kForward) {
      for (auto& flag : resumed_) flag = random_.between(0, 1);
      args_.sequences.has_initial_state = flags(resumed_);
    }
  }

  [[nodiscard]] bool live(std::int64_t s) const { return slot_[s] >= 0; }
  [[nodiscard]] std::int64_t state_offset(std::int64_t slot, std::int64_t column,
                                          std::int64_t c) const {
    const std::int64_t* strides = args_.pool.state->strides;
    return (slot * strides[0] + (args_.pool.base_column + column) * strides[1] + c * strides[2]) *
           element_bytes(state_dtype_);
  }

  // The input of a row with the bits that a state of x's type holds.
  void input(std::int64_t row, std::int64_t c, char* to) const {
    const auto bytes = static_cast<std::size_t>(element_bytes(x_dtype_));
    if (!input_gate_) {
      std::memcpy(to, x_.at(row, c), bytes);
      return;
    }
    const float product = static_cast<float>(load_element(x_dtype_, x_.at(row, c))) *
                          static_cast<float>(load_element(x_dtype_, gate_in_.at(row, c)));
    store_element(x_dtype_, to, product);
  }

  // One plain call. Each sequence of this call becomes `dilation` sequences of the plain one.
  void expect_from_plain_calls() {
    std::vector<std::int64_t> bounds{0}, source, plain_flags;
    std::vector<std::int64_t> sequence_of, first_of;
    for (std::int64_t s = 0; s < sequences(); ++s) {
      for (std::int64_t first = 0; first < dilation_ && live(s); ++first) {
        for (std::int64_t t = first; t < lengths_[s]; t += dilation_) {
          source.push_back(begins_[s] + t);
        }
        bounds.push_back(std::ssize(source));
        plain_flags.push_back(resumed_[s]);
        sequence_of.push_back(s);
        first_of.push_back(first);
      }
    }
    const std::int64_t rows = std::ssize(source), parts = std::ssize(plain_flags);
    // Without an epilogue the plain call rounds the result, so it can run on the fast kernels.
    const DType plain_dtype = epilogue_ == Epilogue::kNone ? out_dtype_ : DType::kF32;
    const std::int64_t x_bytes = element_bytes(x_dtype_), out_bytes = element_bytes(plain_dtype);
    const std::int64_t state_bytes = element_bytes(state_dtype_);
    auto* x = static_cast<char*>(poisoned(rows * channels_ * x_bytes));
    auto* out = static_cast<char*>(poisoned(rows * channels_ * out_bytes));
    auto* state = static_cast<char*>(poisoned(parts * (width_ - 1) * channels_ * state_bytes));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < channels_; ++c) {
        input(source[row], c, x + (row * channels_ + c) * x_bytes);
      }
    }
    for (std::int64_t part = 0; part < parts; ++part) {
      for (std::int64_t column = 0; column < width_ - 1; ++column) {
        for (std::int64_t c = 0; c < channels_; ++c) {
          const std::int64_t from =
              state_offset(slot_[sequence_of[part]], first_of[part] + column * dilation_, c);
          std::memcpy(state + ((part * (width_ - 1) + column) * channels_ + c) * state_bytes,
                      state_before_.data() + from, static_cast<std::size_t>(state_bytes));
        }
      }
    }
    ForwardArgs plain;
    plain.x = TensorRef::contiguous(x, x_dtype_, {rows, channels_}, memory_.device);
    plain.out = TensorRef::contiguous(out, plain_dtype, {rows, channels_}, memory_.device);
    plain.weight = args_.weight;
    plain.bias = args_.bias;
    plain.pool.state =
        TensorRef::contiguous(state, state_dtype_, {parts, width_ - 1, channels_}, memory_.device);
    plain.sequences.query_start_loc = indices(bounds);
    plain.sequences.has_initial_state = flags(plain_flags);
    plain.epilogue.activation = activation_;
    const Status status = memory_.run_and_wait(plain);
    ASSERT_TRUE(status.ok()) << status.message();

    const std::int64_t bytes = element_bytes(out_dtype_);
    expected_.assign(static_cast<std::size_t>(tokens_ * channels_ * bytes), 0);
    owned_.assign(static_cast<std::size_t>(tokens_), false);
    for (std::int64_t row = 0; row < rows; ++row) {
      owned_[source[row]] = true;
      for (std::int64_t c = 0; c < channels_; ++c) {
        const char* from = out + (row * channels_ + c) * out_bytes;
        char* to = expected_.data() + (source[row] * channels_ + c) * bytes;
        if (epilogue_ == Epilogue::kNone) {
          std::memcpy(to, from, static_cast<std::size_t>(bytes));
          continue;
        }
        const auto activated = static_cast<float>(load_element(DType::kF32, from));
        const auto element = [&](const Rows& of) {
          return static_cast<float>(load_element(x_dtype_, of.at(source[row], c)));
        };
        const float result = epilogue_ == Epilogue::kResidual ? activated + element(x_)
                                                              : activated * element(gate_out_);
        store_element(out_dtype_, to, result);
      }
    }
    expect_state();
  }

  void expect_state() {
    state_expected_ = state_before_;
    if (op_ == Op::kVerify) return;
    for (std::int64_t s = 0; s < sequences(); ++s) {
      for (std::int64_t column = 0; column < history() && live(s) && lengths_[s] > 0; ++column) {
        const std::int64_t token = lengths_[s] - history() + column;
        for (std::int64_t c = 0; c < channels_; ++c) {
          char* to = state_expected_.data() + state_offset(slot_[s], column, c);
          if (token >= 0) {
            char bytes[8];
            input(begins_[s] + token, c, bytes);
            if (state_dtype_ == x_dtype_) {
              std::memcpy(to, bytes, static_cast<std::size_t>(element_bytes(x_dtype_)));
            } else {
              store_element(state_dtype_, to, load_element(x_dtype_, bytes));
            }
          } else if (resumed_[s] != 0) {
            std::memcpy(to, state_before_.data() + state_offset(slot_[s], history() + token, c),
                        static_cast<std::size_t>(element_bytes(state_dtype_)));
          } else {
            std::memset(to, 0, static_cast<std::size_t>(element_bytes(state_dtype_)));
          }
        }
      }
    }
  }

  [[nodiscard]] bool can_carry() const {
    return state_dtype_ == x_dtype_ || state_dtype_ == DType::kF32;
  }

  Status run_whole() { return memory_.run_and_wait(args_); }

  // Each call processes some tokens of each sequence. Its other rows are padding.
  Status run_in_chunks() {
    std::vector<std::int64_t> done(lengths_.size(), 0);
    ForwardArgs args = packed();
    for (bool first = true; done != lengths_ || first; first = false) {
      std::vector<std::int64_t> bounds{0}, slots, resumed;
      const auto part = [&](std::int64_t end, std::int64_t slot, std::int64_t flag) {
        bounds.push_back(end);
        slots.push_back(slot);
        resumed.push_back(flag);
      };
      part(before_, -1, 0);
      for (std::int64_t s = 0; s < sequences(); ++s) {
        const std::int64_t count =
            random_.between(0, std::min<std::int64_t>(lengths_[s] - done[s], 40));
        part(begins_[s] + done[s], -1, 0);
        part(begins_[s] + done[s] + count, slot_[s], done[s] > 0 ? 1 : resumed_[s]);
        part(begins_[s + 1], -1, 0);
        done[s] += count;
      }
      args.sequences.query_start_loc = indices(bounds);
      args.pool.read_slots = indices(slots);
      args.sequences.has_initial_state = flags(resumed);
      if (Status status = memory_.run_and_wait(args); !status.ok()) return status;
    }
    return {};
  }

  Status run_token_by_token() {
    for (std::int64_t s = 0; s < sequences(); ++s) {
      const TensorRef slot = indices({slot_[s]});
      for (std::int64_t t = 0; t < lengths_[s] && live(s); ++t) {
        ForwardArgs args = packed();
        args.op = t == 0 && resumed_[s] == 0 ? Op::kForward : Op::kDecode;
        const auto row = [&](TensorRef& tensor) {
          tensor.data = static_cast<char*>(tensor.data) +
                        (begins_[s] + t) * tensor.strides[0] * element_bytes(tensor.dtype);
          tensor.shape[0] = 1;
        };
        for (TensorRef* tensor : {&args.x, &args.out}) row(*tensor);
        if (args.input_gate) row(*args.input_gate);
        if (args.epilogue.output_gate) row(*args.epilogue.output_gate);
        args.pool.read_slots = slot;
        args.sequences.has_initial_state.reset();
        if (Status status = memory_.run_and_wait(args); !status.ok()) return status;
      }
    }
    return {};
  }

  // The call over [tokens, channels]. Rows of padding stay untouched.
  [[nodiscard]] ForwardArgs packed() const {
    ForwardArgs args = args_;
    args.op = Op::kForward;
    const auto flatten = [&](TensorRef& tensor) {
      if (tensor.ndim == 2) return;
      tensor.shape[0] = tokens_;
      tensor.shape[1] = channels_;
      tensor.strides[0] = tensor.strides[1];
      tensor.strides[1] = tensor.strides[2];
      tensor.ndim = 2;
    };
    flatten(args.x);
    flatten(args.out);
    if (args.input_gate) flatten(*args.input_gate);
    if (args.epilogue.output_gate) flatten(*args.epilogue.output_gate);
    args.sequences.query_start_loc.reset();
    args.sequences.padded_rows = PaddedRows::kUntouched;
    return args;
  }

  template <typename Run>
  void check_one(const char* path, Run&& run) {
    if (testing::Test::HasFailure()) return;
    x_.restore();
    if (!in_place_) out_.restore();
    std::memcpy(state_, state_before_.data(), state_before_.size());
    const bool whole = std::string_view(path) == "in one call";
    const Status status = run();
    ASSERT_TRUE(status.ok()) << path << ": " << status.message() << "\n" << describe();
    expect_rows(path, whole);
    expect_same_state(path);
    for (const Rows* gate : {&gate_in_, &gate_out_}) {
      if (gate->data == nullptr) continue;
      EXPECT_EQ(0, std::memcmp(gate->data, gate->initial.data(), gate->initial.size()))
          << path << ": a gate was written to\n"
          << describe();
    }
  }

  [[nodiscard]] static bool same(DType dtype, const char* got, const char* wanted) {
    if (std::memcmp(got, wanted, static_cast<std::size_t>(element_bytes(dtype))) == 0) return true;
    return std::isnan(load_element(dtype, got)) && std::isnan(load_element(dtype, wanted));
  }

  void expect_rows(const char* path, bool whole) {
    const Rows& result = in_place_ ? x_ : out_;
    const std::int64_t bytes = element_bytes(out_dtype_);
    std::vector<char> image = result.initial;
    for (std::int64_t row = 0; row < tokens_; ++row) {
      for (std::int64_t c = 0; c < channels_; ++c) {
        const char* got = result.at(row, c);
        char* to = image.data() + (got - result.data);
        if (owned_[row]) {
          ASSERT_TRUE(same(out_dtype_, got, expected_.data() + (row * channels_ + c) * bytes))
              << path << ": row " << row << ", channel " << c << ": got "
              << load_element(out_dtype_, got) << ", expected "
              << load_element(out_dtype_, expected_.data() + (row * channels_ + c) * bytes) << "\n"
              << describe();
          std::memcpy(to, got, static_cast<std::size_t>(bytes));
        } else if (whole && args_.sequences.padded_rows == PaddedRows::kZero) {
          std::memset(to, 0, static_cast<std::size_t>(bytes));
        } else if (whole && args_.sequences.padded_rows == PaddedRows::kCopy) {
          const char* x = x_.initial.data() + (x_.at(row, c) - x_.data);
          store_element(out_dtype_, to, load_element(x_dtype_, x));
          if (same(out_dtype_, got, to)) std::memcpy(to, got, static_cast<std::size_t>(bytes));
        }
      }
    }
    ASSERT_EQ(0, std::memcmp(image.data(), result.data, image.size()))
        << path << ": rows of padding, or memory between the rows\n"
        << describe();
    if (!in_place_) {
      ASSERT_EQ(0, std::memcmp(x_.data, x_.initial.data(), x_.initial.size()))
          << path << ": x was written to\n"
          << describe();
    }
  }

  void expect_same_state(const char* path) {
    const std::int64_t bytes = element_bytes(state_dtype_);
    for (std::int64_t i = 0; i < std::ssize(state_expected_); i += bytes) {
      // The bits of a NaN that is computed are not specified. Copied elements keep their bits.
      const bool computed = input_gate_ || state_dtype_ != x_dtype_;
      const char *got = state_ + i, *wanted = state_expected_.data() + i;
      ASSERT_TRUE(computed ? same(state_dtype_, got, wanted)
                           : std::memcmp(got, wanted, static_cast<std::size_t>(bytes)) == 0)
          << path << ": element " << i / bytes << " of the state: got "
          << load_element(state_dtype_, got) << ", expected " << load_element(state_dtype_, wanted)
          << "\n"
          << describe();
    }
  }

  const CallMemory& memory_;
  tools::Random random_;

  DType x_dtype_, out_dtype_, state_dtype_, weight_dtype_;
  Op op_ = Op::kForward;
  Epilogue epilogue_ = Epilogue::kNone;
  Activation activation_ = Activation::kNone;
  std::int64_t width_ = 4, dilation_ = 1, channels_ = 0, tokens_ = 0, before_ = 0;
  std::int64_t slots_ = 0, columns_ = 0;
  bool input_gate_ = false, dense_ = false, single_ = false, in_place_ = false, specials_ = false;
  int layout_ = 0;  // of rows: 0 token-major, 1 channels-first, 2 strided
  std::vector<std::int64_t> lengths_, begins_, slot_, resumed_;
  Rows x_, out_, gate_in_, gate_out_;
  char* state_ = nullptr;
  std::vector<char> state_before_, state_expected_, expected_;
  std::vector<bool> owned_;
  ForwardArgs args_;
};

}  // namespace shortconv::test
