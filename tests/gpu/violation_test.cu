// The checked mode on a GPU: the report is the CPU's, comes in the order of the stream, and changes
// nothing else.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "common/random.hpp"
#include "fixture.cuh"
#include "shortconv/violation.hpp"

namespace shortconv::gpu_tests {
namespace {

using Words = std::array<std::int64_t, 2 * kViolations>;

// The index tensors of a call, on the host. Both backends get the same ones.
struct Indices {
  std::int64_t tokens = 0, slots = 0, columns = 5, base_column = 1;
  std::vector<std::int64_t> bounds, read_slots, write_slots, read_offsets;
  std::vector<std::uint8_t> flags;
  std::vector<std::int64_t> snapshots;           // rows (sequence, token, slot), of a forward call
  std::vector<std::int64_t> intermediate_slots;  // of a verify call, where there are some
  std::optional<std::int64_t> null_slot;

  [[nodiscard]] std::int64_t sequences() const { return static_cast<std::int64_t>(flags.size()); }
  // Good ones: `sequences` of one token, each resumed and with a slot of its own.
  static Indices good(std::int64_t sequences) {
    Indices indices;
    indices.tokens = indices.slots = sequences;
    for (std::int64_t s = 0; s < sequences; ++s) {
      indices.bounds.push_back(s);
      indices.read_slots.push_back(s);
      indices.write_slots.push_back(s);
      indices.read_offsets.push_back(s % 2);
      indices.flags.push_back(1);
    }
    indices.bounds.push_back(sequences);
    return indices;
  }
};

// The arguments but for x, out, weight and state.
template <typename Address>
ForwardArgs index_args(const Indices& indices, DType dtype, Device device, Address&& address) {
  ForwardArgs args;
  const std::int64_t sequences = indices.sequences();
  const auto view = [&](const auto& values, DType of, std::int64_t count) {
    return TensorRef::contiguous(address(values), of, {count}, device);
  };
  args.sequences.query_start_loc = view(indices.bounds, dtype, sequences + 1);
  args.pool.read_slots = view(indices.read_slots, dtype, sequences);
  args.pool.write_slots = view(indices.write_slots, dtype, sequences);
  args.pool.read_offsets = view(indices.read_offsets, dtype, sequences);
  args.sequences.has_initial_state = view(indices.flags, DType::kBool, sequences);
  if (!indices.snapshots.empty()) {
    const auto rows = static_cast<std::int64_t>(indices.snapshots.size()) / 3;
    args.pool.snapshots =
        TensorRef::contiguous(address(indices.snapshots), dtype, {rows, 3}, device);
  }
  if (!indices.intermediate_slots.empty()) {
    args.op = Op::kVerify;
    args.drafts.intermediate_slots = view(indices.intermediate_slots, dtype, sequences);
  }
  args.pool.null_slot = indices.null_slot;
  args.pool.base_column = indices.base_column;
  return args;
}

struct Found {
  Violation violation;
  std::int64_t count, first;
};
// A report with these and no others.
Words words_of(std::initializer_list<Found> found) {
  Words words;
  for (std::size_t v = 0; v < kViolations; ++v) {
    words[2 * v + kViolationCount] = 0;
    words[2 * v + kViolationFirst] = -1;
  }
  for (const Found& one : found) {
    words[2 * static_cast<std::size_t>(one.violation) + kViolationCount] = one.count;
    words[2 * static_cast<std::size_t>(one.violation) + kViolationFirst] = one.first;
  }
  return words;
}

Words cpu_report(const Indices& indices) {
  Words words;
  ForwardArgs args = index_args(indices, DType::kI64, Device{}, [](const auto& values) {
    return const_cast<void*>(static_cast<const void*>(values.data()));
  });
  args.x = args.out = TensorRef::contiguous(nullptr, DType::kF32, {indices.tokens, 0});
  args.weight = TensorRef::contiguous(nullptr, DType::kF32, {0, 4});
  args.pool.state =
      TensorRef::contiguous(nullptr, DType::kF32, {indices.slots, indices.columns, 0});
  if (args.drafts.intermediate_slots) {
    args.drafts.intermediate_states =
        TensorRef::contiguous(nullptr, DType::kF32, {indices.slots, 2, 3, 0});
  }
  args.options.violations = TensorRef::contiguous(words.data(), DType::kI64, {kViolations, 2});
  const Status status = forward(args);
  EXPECT_TRUE(status.ok()) << status.message();
  return words;
}

// A call on the device, its report between words that nobody may touch.
class DeviceCall {
 public:
  static constexpr std::int64_t kChannels = 8, kGuard = 4;

  DeviceCall(const Indices& indices, DType dtype, std::int64_t channels = kChannels)
      : x_(indices.tokens * kChannels * 2 + 4),
        out_(indices.tokens * kChannels * 2 + 4),
        weight_(kChannels * 4 * 2),
        state_(indices.slots * indices.columns * kChannels * 2 + 4),
        windows_(indices.slots * 2 * 3 * kChannels * 2 + 4),
        report_((2 * kViolations + 2 * kGuard) * 8),
        dtype_(dtype) {
    x_.fill(1);
    weight_.fill(2);
    state_.fill(3);
    report_.fill(4);
    args_ = index_args(indices, dtype, kGpu, [&](const auto& values) { return upload(values); });
    args_.x = TensorRef::contiguous(x_.data(), DType::kBF16, {indices.tokens, channels}, kGpu);
    args_.out = TensorRef::contiguous(out_.data(), DType::kBF16, {indices.tokens, channels}, kGpu);
    args_.weight = TensorRef::contiguous(weight_.data(), DType::kBF16, {channels, 4}, kGpu);
    args_.pool.state = TensorRef::contiguous(state_.data(), DType::kBF16,
                                             {indices.slots, indices.columns, channels}, kGpu);
    if (args_.drafts.intermediate_slots) {
      args_.drafts.intermediate_states = TensorRef::contiguous(
          windows_.data(), DType::kBF16, {indices.slots, 2, 3, channels}, kGpu);
    }
    args_.options.violations = TensorRef::contiguous(
        static_cast<std::int64_t*>(report_.data()) + kGuard, DType::kI64, {kViolations, 2}, kGpu);
  }

  [[nodiscard]] ForwardArgs& args() { return args_; }
  [[nodiscard]] const DeviceMemory& out() const { return out_; }
  [[nodiscard]] const DeviceMemory& state() const { return state_; }

  // After the stream's work. Violation by violation, whatever the strides.
  [[nodiscard]] Words report() const {
    std::array<std::int64_t, 2 * kViolations + 2 * kGuard> all;
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(all.data(), report_.data(), sizeof all, cudaMemcpyDeviceToHost));
    const auto* garbage = reinterpret_cast<const std::uint32_t*>(all.data());
    for (std::size_t i = 0; i < 2 * all.size(); ++i) {
      const bool guard = i < 2 * kGuard || i >= 2 * (kGuard + 2 * kViolations);
      if (!guard) continue;
      EXPECT_EQ(garbage[i], bits_of(i, 4)) << "beside the report, half word " << i;
    }
    Words words;
    for (std::size_t v = 0; v < kViolations; ++v) {
      for (std::size_t column = 0; column < 2; ++column) {
        words[2 * v + column] =
            all[kGuard + v * static_cast<std::size_t>(args_.options.violations->strides[0]) +
                column * static_cast<std::size_t>(args_.options.violations->strides[1])];
      }
    }
    return words;
  }
  void transpose_report() {
    args_.options.violations->strides[0] = 1;
    args_.options.violations->strides[1] = kViolations;
  }

  // Other index values in the same places, in the order of the stream. `staging` outlives it.
  void set_bounds(const std::vector<std::int32_t>& staging, cudaStream_t stream) {
    ASSERT_EQ(dtype_, DType::kI32);
    check(cudaMemcpyAsync(args_.sequences.query_start_loc->data, staging.data(), staging.size() * 4,
                          cudaMemcpyHostToDevice, stream));
  }

 private:
  void* upload(const std::vector<std::uint8_t>& values) { return keep(values); }
  void* upload(const std::vector<std::int64_t>& values) {
    if (dtype_ == DType::kI64) return keep(values);
    return keep(std::vector<std::int32_t>(values.begin(), values.end()));
  }
  template <typename T>
  void* keep(const std::vector<T>& values) {
    indices_.push_back(std::make_unique<DeviceMemory>(values));
    return indices_.back()->data();
  }

  DeviceMemory x_, out_, weight_, state_, windows_, report_;
  DType dtype_;
  std::vector<std::unique_ptr<DeviceMemory>> indices_;
  ForwardArgs args_;
};

// Everything goes wrong now and then; sequences on both sides of the border between blocks.
Indices random_indices(tools::Random& random, std::int64_t sequences) {
  Indices indices = Indices::good(sequences);
  const auto rarely = [&] { return random.chance(1.0 / 16); };
  for (std::int64_t s = 0; s < sequences; ++s) {
    const auto at = static_cast<std::size_t>(s);
    if (rarely()) indices.bounds[at] = random.between(-2, indices.tokens + 2);
    if (rarely()) indices.read_slots[at] = random.between(-2, indices.slots + 3);
    if (rarely()) indices.write_slots[at] = random.between(-2, indices.slots + 3);
    if (rarely()) indices.read_offsets[at] = random.between(-2, 3);
    if (rarely()) indices.flags[at] = 0;
  }
  if (random.chance(0.5)) indices.null_slot = random.between(0, indices.slots + 3);
  if (random.chance(1.0 / 3)) {
    for (std::int64_t s = 0; s < sequences; ++s) {
      indices.intermediate_slots.push_back(rarely() ? random.between(-2, indices.slots + 3) : s);
    }
  } else if (random.chance(0.5)) {
    indices.slots *= 2;  // those behind are of snapshots
    for (std::int64_t row = random.between(1, 2 * sequences); row > 0; --row) {
      const std::int64_t slot =
          rarely() ? random.between(-2, indices.slots + 3) : sequences + row % sequences;
      indices.snapshots.insert(
          indices.snapshots.end(),
          {rarely() ? random.between(-2, sequences + 2) : random.between(0, sequences - 1),
           rarely() ? random.between(-2, 3) : random.between(0, 1), slot});
    }
  }
  return indices;
}

class CheckedMode : public GpuTest {};

TEST_F(CheckedMode, RandomBatchesGiveTheReportOfTheCpu) {
  tools::Random random(11);
  std::array<int, kViolations> seen{};
  for (int repetition = 0; repetition < 800; ++repetition) {
    const std::int64_t sequences = random.between(1, 900);
    const Indices indices = random_indices(random, sequences);
    DeviceCall call(indices, repetition % 2 == 0 ? DType::kI32 : DType::kI64);
    if (repetition % 3 == 0) call.transpose_report();
    for (int again = 0; again < 2; ++again) expect_ok(forward(call.args(), stream_));
    wait();
    const Words expected = cpu_report(indices);
    ASSERT_EQ(call.report(), expected) << sequences << " sequences";
    for (std::size_t v = 0; v < kViolations; ++v) seen[v] += expected[2 * v] > 0;
  }
  for (std::size_t v = 0; v < kViolations; ++v) {
    if (static_cast<Violation>(v) == Violation::kParentNotBefore) continue;  // see drafts_test.cu
    EXPECT_GT(seen[v], 20) << name(static_cast<Violation>(v));
  }
}

TEST_F(CheckedMode, SharedSlotsAreFoundAcrossBlocks) {
  for (const std::int64_t sequences : {1, 2, 255, 256, 257, 511, 512, 513, 5000}) {
    Indices indices = Indices::good(sequences);
    DeviceCall good(indices, DType::kI64);
    expect_ok(forward(good.args(), stream_));
    EXPECT_EQ(good.report(), words_of({})) << sequences;
    if (sequences == 1) continue;
    indices.write_slots.back() = indices.write_slots.front();
    indices.bounds.back() = sequences + 1;  // the one number that no sequence has
    DeviceCall bad(indices, DType::kI64);
    expect_ok(forward(bad.args(), stream_));
    const Words expected = words_of({{Violation::kBoundOutside, 1, sequences},
                                     {Violation::kWriteSlotShared, 1, sequences - 1}});
    EXPECT_EQ(bad.report(), expected) << sequences;
    EXPECT_EQ(bad.report(), cpu_report(indices)) << sequences;
  }
}

// Rows of snapshots have numbers of their own, of which there may be more or fewer than sequences.
TEST_F(CheckedMode, SharedSlotsOfSnapshotsAreFoundAcrossBlocks) {
  for (const std::int64_t sequences : {1, 256, 700}) {
    for (const std::int64_t rows : {1, 2, 255, 257, 1500}) {
      Indices indices = Indices::good(sequences);
      indices.slots += rows;
      for (std::int64_t row = 0; row < rows; ++row) {
        indices.snapshots.insert(indices.snapshots.end(), {row % sequences, 0, sequences + row});
      }
      DeviceCall good(indices, DType::kI32);
      expect_ok(forward(good.args(), stream_));
      EXPECT_EQ(good.report(), words_of({})) << sequences << ", " << rows;
      if (rows == 1) continue;
      indices.snapshots.back() = indices.snapshots[2];
      DeviceCall bad(indices, DType::kI32);
      expect_ok(forward(bad.args(), stream_));
      EXPECT_EQ(bad.report(), words_of({{Violation::kSnapshotSlotShared, 1, rows - 1}}))
          << sequences << ", " << rows;
    }
  }
}

TEST_F(CheckedMode, DecodeIsCheckedToo) {
  Indices indices = Indices::good(300);
  indices.read_slots[280] = 300;
  indices.write_slots[290] = indices.write_slots[3];
  indices.read_offsets[7] = 2;
  DeviceCall call(indices, DType::kI32);
  ForwardArgs args = call.args();
  args.op = Op::kDecode;
  args.sequences.query_start_loc.reset();
  args.sequences.has_initial_state.reset();
  expect_ok(forward(args, stream_));
  EXPECT_EQ(call.report(), words_of({{Violation::kReadSlotOutside, 1, 280},
                                     {Violation::kWriteSlotShared, 1, 290},
                                     {Violation::kReadOffsetOutside, 1, 7}}));
}

TEST_F(CheckedMode, EmptyCallsAreReportedToo) {
  Indices indices = Indices::good(40);
  indices.read_slots[30] = 99;
  DeviceCall no_channels(indices, DType::kI32, 0);
  expect_ok(forward(no_channels.args(), stream_));
  EXPECT_EQ(no_channels.report(), words_of({{Violation::kReadSlotOutside, 1, 30}}));
  indices.tokens = 0;
  std::fill(indices.bounds.begin(), indices.bounds.end(), 0);
  DeviceCall no_tokens(indices, DType::kI32);
  expect_ok(forward(no_tokens.args(), stream_));
  EXPECT_EQ(no_tokens.report(), words_of({{Violation::kReadSlotOutside, 1, 30}}));
}

TEST_F(CheckedMode, ChangesNoBitOfOutputsAndStates) {
  tools::Random random(5);
  for (int repetition = 0; repetition < 20; ++repetition) {
    Indices indices = random_indices(random, 400);
    indices.snapshots.clear();  // nothing that is undefined
    indices.intermediate_slots.clear();
    for (std::int64_t s = 0; s < 400; ++s) {
      indices.bounds[static_cast<std::size_t>(s)] = s;
      indices.write_slots[static_cast<std::size_t>(s)] = s % 7 == 0 ? 900 : s;
      indices.read_slots[static_cast<std::size_t>(s)] = s % 11 == 0 ? -1 : s;
    }
    DeviceCall plain(indices, DType::kI32), checked(indices, DType::kI32);
    plain.args().options.violations.reset();
    expect_ok(forward(plain.args(), stream_));
    expect_ok(forward(checked.args(), stream_));
    Differences differences;
    differences.add(plain.out(), checked.out(), stream_);
    differences.add(plain.state(), checked.state(), stream_);
    EXPECT_EQ(differences.total(), 0u);
    EXPECT_EQ(checked.report(), cpu_report(indices));
  }
}

Plan plan_of(const ForwardArgs& args) {
  Problem problem;
  Plan plan;
  const Status described = make_problem(args, problem);
  EXPECT_TRUE(described.ok()) << described.message();
  const Status planned = make_plan(problem, plan);
  EXPECT_TRUE(planned.ok()) << planned.message();
  return plan;
}

std::vector<std::int32_t> narrow(const std::vector<std::int64_t>& values) {
  return {values.begin(), values.end()};
}

// The call reads what the stream wrote before it, although the call itself came long before that.
TEST_F(CheckedMode, ReportsInTheOrderOfTheStream) {
  const Indices good = Indices::good(300);
  Indices bad = good;
  bad.bounds[270] = 400;
  DeviceCall call(good, DType::kI32);
  const Plan plan = plan_of(call.args());
  const DeviceMemory other(narrow(bad.bounds));

  int* flag = nullptr;
  check(cudaMallocHost(&flag, sizeof *flag));
  *flag = 0;
  wait_for_flag<<<1, 1, 0, stream_>>>(flag);
  check(cudaMemcpyAsync(call.args().sequences.query_start_loc->data, other.data(), 301 * 4,
                        cudaMemcpyDeviceToDevice, stream_));
  expect_ok(run(plan, pointers(call.args()), stream_));
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  *static_cast<volatile int*>(flag) = 1;
  wait();
  EXPECT_EQ(call.report(), cpu_report(bad));
  check(cudaFreeHost(flag));
}

TEST_F(CheckedMode, ReplayedGraphsReportTheValuesOfEachReplay) {
  std::vector<Indices> batches(4, Indices::good(600));
  batches[0].bounds[599] = -1;
  batches[2].bounds[10] = 601;
  batches[2].bounds[300] = 5;
  DeviceCall call(batches[0], DType::kI32);
  const Plan plan = plan_of(call.args());
  const Replayable graph(stream_, [&] { return run(plan, pointers(call.args()), stream_); });
  for (const Indices& batch : batches) {
    const std::vector<std::int32_t> bounds = narrow(batch.bounds);
    call.set_bounds(bounds, stream_);
    graph.replay();
    wait();
    EXPECT_EQ(call.report(), cpu_report(batch));
  }
}

// Each call reads what the one before wrote; all kernels of a call wait for those before them.
TEST_F(CheckedMode, OverlappingLaunchesKeepTheirOrder) {
  Indices indices = Indices::good(700);
  indices.read_slots = indices.write_slots;
  indices.read_slots[650] = 700;
  indices.write_slots[100] = -1;
  const auto chain = [&](bool overlap, DeviceCall& call) {
    ForwardArgs there = call.args(), back = call.args();
    there.options.programmatic_launch = back.options.programmatic_launch = overlap;
    std::swap(back.x.data, back.out.data);
    for (int i = 0; i < 20; ++i) {
      expect_ok(forward(there, stream_));
      expect_ok(forward(back, stream_));
    }
  };
  DeviceCall plain(indices, DType::kI32), overlapping(indices, DType::kI32);
  chain(false, plain);
  chain(true, overlapping);
  Differences differences;
  differences.add(plain.out(), overlapping.out(), stream_);
  differences.add(plain.state(), overlapping.state(), stream_);
  EXPECT_EQ(differences.total(), 0u);
  EXPECT_EQ(plain.report(), cpu_report(indices));
  EXPECT_EQ(overlapping.report(), cpu_report(indices));
}

TEST_F(CheckedMode, LeavesAnErrorOfTheCallerWhereItWas) {
  DeviceCall call(Indices::good(9), DType::kI32);
  void* too_much = nullptr;
  ASSERT_EQ(cudaMalloc(&too_much, std::size_t{1} << 60), cudaErrorMemoryAllocation);
  expect_ok(forward(call.args(), stream_));
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  wait();
}

TEST_F(CheckedMode, RefusesAReportAtAnOddAddress) {
  DeviceCall call(Indices::good(9), DType::kI32);
  ForwardArgs args = call.args();
  args.options.violations->data = static_cast<char*>(args.options.violations->data) + 4;
  const Status status = forward(args, stream_);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("violations: address is not a multiple"), std::string::npos)
      << status.message();
  wait();
}

}  // namespace
}  // namespace shortconv::gpu_tests
