// Strides, sizes and addresses that no dense tensor has: what may be passed and what is refused.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <limits>
#include <set>

#include "call.hpp"
#include "common/random.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

// Memory of its own for each tensor of a call, so that no two overlap unless a test says so.
class Arena {
 public:
  explicit Arena(ForwardArgs& args) {
    std::size_t next = 0;
    const auto move = [&](TensorRef& tensor) {
      tensor.data = reinterpret_cast<char*>(memory_.data()) + kBytes * next++;
    };
    visit_forward_tensors(
        [&](const Argument&, auto& tensor) {
          if constexpr (requires { tensor.has_value(); }) {
            if (tensor) move(*tensor);
          } else {
            move(tensor);
          }
        },
        args);
  }

 private:
  static constexpr std::size_t kBytes = 4096, kTensors = 32;
  std::vector<std::int64_t> memory_ = std::vector<std::int64_t>(kTensors * kBytes / 8);
};

TensorRef tensor(DType dtype, std::initializer_list<std::int64_t> shape) {
  static std::int64_t placeholder;
  return TensorRef::contiguous(&placeholder, dtype, shape);
}

// Calls that together have every tensor argument, with `sequences` sequences of `tokens` tokens.
std::vector<ForwardArgs> calls_with_every_argument(std::int64_t sequences, std::int64_t tokens,
                                                   std::int64_t channels, std::int64_t width) {
  const std::int64_t rows = sequences * tokens, history = width - 1;
  ForwardArgs base;
  base.x = base.out = tensor(DType::kF32, {rows, channels});
  base.weight = tensor(DType::kF32, {channels, width});
  base.bias = tensor(DType::kF32, {channels});
  base.input_gate = base.epilogue.output_gate = base.x;
  base.pool.state = tensor(DType::kF32, {sequences, history + tokens, channels});
  base.pool.read_slots = tensor(DType::kI32, {sequences});
  base.options.violations = tensor(DType::kI64, {kViolations, 2});

  ForwardArgs ragged = base;
  ragged.sequences.query_start_loc = tensor(DType::kI32, {sequences + 1});
  ragged.sequences.has_initial_state = tensor(DType::kBool, {sequences});
  ragged.pool.write_slots = tensor(DType::kI64, {sequences});
  ragged.pool.read_offsets = tensor(DType::kI32, {sequences});
  ForwardArgs snapshots = ragged;
  snapshots.pool.snapshots = tensor(DType::kI32, {1, 3});
  ForwardArgs lists = ragged;
  lists.options.schedule = Schedule::kBlockList;
  lists.options.block_sequence = lists.options.block_offset = tensor(DType::kI32, {1});

  ForwardArgs decode = base;
  decode.op = Op::kDecode;
  decode.x = decode.out = tensor(DType::kF32, {sequences, tokens, channels});
  decode.input_gate = decode.epilogue.output_gate = decode.x;
  decode.pool.cache_seqlens = tensor(DType::kI32, {sequences});
  ForwardArgs drafts = decode;
  drafts.op = Op::kVerify;
  drafts.drafts.parents = tensor(DType::kI32, {sequences, tokens});
  drafts.drafts.intermediate_states = tensor(DType::kF32, {sequences, tokens, history, channels});
  drafts.drafts.intermediate_slots = tensor(DType::kI32, {sequences});
  ForwardArgs packed = base;
  packed.pool.read_slots = tensor(DType::kI32, {1});
  packed.sequences.seq_idx = tensor(DType::kI32, {rows});
  return {ragged, snapshots, lists, decode, drafts, packed};
}

// Calls visit(name, tensor) for each tensor that is present.
template <typename Visit>
void visit_present(ForwardArgs& args, const Visit& visit) {
  visit_forward_tensors(
      [&](const Argument& row, auto& tensor) {
        if constexpr (requires { tensor.has_value(); }) {
          if (tensor) visit(row, *tensor);
        } else {
          visit(row, tensor);
        }
      },
      args);
}

TEST(Layouts, CallsOfThisTestHaveEveryArgument) {
  std::set<std::string_view> present, all;
  for (ForwardArgs& args : calls_with_every_argument(2, 3, 4, 3)) {
    const Arena arena(args);
    visit_present(args, [&](const Argument& row, TensorRef&) { present.insert(row.name); });
    visit_forward_tensors([&](const Argument& row, auto&) { all.insert(row.name); }, args);
    Problem problem;
    const Status status = make_problem(args, problem);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  EXPECT_EQ(present, all);
}

// numpy and torch report any number as the stride of an axis with one element.
TEST(Layouts, StrideOfAnAxisWithOneElementChangesNothing) {
  int changed = 0;
  for (const auto& [sequences, tokens, channels, width] :
       {std::array<std::int64_t, 4>{1, 1, 1, 2}, {1, 3, 4, 3}, {2, 1, 4, 2}, {3, 2, 1, 4}}) {
    for (ForwardArgs& args : calls_with_every_argument(sequences, tokens, channels, width)) {
      const Arena arena(args);
      Problem usual;
      ASSERT_TRUE(make_problem(args, usual).ok());
      visit_present(args, [&](const Argument& row, TensorRef& tensor) {
        for (int axis = 0; axis < tensor.ndim; ++axis) {
          if (tensor.shape[axis] != 1) continue;
          const std::int64_t stride = tensor.strides[axis];
          for (const std::int64_t other : {std::int64_t{0}, std::int64_t{1}, std::int64_t{-7},
                                           std::int64_t{1} << 40, kLargest, -kLargest - 1}) {
            tensor.strides[axis] = other;
            Problem problem;
            const Status status = make_problem(args, problem);
            EXPECT_TRUE(status.ok()) << row.name << " stride " << other << ": " << status.message();
            EXPECT_EQ(problem, usual) << row.name << " axis " << axis << " stride " << other;
            ++changed;
          }
          tensor.strides[axis] = stride;
        }
      });
    }
  }
  EXPECT_GT(changed, 500);
}

TEST(Layouts, OneSequenceIsDecodedInPlaceWhateverTheStridesOfItsAxis) {
  Call call({0, 1});
  call.args.op = Op::kDecode;
  const ForwardArgs dense = [&] {
    ForwardArgs args = call.fill();
    args.sequences.query_start_loc.reset();
    return args;
  }();
  ASSERT_TRUE(forward(dense).ok());
  const std::vector<float> expected = call.out;
  call.resize(1);
  ForwardArgs in_place = dense;
  in_place.out = in_place.x;
  in_place.x.strides[0] = 1;
  in_place.out.strides[0] = 3;
  const Status status = forward(in_place);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.x, expected);
}

TEST(Layouts, GatesOfOneSequenceLieInColumnsOfOneBuffer) {
  std::vector<float> packed(4 * 9, 1.0f);
  Call call({0, 4});
  ForwardArgs args = call.fill();
  args.sequences.query_start_loc.reset();
  const auto columns = [&](std::int64_t first, std::int64_t sequence_stride) {
    TensorRef view =
        TensorRef::contiguous(&packed[static_cast<std::size_t>(first)], DType::kF32, {1, 4, 3});
    view.strides[0] = sequence_stride;
    view.strides[1] = 9;
    return view;
  };
  args.x = columns(0, 36);
  args.out = columns(3, 1);
  args.input_gate = columns(6, 0);
  const Status status = forward(args);
  EXPECT_TRUE(status.ok()) << status.message();
}

// Strides of a tensor without elements are never used: absurd ones are no reason to refuse, and no
// product of them may overflow (the undefined-behaviour sanitizer looks at this test).
TEST(Layouts, StridesOfTensorsWithoutElementsMayBeAnything) {
  for (const std::int64_t stride : {std::int64_t{0}, kLargest, -kLargest - 1}) {
    Call call({0, 2, 4});
    call.args.op = Op::kVerify;
    ForwardArgs args = call.fill();
    std::array<std::int32_t, 2> slots = {1, 0};
    args.drafts.intermediate_states = TensorRef::contiguous(nullptr, DType::kF32, {2, 0, 3, 3});
    for (int axis = 0; axis < 4; ++axis) args.drafts.intermediate_states->strides[axis] = stride;
    args.drafts.intermediate_slots = TensorRef::contiguous(slots.data(), DType::kI32, {2});
    const Status status = forward(args);
    EXPECT_TRUE(status.ok()) << status.message();
    // Packed, and without channels: equal strides of tokens and columns do not mean overlap.
    args.drafts.intermediate_slots.reset();
    args.x.shape[1] = args.out.shape[1] = args.weight.shape[0] = args.pool.state->shape[2] = 0;
    args.drafts.intermediate_states = TensorRef::contiguous(nullptr, DType::kF32, {4, 3, 0});
    const Status packed = forward(args);
    EXPECT_TRUE(packed.ok()) << packed.message();
  }
}

TEST(Layouts, SizesAreLimitedWhereNoElementsLimitThem) {
  for (const BackendId backend : {BackendId::kReference, BackendId::kCpu}) {
    for (const std::int64_t size : {std::int64_t{1} << 52, (std::int64_t{1} << 52) + 1, kLargest}) {
      Call call({0, 0});
      ForwardArgs args = call.fill();
      args.options.backend = backend;
      args.pool.state.reset();
      args.x = args.out = TensorRef::contiguous(nullptr, DType::kF32, {0, size});
      args.weight.shape[0] = size;
      args.weight.strides[0] = args.weight.strides[1] = 0;
      const Status channels = forward(args);
      EXPECT_EQ(channels.ok(), size == std::int64_t{1} << 52) << channels.message();
      if (size > std::int64_t{1} << 52) {
        EXPECT_EQ(channels.message(),
                  "x: axis 1 ('channels') is " + std::to_string(size) + "; sizes are at most 2^52");
      }
      // As many sequences, which all read one bound.
      args = call.fill();
      args.options.backend = backend;
      args.pool.state.reset();
      args.x = args.out = TensorRef::contiguous(nullptr, DType::kF32, {0, 1 << 20});
      args.weight.shape[0] = 1 << 20;
      args.weight.strides[0] = args.weight.strides[1] = 0;
      args.sequences.query_start_loc->shape[0] = size;
      args.sequences.query_start_loc->strides[0] = 0;
      EXPECT_FALSE(forward(args).ok());
    }
  }
}

TEST(Layouts, EachWrittenTensorMayNotShareMemoryWithAnother) {
  int pairs = 0;
  for (ForwardArgs& args : calls_with_every_argument(2, 3, 4, 3)) {
    const Arena arena(args);
    visit_present(args, [&](const Argument& row, TensorRef& written) {
      if (!is_written(row.access)) return;
      visit_present(args, [&](const Argument& other_row, TensorRef& other) {
        if (&other == &written) return;
        if (row.name == "out" && other_row.name == "x") return;  // in place
        void* const own = std::exchange(written.data, static_cast<char*>(other.data));
        Problem problem;
        const std::string message = make_problem(args, problem).message();
        written.data = own;
        const auto names = [&](std::string_view first, std::string_view second) {
          return message.find(std::string(first) + ": overlaps " + std::string(second)) !=
                 std::string::npos;
        };
        EXPECT_TRUE(names(row.name, other_row.name) || names(other_row.name, row.name))
            << row.name << " over " << other_row.name << ": " << message;
        ++pairs;
      });
    });
  }
  EXPECT_GT(pairs, 100);
}

std::string refusal_of(const std::function<void(ForwardArgs&)>& change) {
  std::vector<float> memory(1000);
  Call call({0, 2, 5});
  ForwardArgs args = call.fill();
  args.out.data = memory.data() + 500;
  args.pool.state->data = memory.data() + 100;
  change(args);
  return forward(args).message();
}

TEST(Layouts, RowsThatOverlapOneAnotherAreNotWritten) {
  EXPECT_EQ(refusal_of([](ForwardArgs& a) { a.out.strides[0] = 2; }),
            "out: overlaps itself: with strides [2, 1] several elements share memory, but all are "
            "written");
  EXPECT_EQ(refusal_of([](ForwardArgs& a) { a.out.strides[0] = -2; }),
            "out: overlaps itself: with strides [-2, 1] several elements share memory, but all are "
            "written");
  EXPECT_NE(
      refusal_of([](ForwardArgs& a) { a.pool.state->strides[1] = 1; }).find("state: overlaps"),
      std::string::npos);
  // The second slot begins inside of the last column of the first one.
  EXPECT_NE(
      refusal_of([](ForwardArgs& a) { a.pool.state->strides[0] = 8; }).find("state: overlaps"),
      std::string::npos);
  EXPECT_EQ(refusal_of([](ForwardArgs& a) { a.pool.state->strides[0] = 0; }),
            "state: axis 0 has stride 0 but is written");
  // Columns that alternate, and rows in reverse order, share nothing.
  EXPECT_EQ(refusal_of([](ForwardArgs& a) {
              a.out.strides[0] = -7;
              a.out.strides[1] = 2;
            }),
            "");
}

// Small layouts of a state with four axes against the list of their addresses.
TEST(Layouts, SharedElementsAreFoundExactly) {
  tools::Random random(7);
  std::array<int, 2> seen{};
  std::vector<float> memory(2000), rows(4 * 4);
  std::int32_t accepted = 0;
  for (int repetition = 0; repetition < 20000; ++repetition) {
    CommitArgs args;
    args.width = 2;
    args.rows_per_token = 1;
    args.accepted = TensorRef::contiguous(&accepted, DType::kI32, {1});
    TensorRef& state = args.state;
    state = TensorRef::contiguous(&memory[1000], DType::kF32, {1, 1, 1, 1});
    for (int axis = 0; axis < state.ndim; ++axis) {
      state.shape[axis] = random.between(1, 4);
      state.strides[axis] = random.between(-30, 30);
    }
    args.intermediate_states =
        TensorRef::contiguous(rows.data(), DType::kF32, {state.shape[0], 1, 1, state.shape[3]});
    std::multiset<std::int64_t> addresses = {0};
    for (int axis = 0; axis < state.ndim; ++axis) {
      std::multiset<std::int64_t> next;
      for (std::int64_t i = 0; i < state.shape[axis]; ++i) {
        for (const std::int64_t address : addresses) next.insert(address + i * state.strides[axis]);
      }
      addresses = std::move(next);
    }
    const bool shared =
        std::set<std::int64_t>(addresses.begin(), addresses.end()).size() < addresses.size();
    CommitProblem problem;
    ASSERT_EQ(make_problem(args, problem).ok(), !shared) << repetition;
    ++seen[shared ? 1 : 0];
  }
  EXPECT_GT(seen[0], 1000);
  EXPECT_GT(seen[1], 1000);
}

}  // namespace
}  // namespace shortconv
