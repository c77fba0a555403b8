// How calls behave on a stream: they do not wait, may be captured and replayed with other lengths,
// may overlap their predecessor, leave the caller's errors and device alone, and have no race.
#include <algorithm>

#include "fixture.cuh"
#include "shortconv/schedule.hpp"

namespace shortconv::gpu_tests {
namespace {

class Stream : public GpuTest {};

Plan plan_of(const ForwardArgs& args) {
  Problem problem;
  Plan plan;
  const Status described = make_problem(args, problem);
  EXPECT_TRUE(described.ok()) << described.message();
  const Status planned = make_plan(problem, plan);
  EXPECT_TRUE(planned.ok()) << planned.message();
  return plan;
}

std::vector<std::int64_t> skewed_lengths() {
  std::vector<std::int64_t> lengths{300, 0, 1, 1, 1, 2, 0, 0, 17, 8, 9, 3, 64, 1, 30};
  return lengths;
}

// Every way through the backend, each planned before anything runs.
struct Planned {
  ForwardArgs args;
  Plan plan;
};
std::vector<Planned> every_way(const Batch& batch, const DeviceMemory& lists,
                               std::int64_t entries) {
  std::vector<ForwardArgs> ways;
  ways.push_back(batch.args());
  ForwardArgs columns = batch.args();  // the same bytes read as [channels, tokens]
  for (TensorRef* rows : {&columns.x, &columns.out}) {
    *rows = TensorRef::contiguous(rows->data, DType::kBF16, {batch.channels, batch.tokens}, kGpu)
                .transposed(0, 1);
  }
  ways.push_back(columns);
  ForwardArgs general = batch.args();
  general.weight.dtype = DType::kF16;  // mixed with bf16: no fast kernel
  ways.push_back(general);
  ForwardArgs grid = batch.args();
  grid.options.schedule = Schedule::kSequenceGrid;
  grid.options.max_seqlen = *std::max_element(batch.lengths.begin(), batch.lengths.end());
  ways.push_back(grid);
  ForwardArgs list = batch.args();
  list.options.schedule = Schedule::kBlockList;
  auto* memory = static_cast<std::int32_t*>(lists.data());
  list.options.block_sequence = TensorRef::contiguous(memory, DType::kI32, {entries}, kGpu);
  list.options.block_offset = TensorRef::contiguous(memory + entries, DType::kI32, {entries}, kGpu);
  ways.push_back(list);
  ways.push_back(batch.decode_args());
  std::vector<Planned> planned;
  for (const ForwardArgs& args : ways) planned.push_back({args, plan_of(args)});
  return planned;
}

TEST_F(Stream, CallsReturnWhileAKernelBeforeThemIsStillRunning) {
  const Batch batch(skewed_lengths(), 512);
  BlockList blocks;
  ASSERT_TRUE(plan_block_list(batch.lengths, blocks).ok());
  const auto entries = static_cast<std::int64_t>(blocks.sequence.size());
  blocks.sequence.insert(blocks.sequence.end(), blocks.offset.begin(), blocks.offset.end());
  const DeviceMemory lists(blocks.sequence);
  const std::vector<Planned> ways = every_way(batch, lists, entries);

  int* flag = nullptr;
  check(cudaMallocHost(&flag, sizeof *flag));
  *flag = 0;
  wait_for_flag<<<1, 1, 0, stream_>>>(flag);
  for (const Planned& way : ways) {
    expect_ok(run(way.plan, pointers(way.args), stream_));
    // A call that waited for the stream would never have come back.
    EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady) << to_string(way.plan);
  }
  expect_ok(forward(batch.args(), stream_));  // planning a known kernel does not wait either
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  *static_cast<volatile int*>(flag) = 1;
  wait();
  check(cudaFreeHost(flag));
}

TEST_F(Stream, ReplayedGraphsServeOtherLengthsOfTheSameCapacity) {
  const std::vector<std::vector<std::int64_t>> lengths{{100, 1, 0, 50, 49},
                                                       {0, 0, 200, 0, 0},
                                                       {1, 1, 1, 1, 1},
                                                       {40, 40, 40, 40, 40},
                                                       {0, 0, 0, 0, 0}};
  Batch batch(lengths[0], 1024, 200);
  const ForwardArgs args = batch.args();
  const Plan plan = plan_of(args);
  const Replayable graph(stream_, [&] { return run(plan, pointers(args), stream_); });

  for (const auto& now : lengths) {
    Batch expected(now, 1024, 200);
    expect_ok(forward(expected.args(), stream_));
    batch.set_lengths(now);
    batch.out.poison();
    batch.state.fill(3);
    graph.replay();
    Differences differences;
    differences.add(batch.out, expected.out, stream_);
    differences.add(batch.state, expected.state, stream_);
    EXPECT_EQ(differences.total(), 0u);
  }
}

TEST_F(Stream, TenThousandRepetitionsGiveTheSameBits) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t s = 0; s < 60; ++s) lengths.push_back(s * 7 % 23);
  lengths.push_back(500);
  Batch batch(lengths, 2048);
  // All resumed, so that every state is read and written.
  check(cudaMemset(batch.flags.data(), 1, lengths.size()));
  DeviceMemory initial(batch.state.bytes());
  initial.copy_from(batch.state, stream_);
  const Plan plan = plan_of(batch.args());
  const TensorPointers at = pointers(batch.args());
  expect_ok(run(plan, at, stream_));
  DeviceMemory out(batch.out.bytes()), state(batch.state.bytes());
  out.copy_from(batch.out, stream_);
  state.copy_from(batch.state, stream_);
  Differences differences;
  for (int i = 0; i < 10000; ++i) {
    batch.state.copy_from(initial, stream_);
    expect_ok(run(plan, at, stream_));
    differences.add(batch.out, out, stream_);
    differences.add(batch.state, state, stream_);
  }
  EXPECT_EQ(differences.total(), 0u);
}

TEST_F(Stream, OverlappingLaunchesSeeWhatTheOneBeforeWrote) {
  constexpr int kCalls = 50;
  const auto chain = [&](bool overlap, Batch& batch) {
    ForwardArgs there = batch.args(), back = batch.args();
    there.options.programmatic_launch = back.options.programmatic_launch = overlap;
    std::swap(back.x.data, back.out.data);
    for (int i = 0; i < kCalls; ++i) {
      expect_ok(forward(there, stream_));
      expect_ok(forward(back, stream_));
    }
  };
  Batch plain({700, 3, 1, 400}, 1024), overlapping({700, 3, 1, 400}, 1024);
  chain(false, plain);
  chain(true, overlapping);
  Differences differences;
  differences.add(plain.x, overlapping.x, stream_);
  differences.add(plain.out, overlapping.out, stream_);
  differences.add(plain.state, overlapping.state, stream_);
  EXPECT_EQ(differences.total(), 0u);
}

/// Lets the next kernel of the stream start, and long after that writes `words` of `from` to `to`.
__global__ void copy_late(const std::uint32_t* from, std::uint32_t* to, std::int64_t words) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  const long long begin = clock64();
  while (clock64() - begin < 50000) {
  }
  for (std::int64_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
}

// A small decode looks at slots before the kernel in front is done, to fetch states early.
TEST_F(Stream, SlotsThatTheKernelInFrontWritesAreTheOnesThatCount) {
  constexpr std::int32_t kSequences = 9;
  constexpr std::int64_t kPool = 2 * kSequences + 2;
  Batch batch(std::vector<std::int64_t>(kSequences, 1), 512);
  DeviceMemory pool(kPool * 3 * batch.channels * 2), initial(pool.bytes());
  initial.fill(4);
  std::vector<std::int32_t> stale, right;
  for (std::int32_t s = 0; s < kSequences; ++s) {
    stale.push_back(s % 4 == 3 ? 0x7ffffff0 : s);
    right.push_back(2 * kSequences - s);
  }
  DeviceMemory slots(stale), old_slots(stale), new_slots(right);
  ForwardArgs args = batch.decode_args();
  args.pool.state =
      TensorRef::contiguous(pool.data(), DType::kBF16, {kPool, 3, batch.channels}, kGpu);
  args.pool.read_slots = TensorRef::contiguous(slots.data(), DType::kI32, {kSequences}, kGpu);

  slots.copy_from(new_slots, stream_);
  pool.copy_from(initial, stream_);
  args.options.programmatic_launch = false;
  expect_ok(forward(args, stream_));
  DeviceMemory out(batch.out.bytes()), state(pool.bytes()), poison(batch.out.bytes());
  out.copy_from(batch.out, stream_);
  state.copy_from(pool, stream_);

  args.options.programmatic_launch = true;
  Differences differences;
  for (int i = 0; i < 100; ++i) {
    slots.copy_from(old_slots, stream_);
    pool.copy_from(initial, stream_);
    batch.out.copy_from(poison, stream_);
    copy_late<<<1, 32, 0, stream_>>>(static_cast<const std::uint32_t*>(new_slots.data()),
                                     static_cast<std::uint32_t*>(slots.data()), kSequences);
    expect_ok(forward(args, stream_));
    differences.add(batch.out, out, stream_);
    differences.add(pool, state, stream_);
  }
  EXPECT_EQ(differences.total(), 0u);
}

TEST_F(Stream, LeavesAnErrorOfTheCallerWhereItWas) {
  const Batch batch({5, 6}, 256);
  expect_ok(forward(batch.args(), stream_));
  void* too_much = nullptr;
  ASSERT_EQ(cudaMalloc(&too_much, std::size_t{1} << 60), cudaErrorMemoryAllocation);
  expect_ok(forward(batch.args(), stream_));
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  wait();
}

TEST_F(Stream, RefusesOtherDevicesAndOddAddresses) {
  Batch batch({5, 6}, 256);
  ForwardArgs elsewhere = batch.args();
  for (TensorRef* tensor :
       {&elsewhere.x, &elsewhere.out, &elsewhere.weight, &*elsewhere.pool.state,
        &*elsewhere.sequences.query_start_loc, &*elsewhere.sequences.has_initial_state}) {
    tensor->device.index = 1;
  }
  const Status other = forward(elsewhere, stream_);
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.message().find("device: x is on cuda:1, but the current device is cuda:0"),
            std::string::npos)
      << other.message();

  ForwardArgs odd = batch.args();
  DeviceMemory weight(batch.channels * 4 * 2 + 2);
  odd.weight.data = static_cast<char*>(weight.data()) + 1;
  const Status unaligned = forward(odd, stream_);
  ASSERT_FALSE(unaligned.ok());
  EXPECT_NE(unaligned.message().find("weight: address is not a multiple"), std::string::npos)
      << unaligned.message();
  wait();
}

}  // namespace
}  // namespace shortconv::gpu_tests
