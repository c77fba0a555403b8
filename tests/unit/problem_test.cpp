// Every refusal, by its message: which argument, what was expected, what came.
#include "shortconv/problem.hpp"

#include <gtest/gtest.h>

#include <unordered_set>
#include <utility>

#include "call.hpp"
#include "shortconv/capability.hpp"

namespace shortconv {
namespace {

// Applies `change` to the finished arguments of a valid call and expects `message`.
template <typename Change>
void expect_refusal_after(Change&& change, const std::string& message) {
  Call call({0, 2, 5});
  ForwardArgs args = call.fill();
  ASSERT_TRUE(forward(args).ok());
  change(args);
  const std::vector<float> before = call.out;
  const Status status = forward(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos)
      << "got: " << status.message() << "\nexpected part: " << message;
  EXPECT_EQ(call.out, before);
}

TEST(Problem, SharedSizesMustAgree) {
  expect_refusal_after([](ForwardArgs& a) { a.out.shape[1] = 2; },
                       "out: axis 1 ('channels') is 2, but x made 'channels' = 3");
  expect_refusal_after([](ForwardArgs& a) { a.weight.shape[0] = 4; },
                       "weight: axis 0 ('channels') is 4, but x made 'channels' = 3");
  expect_refusal_after([](ForwardArgs& a) { a.pool.state->shape[2] = 9; },
                       "state: axis 2 ('channels') is 9, but x made 'channels' = 3");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::int32_t slots[3] = {0, 1, 2};
        a.pool.read_slots = TensorRef::contiguous(slots, DType::kI32, {3});
      },
      "read_slots: axis 0 ('sequences') is 3, but query_start_loc made 'sequences' = 2");
}

TEST(Problem, AxesAndSizes) {
  expect_refusal_after([](ForwardArgs& a) { a.weight.ndim = 1; },
                       "weight: expected 2 axes [channels, width], got 1");
  for (const std::int32_t axes : {-1, 0, 1, 4, 5, 1 << 30}) {
    expect_refusal_after([&](ForwardArgs& a) { a.out.ndim = axes; },
                         "out: expected 2 axes [tokens, channels], got " + std::to_string(axes));
    expect_refusal_after([&](ForwardArgs& a) { a.pool.state->ndim = axes; },
                         "state: expected 3 axes [slots, columns, channels], got ");
  }
  expect_refusal_after([](ForwardArgs& a) { a.x.shape[0] = -5; }, "x: axis 0 ('tokens') is -5");
  expect_refusal_after([](ForwardArgs& a) { a.x.data = nullptr; }, "x: data is null");
  expect_refusal_after([](ForwardArgs& a) { a.pool.state->strides[0] = std::int64_t{1} << 61; },
                       "state: shape and strides reach beyond 2^62 bytes");
}

TEST(Problem, Dtypes) {
  expect_refusal_after([](ForwardArgs& a) { a.x.dtype = DType::kI32; },
                       "x: dtype i32 is not supported (f32, f16, bf16, f64)");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.query_start_loc->dtype = DType::kF32; },
                       "query_start_loc: dtype f32 is not supported (i32, i64)");
  expect_refusal_after(
      [](ForwardArgs& a) {
        static std::uint16_t bias[3] = {};
        a.bias = TensorRef::contiguous(bias, DType::kBF16, {3});
      },
      "bias: dtype bf16 is not supported (f32)");
  constexpr std::pair<int, const char*> kOthers[] = {{0x0008, "i8"},        {0x0110, "u16"},
                                                     {0x0540, "complex64"}, {0x0a08, "f8_e4m3fn"},
                                                     {0x0c08, "f8_e5m2"},   {0x0e08, "f8_e8m0fnu"}};
  for (const auto& [number, name] : kOthers) {
    expect_refusal_after(
        [number = number](ForwardArgs& a) { a.x.dtype = static_cast<DType>(number); },
        "x: dtype " + std::string(name) + " is not supported (f32, f16, bf16, f64)");
  }
  expect_refusal_after(
      [](ForwardArgs& a) { a.x.dtype = static_cast<DType>(0x1234); },
      "x: dtype of DLPack's type code 18 with 52 bits is not supported (f32, f16, bf16, f64)");
}

TEST(Problem, Widths) {
  for (const std::int64_t width : {0, 1, 65, 1000}) {
    std::vector<float> taps(3 * 1000);
    expect_refusal_after(
        [&](ForwardArgs& a) {
          a.weight = TensorRef::contiguous(taps.data(), DType::kF32, {3, width});
        },
        "weight: width " + std::to_string(width) + " is not supported (2 to 64)");
  }
}

TEST(Problem, StateColumnsAndSlots) {
  expect_refusal_after([](ForwardArgs& a) { a.pool.base_column = 1; },
                       "state: has 3 columns, but width 4 needs 3 from column 1 (base_column) on");
  expect_refusal_after([](ForwardArgs& a) { a.pool.base_column = -1; }, "from column -1");
  expect_refusal_after(
      [](ForwardArgs& a) { a.pool.state->shape[0] = 1; },
      "state: has 1 slots, but without read_slots sequence s uses slot s; expected at least 2");
  expect_refusal_after(
      [](ForwardArgs& a) {
        a.pool.state.reset();
        a.sequences.initial_state = InitialState::kAll;
      },
      "state: is absent, but sequences continue from it");
  expect_refusal_after([](ForwardArgs& a) { a.pool.state->strides[2] = 0; },
                       "state: axis 2 has stride 0 but is written");
}

TEST(Problem, Devices) {
  expect_refusal_after([](ForwardArgs& a) { a.weight.device = {DeviceType::kCuda, 1}; },
                       "weight: is on device 2:1, but x is on 1:0");
  expect_refusal_after([](ForwardArgs& a) { a.options.backend = BackendId::kCuda; },
                       "backend: 'cuda'");
}

TEST(Problem, EnumeratorsThatDoNotExist) {
  expect_refusal_after([](ForwardArgs& a) { a.epilogue.activation = static_cast<Activation>(9); },
                       "activation: value 9 is not known (none, silu)");
  expect_refusal_after([](ForwardArgs& a) { a.options.schedule = static_cast<Schedule>(7); },
                       "schedule: value 7 is not known (flat, block-list, sequence-grid)");
  expect_refusal_after([](ForwardArgs& a) { a.op = static_cast<Op>(7); },
                       "op: value 7 is not known");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.padded_rows = static_cast<PaddedRows>(3); },
                       "padded_rows: value 3 is not known (zero, untouched, copy)");
  expect_refusal_after([](ForwardArgs& a) { a.options.backend = static_cast<BackendId>(77); },
                       "backend: value 77 is not known");
  expect_refusal_after([](ForwardArgs& a) { a.options.threads = -2; }, "threads: is -2");
}

TEST(Problem, Schedules) {
  expect_refusal_after(
      [](ForwardArgs& a) { a.options.schedule = Schedule::kBlockList; },
      "block_sequence: is only for schedule block-list, which needs it and block_offset");
  expect_refusal_after(
      [](ForwardArgs& a) {
        a.options.schedule = Schedule::kSequenceGrid;
        a.options.max_seqlen = 6;
      },
      "max_seqlen: is 6; expected 0 to 5 (tokens)");
}

TEST(Problem, QueryStartLocNeedsRaggedRows) {
  expect_refusal_after([](ForwardArgs& a) { a.op = Op::kDecode; },
                       "query_start_loc: is only for x [tokens, channels] of a forward or verify "
                       "call; the shape of a batch or of a decode call has its sequences already");
  expect_refusal_after([](ForwardArgs& a) { a.sequences.query_start_loc->shape[0] = 0; },
                       "query_start_loc: is empty");
}

TEST(Problem, PartialOverlapIsRefusedInPlaceIsNot) {
  Call call({0, 2, 5});
  call.x.resize(call.x.size() + 3);
  ForwardArgs args = call.fill();
  args.out = args.x;
  args.out.data = call.x.data() + 3;  // one row later
  const std::vector<float> before = call.x;
  const Status status = forward(args);
  EXPECT_NE(status.message().find("out: overlaps x in part"), std::string::npos)
      << status.message();
  EXPECT_EQ(call.x, before);
  args.out = args.x;
  EXPECT_TRUE(forward(args).ok());
  args.options.schedule = Schedule::kSequenceGrid;
  args.options.max_seqlen = 3;
  EXPECT_NE(forward(args).message().find("out: is x itself"), std::string::npos);
}

// Column slices of one packed projection interleave in memory without sharing an element.
TEST(Problem, SlicesOfOneBufferDoNotOverlap) {
  std::vector<float> packed(5 * 8, 1.0f);
  Call call({0, 2, 5});
  ForwardArgs args = call.fill();
  args.x.data = packed.data();
  args.x.strides[0] = 8;
  args.out.data = packed.data() + 4;
  args.out.strides[0] = 8;
  EXPECT_TRUE(forward(args).ok());
  EXPECT_EQ(packed[3], 1.0f);
  args.out.data = packed.data() + 2;  // shares a column
  EXPECT_NE(forward(args).message().find("overlaps x in part"), std::string::npos);
  args.out.data = packed.data() + 6;  // its last column is the first one of x in the next row
  EXPECT_FALSE(forward(args).ok());
}

TEST(Problem, StateMustNotOverlapRows) {
  Call call({0, 2, 5});
  ForwardArgs args = call.fill();
  args.pool.state->data = call.x.data();
  args.pool.state->shape[0] = 1;
  args.pool.read_slots = TensorRef::contiguous(call.bounds.data(), DType::kI32, {2});
  EXPECT_NE(forward(args).message().find("state: overlaps x"), std::string::npos);
}

TEST(Problem, HasNoAddressesAndHashesByValue) {
  Call first({0, 2, 5}), second({0, 2, 5});
  Problem a, b;
  ASSERT_TRUE(make_problem(first.fill(), a).ok());
  ASSERT_TRUE(make_problem(second.fill(), b).ok());
  EXPECT_EQ(a, b);
  EXPECT_EQ(hash(a), hash(b));
  std::unordered_set<std::size_t> hashes = {hash(a)};
  for (int change = 0; change < 6; ++change) {
    Problem c = a;
    if (change == 0) c.tokens += 1;
    if (change == 1) c.width = 5;
    if (change == 2) c.x.dtype = DType::kBF16;
    if (change == 3) c.x.token_stride += 8;
    if (change == 4) c.in_place = true;
    if (change == 5) c.block_offset.entry_stride = 2;
    EXPECT_NE(a, c) << change;
    EXPECT_TRUE(hashes.insert(hash(c)).second) << change;
  }
}

TEST(Problem, PrintsWhatDiffersFromTheDefault) {
  Call call({0, 2, 5});
  Problem problem;
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  const std::string text = to_string(problem);
  EXPECT_NE(text.find("tokens=5"), std::string::npos) << text;
  EXPECT_NE(text.find("width=4"), std::string::npos) << text;
  EXPECT_EQ(text.find("activation"), std::string::npos) << text;
}

TEST(Problem, EveryEnumeratorHasAName) {
  const Capabilities& can = capabilities();
  for (const auto& row : can.dtypes) EXPECT_EQ(name(row.value), row.name);
  for (const auto& row : can.activations) EXPECT_EQ(name(row.value), row.name);
  for (const auto& row : can.schedules) EXPECT_EQ(name(row.value), row.name);
  for (const auto& row : can.backends) EXPECT_EQ(name(row.value), row.name);
}

}  // namespace
}  // namespace shortconv
