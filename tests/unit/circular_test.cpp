// Slots that are circular buffers of columns: which columns a call reads and writes. The results
// equal those of an ordered pool.
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "call.hpp"
#include "common/random.hpp"
#include "core/capability.hpp"
#include "core/element.hpp"
#include "shortconv/schedule.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

/// A Call whose slots are circular buffers.
struct CircularCall : Call {
  std::vector<std::int64_t> positions;

  CircularCall(std::vector<std::int32_t> bounds, std::int64_t circular_columns,
               std::vector<std::int64_t> inputs_before, BackendId backend = BackendId::kAuto)
      : Call(std::move(bounds)), positions(std::move(inputs_before)) {
    columns = circular_columns;
    args.options.backend = backend;
    args.options.threads = 1;
    resize(tokens);
  }
  void run() {
    point();
    Call::run();
  }
  [[nodiscard]] std::string refusal() {
    point();
    return Call::refusal();
  }
  void point() {
    args.pool.cache_seqlens = TensorRef::contiguous(positions.data(), DType::kI64,
                                                    {static_cast<std::int64_t>(positions.size())});
  }
};

class Circular : public testing::TestWithParam<BackendId> {};
INSTANTIATE_TEST_SUITE_P(Backends, Circular,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// Width 4 and 5 columns after 7 inputs: inputs 4, 5 and 6 are in columns 4, 0 and 1, and the two
// new ones are written to columns 2 and 3.
TEST_P(Circular, InputNIsInColumnNModuloColumns) {
  CircularCall call({0, 2}, 5, {7}, GetParam());
  call.flags = {1};
  const CircularCall old = call;
  call.run();
  Call ordered({0, 2});
  ordered.flags = {1};
  ordered.args.options.backend = GetParam();
  for (std::int64_t c = 0; c < 3; ++c) {
    constexpr std::array kColumns = {4, 0, 1};
    for (int k = 0; k < 3; ++k) {
      ordered.state_at(0, k, c) = CircularCall(old).state_at(0, kColumns[k], c);
    }
  }
  ordered.run();
  EXPECT_EQ(call.out, ordered.out);
  std::vector<float> expected = old.state;
  for (std::int64_t c = 0; c < 3; ++c) {
    expected[2 * 3 + c] = call.x_at(0, c);
    expected[3 * 3 + c] = call.x_at(1, c);
  }
  EXPECT_EQ(call.state, expected);
}

TEST_P(Circular, WithWidthMinusOneColumnsItEqualsAnOrderedPoolAtMultiples) {
  for (const std::int64_t position : {0, 3, 300, -1}) {  // one below 0 counts as 0
    CircularCall circular({0, 2, 7}, 3, {position, position}, GetParam());
    circular.flags = {1, 0};
    Call ordered({0, 2, 7});
    ordered.args.options.backend = GetParam();
    ordered.flags = {1, 0};
    circular.run();
    ordered.run();
    EXPECT_EQ(circular.out, ordered.out) << position;
    std::vector<float> expected = ordered.state;
    for (std::int64_t c = 0; c < 3; ++c) {
      // The newest three inputs are one old and two new ones. The circular buffer does not move
      // the old one.
      std::array<float, 3> first;
      for (int k = 0; k < 3; ++k) first[k] = ordered.state_at(0, k, c);
      expected[2 * 3 + c] = first[0];
      expected[0 * 3 + c] = first[1];
      expected[1 * 3 + c] = first[2];
      std::array<float, 3> second;  // inputs 2, 3, 4
      for (int k = 0; k < 3; ++k) second[k] = ordered.state_at(1, k, c);
      expected[9 + 2 * 3 + c] = second[0];
      expected[9 + 0 * 3 + c] = second[1];
      expected[9 + 1 * 3 + c] = second[2];
    }
    EXPECT_EQ(circular.state, expected) << position;
  }
}

TEST_P(Circular, HoldsTheLastInputsOfALongCall) {
  CircularCall call({0, 12}, 5, {4}, GetParam());
  call.run();
  for (std::int64_t number = 4 + 7; number < 4 + 12; ++number) {
    for (std::int64_t c = 0; c < 3; ++c) {
      EXPECT_EQ(call.state_at(0, number % 5, c), call.x_at(number - 4, c)) << number;
    }
  }
}

// Three columns hold the newest width - 1 inputs. The other columns stay untouched.
TEST_P(Circular, ZerosCompleteTheHistoryOfANewSequence) {
  CircularCall call({0, 1}, 6, {0}, GetParam());
  const CircularCall old = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(call.state_at(0, 4, c), 0.0f);
    EXPECT_EQ(call.state_at(0, 5, c), 0.0f);
    EXPECT_EQ(call.state_at(0, 0, c), call.x_at(0, c));
    for (const int column : {1, 2, 3}) {
      EXPECT_EQ(call.state_at(0, column, c), CircularCall(old).state_at(0, column, c));
    }
  }
}

TEST_P(Circular, TheWrittenSlotReceivesTheHistory) {
  CircularCall call({0, 1}, 6, {8}, GetParam());
  call.flags = {1};
  call.read_slots = {3};
  call.write_slots = {1};
  CircularCall old = call;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(call.state_at(1, 0, c), old.state_at(3, 0, c));
    EXPECT_EQ(call.state_at(1, 1, c), old.state_at(3, 1, c));
    EXPECT_EQ(call.state_at(1, 2, c), call.x_at(0, c));
    for (const int column : {3, 4, 5}) {
      EXPECT_EQ(call.state_at(1, column, c), old.state_at(1, column, c));
    }
  }
  for (const int slot : {0, 2, 3}) {
    EXPECT_TRUE(std::equal(old.state.begin() + slot * 18, old.state.begin() + (slot + 1) * 18,
                           call.state.begin() + slot * 18));
  }
}

TEST_P(Circular, PositionsMayBeAsLargeAsTheirType) {
  constexpr std::int64_t kLast = std::numeric_limits<std::int64_t>::max();
  CircularCall large({0, 4}, 5, {kLast}, GetParam());
  CircularCall small({0, 4}, 5, {kLast % 5}, GetParam());
  large.flags = small.flags = {1};
  large.run();
  small.run();
  EXPECT_EQ(large.out, small.out);
  EXPECT_EQ(large.state, small.state);
  EXPECT_NE(large.state, CircularCall({0, 4}, 5, {0}).state);
}

TEST_P(Circular, VerifyWritesItOnlyWithUpdateState) {
  CircularCall call({0, 3}, 6, {9}, GetParam());
  call.args.op = Op::kVerify;
  CircularCall old = call;
  call.run();
  EXPECT_EQ(call.state, old.state);
  call.args.drafts.update_state = true;
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (int t = 0; t < 3; ++t) EXPECT_EQ(call.state_at(0, (9 + t) % 6, c), call.x_at(t, c));
    for (int n = 6; n < 9; ++n) {
      EXPECT_EQ(call.state_at(0, n % 6, c), old.state_at(0, n % 6, c)) << "history";
    }
  }
  // Two of three are accepted. The next call has another position, and nothing is copied.
  CircularCall next({0, 1}, 6, {11}, GetParam());
  next.flags = {1};
  next.state = call.state;
  next.run();
  Call line({0, 1});
  line.args.options.backend = GetParam();
  line.flags = {1};
  for (std::int64_t c = 0; c < 3; ++c) {
    line.state_at(0, 0, c) = old.state_at(0, 8 % 6, c);
    line.state_at(0, 1, c) = call.x_at(0, c);
    line.state_at(0, 2, c) = call.x_at(1, c);
  }
  line.run();
  EXPECT_EQ(next.out, line.out);
}

// The next call must find its history for any number of accepted drafts. With width 4 and 3 drafts,
// the 3 newest inputs contain none of it.
TEST_P(Circular, VerifyCopiesTheWholeHistoryToAnotherSlot) {
  for (const std::uint8_t resumed : {0, 1}) {
    CircularCall call({0, 3}, 6, {9}, GetParam());
    call.args.op = Op::kVerify;
    call.flags = {resumed};
    call.read_slots = {2};
    call.write_slots = {0};
    CircularCall old = call;
    call.run();
    for (std::int64_t c = 0; c < 3; ++c) {
      for (int t = 0; t < 3; ++t) EXPECT_EQ(call.state_at(0, (9 + t) % 6, c), call.x_at(t, c));
      for (int n = 6; n < 9; ++n) {
        EXPECT_EQ(call.state_at(0, n % 6, c), resumed != 0 ? old.state_at(2, n % 6, c) : 0.0f);
      }
    }
  }
}

TEST_P(Circular, RowsOfATreeAreStoredInOrder) {
  CircularCall tree({0, 3}, 6, {9}, GetParam()), chain({0, 3}, 6, {9}, GetParam());
  std::vector<std::int32_t> parents = {-1, -1, 0};
  tree.args.drafts.parents = TensorRef::contiguous(parents.data(), DType::kI32, {3});
  for (CircularCall* call : {&tree, &chain}) {
    call->args.op = Op::kVerify;
    call->args.drafts.update_state = true;
    call->run();
  }
  EXPECT_EQ(tree.state, chain.state);
  EXPECT_NE(tree.out, chain.out);
}

TEST_P(Circular, TheCheckedModeFindsNothing) {
  CircularCall call({0, 2, 2, 5}, 3, {1000, -7, 1}, GetParam());
  call.flags = {1, 1, 1};
  std::int64_t report[kViolations][2];
  call.args.options.violations = TensorRef::contiguous(report, DType::kI64, {kViolations, 2});
  call.run();
  for (const auto& row : report) {
    EXPECT_EQ(row[kViolationCount], 0);
    EXPECT_EQ(row[kViolationFirst], -1);
  }
}

TEST(CircularRefusal, ReadOffsets) {
  CircularCall call({0, 2}, 5, {1});
  call.read_offsets = {1};
  EXPECT_EQ(call.refusal(), "read_offsets: cannot be combined with cache_seqlens");
}

TEST(CircularRefusal, ABaseColumn) {
  CircularCall call({0, 2}, 5, {1});
  call.args.pool.base_column = 1;
  EXPECT_EQ(call.refusal(),
            "base_column: is 1, but with cache_seqlens slots are circular buffers; expected 0");
}

TEST(CircularRefusal, NoState) {
  CircularCall call({0, 2}, 5, {1});
  call.state.clear();
  EXPECT_EQ(call.refusal(), "state: is absent, but cache_seqlens address it");
}

TEST(CircularRefusal, OtherShapesAndTypes) {
  CircularCall call({0, 2}, 5, {1, 2});
  EXPECT_EQ(call.refusal(),
            "cache_seqlens: axis 0 ('sequences') is 2, but query_start_loc made 'sequences' = 1");
  CircularCall flags({0, 2}, 5, {1});
  flags.point();
  flags.fill();
  flags.args.pool.cache_seqlens->dtype = DType::kF32;
  EXPECT_EQ(forward(flags.args).message(), "cache_seqlens: dtype f32 is not supported (i32, i64)");
  Problem problem;
  flags.args.pool.cache_seqlens->dtype = DType::kI64;
  ASSERT_TRUE(make_problem(flags.args, problem).ok());
  Plan plan;
  ASSERT_TRUE(make_plan(problem, plan).ok());
  TensorPointers at = pointers(flags.args);
  at.cache_seqlens = nullptr;
  EXPECT_EQ(run(plan, at).message(), "cache_seqlens: is null, but the plan has it");
}

// One sequence in random chunks over an ordered pool and over a circular buffer, in all pool
// layouts. Outputs must be equal bit for bit, and no byte of the circular buffer may be wrong.
class CircularChunks {
 public:
  CircularChunks(BackendId backend, int width, DType dtype, std::uint32_t seed)
      : backend_(backend), width_(width), dtype_(dtype), random_(seed) {}

  void check() {
    circular_columns_ = width_ - 1 + random_.between(0, 5);
    ordered_columns_ = width_ - 1 + random_.between(0, 2);
    columns_innermost_ = random_.chance(0.5);
    state_dtype_ = random_.chance(0.3) ? DType::kF32 : dtype_;
    channels_first_ = random_.chance(0.3);
    const std::int64_t length = random_.between(1, 40);
    const std::vector<char> x = random_rows(length);
    const std::vector<char> weight = random_rows(width_);
    std::vector<char> ordered = poison(2 * ordered_columns_),
                      circular = poison(2 * circular_columns_);
    std::vector<char> expected = circular;
    std::int64_t begin = 0;
    int slot = 0;
    while (begin < length) {
      const std::int64_t tokens = std::min<std::int64_t>(length - begin, random_.between(0, 12));
      const int to = random_.chance(0.25) ? 1 - slot : slot;
      const bool in_place = random_.chance(0.2) && !channels_first_;
      const bool decode = begin > 0 && tokens > 0 && random_.chance(0.4);
      const auto one = [&](std::vector<char>& state, std::int64_t columns, bool is_circular) {
        return step(x, begin, tokens, weight, state, columns, is_circular, slot, to, in_place,
                    decode);
      };
      const auto outputs = one(ordered, ordered_columns_, false);
      ASSERT_EQ(one(circular, circular_columns_, true), outputs)
          << "from " << begin << ", " << tokens;
      if (tokens > 0) {
        expect_kept(expected, x, begin, tokens, begin > 0 && slot == to, to);
        slot = to;
      }
      ASSERT_EQ(circular, expected) << "columns after " << begin + tokens;
      begin += tokens;
    }
  }

 private:
  static constexpr std::int64_t kChannels = 37;

  [[nodiscard]] std::int64_t bytes() const { return element_bytes(dtype_); }
  std::vector<char> random_rows(std::int64_t rows) {
    std::vector<char> data(static_cast<std::size_t>(rows * kChannels * bytes()));
    for (std::int64_t i = 0; i < rows * kChannels; ++i) {
      store_element(dtype_, data.data() + i * bytes(), 2.0 * random_.normal());
    }
    return data;
  }
  [[nodiscard]] std::vector<char> poison(std::int64_t columns) const {
    return std::vector<char>(
        static_cast<std::size_t>(columns * kChannels * element_bytes(state_dtype_)), -1);
  }
  TensorRef view(void* data, std::int64_t tokens) const {
    TensorRef tensor = TensorRef::contiguous(data, dtype_, {tokens, kChannels});
    if (!channels_first_) return tensor;
    tensor.strides[0] = 1;
    tensor.strides[1] = std::max<std::int64_t>(tokens, 1);
    return tensor;
  }
  [[nodiscard]] std::int64_t state_index(std::int64_t columns, std::int64_t slot,
                                         std::int64_t column, std::int64_t channel) const {
    return columns_innermost_ ? (slot * kChannels + channel) * columns + column
                              : (slot * columns + column) * kChannels + channel;
  }

  std::vector<char> step(const std::vector<char>& all, std::int64_t begin, std::int64_t tokens,
                         const std::vector<char>& weight, std::vector<char>& state,
                         std::int64_t columns, bool is_circular, std::int32_t from, std::int32_t to,
                         bool in_place, bool decode) {
    std::vector<char> x(static_cast<std::size_t>(tokens * kChannels * bytes()) + 8);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t c = 0; c < kChannels; ++c) {
        const std::int64_t at = channels_first_ ? c * tokens + t : t * kChannels + c;
        std::memcpy(x.data() + at * bytes(), all.data() + ((begin + t) * kChannels + c) * bytes(),
                    static_cast<std::size_t>(bytes()));
      }
    }
    std::vector<char> out(x.size(), -1);
    std::int64_t position = begin;
    std::uint8_t flag = begin > 0;
    ForwardArgs args;
    args.options.backend = backend_;
    args.options.threads = 1;
    args.x = view(x.data(), tokens);
    args.out = in_place ? args.x : view(out.data(), tokens);
    args.weight =
        TensorRef::contiguous(const_cast<char*>(weight.data()), dtype_, {kChannels, width_});
    args.pool.state = TensorRef::contiguous(state.data(), state_dtype_, {2, columns, kChannels});
    if (columns_innermost_) {
      args.pool.state->strides[1] = 1;
      args.pool.state->strides[2] = columns;
    }
    args.pool.read_slots = TensorRef::contiguous(&from, DType::kI32, {1});
    args.pool.write_slots = TensorRef::contiguous(&to, DType::kI32, {1});
    if (is_circular) args.pool.cache_seqlens = TensorRef::contiguous(&position, DType::kI64, {1});
    if (decode) {  // [1, tokens, channels]
      args.op = Op::kDecode;
      for (TensorRef* rows : {&args.x, &args.out}) {
        rows->ndim = 3;
        std::copy_backward(rows->shape, rows->shape + 2, rows->shape + 3);
        std::copy_backward(rows->strides, rows->strides + 2, rows->strides + 3);
        rows->shape[0] = 1;
      }
    } else {
      args.sequences.has_initial_state = TensorRef::contiguous(&flag, DType::kBool, {1});
    }
    const Status status = forward(args);
    EXPECT_TRUE(status.ok()) << status.message();
    return in_place ? x : out;
  }

  // The contents of a circular buffer after inputs [0, begin + tokens): the new ones in their
  // columns, and the whole history if the slot did not have it.
  void expect_kept(std::vector<char>& expected, const std::vector<char>& x, std::int64_t begin,
                   std::int64_t tokens, bool has_history, int slot) const {
    const std::int64_t end = begin + tokens;
    const std::int64_t history = has_history ? begin : std::min(begin, end - (width_ - 1));
    for (std::int64_t number = std::max(history, end - circular_columns_); number < end; ++number) {
      const std::int64_t column = (number + circular_columns_) % circular_columns_;
      for (std::int64_t c = 0; c < kChannels; ++c) {
        char* to = expected.data() +
                   state_index(circular_columns_, slot, column, c) * element_bytes(state_dtype_);
        const char* from = x.data() + (number * kChannels + c) * bytes();
        if (number < 0) {
          std::memset(to, 0, static_cast<std::size_t>(element_bytes(state_dtype_)));
        } else if (state_dtype_ == dtype_) {
          std::memcpy(to, from, static_cast<std::size_t>(bytes()));
        } else {
          store_element(state_dtype_, to, load_element(dtype_, from));
        }
      }
    }
  }

  BackendId backend_;
  int width_;
  DType dtype_, state_dtype_{};
  tools::Random random_;
  std::int64_t circular_columns_ = 0, ordered_columns_ = 0;
  bool columns_innermost_ = false, channels_first_ = false;
};

TEST_P(Circular, ChunksEqualThoseOverAnOrderedPool) {
  std::vector<int> widths(kWidths.all.begin(), kWidths.all.end());
  widths.push_back(kWidths.all.back() + 5);
  const std::uint32_t seeds = GetParam() == BackendId::kCpu ? 24 : 4;
  for (const int width : widths) {
    for (const auto& [dtype, name] : kDTypes) {
      for (std::uint32_t seed = 0; seed < seeds; ++seed) {
        CircularChunks(GetParam(), width, dtype, seed).check();
        if (HasFatalFailure() || HasNonfatalFailure()) {
          FAIL() << "width " << width << ", " << name << ", seed " << seed;
        }
      }
    }
  }
}

TEST_P(Circular, TheThreeSchedulesAgree) {
  CircularCall flat({0, 1, 10, 12, 29}, 7, {5, 0, 3, 100}, GetParam());
  flat.flags = {1, 0, 1, 1};
  flat.read_slots = {3, 1, 0, 2};
  CircularCall grid = flat, lists = flat;
  flat.run();
  grid.args.options.schedule = Schedule::kSequenceGrid;
  grid.args.options.max_seqlen = 17;
  grid.run();
  EXPECT_EQ(grid.out, flat.out);
  EXPECT_EQ(grid.state, flat.state);
  BlockList list;
  ASSERT_TRUE(plan_block_list(std::vector<std::int64_t>{1, 9, 2, 17}, list).ok());
  const auto blocks = static_cast<std::int64_t>(list.sequence.size());
  lists.args.options.schedule = Schedule::kBlockList;
  lists.args.options.block_sequence =
      TensorRef::contiguous(list.sequence.data(), DType::kI32, {blocks});
  lists.args.options.block_offset =
      TensorRef::contiguous(list.offset.data(), DType::kI32, {blocks});
  lists.run();
  EXPECT_EQ(lists.out, flat.out);
  EXPECT_EQ(lists.state, flat.state);
}

}  // namespace
}  // namespace shortconv
