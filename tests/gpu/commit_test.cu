// Commits on a GPU give the pool that the CPU gives, whatever the form, layout, type and alignment;
// they do not wait, and a captured one serves other accepted numbers.
#include <limits>
#include <memory>

#include "../unit/commit_case.hpp"
#include "fixture.cuh"
#include "shortconv/capability.hpp"

namespace shortconv::gpu_tests {
namespace {

/// The tensors of a case copied to the device; `shift` bytes behind an aligned address.
struct OnDevice {
  CommitBuffers host;
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  CommitArgs args;

  explicit OnDevice(const CommitCase& c, std::int64_t shift = 0) : host(c) {
    std::array<void*, 6> bases{};
    for (std::size_t i = 0; i < bases.size(); ++i) {
      const std::vector<std::uint8_t>& bytes = host.all()[i]->memory;
      memory.push_back(
          std::make_unique<DeviceMemory>(static_cast<std::int64_t>(bytes.size()) + shift));
      bases[i] = static_cast<char*>(memory[i]->data()) + (i < 2 ? shift : 0);
      check(cudaMemcpy(bases[i], bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    }
    args = host.args(c, bases, kGpu);
    state_ = bases[1];
  }
  void set_accepted(const CommitCase& c) {
    host.accepted = index_tensor(c.accepted, c.index_dtype, c.strided_indices);
    check(cudaMemcpy(memory[2]->data(), host.accepted.memory.data(), host.accepted.memory.size(),
                     cudaMemcpyHostToDevice));
  }
  void poison_state() {
    check(cudaMemset(state_, 0xff, host.state.memory.size()));
    check(cudaDeviceSynchronize());
  }
  /// The pool and what surrounds it, after everything on the device is done.
  [[nodiscard]] std::vector<std::uint8_t> state() const {
    std::vector<std::uint8_t> bytes(host.state.memory.size());
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(bytes.data(), state_, bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }

 private:
  void* state_ = nullptr;
};

std::vector<std::uint8_t> state_on_cpu(const CommitCase& c) {
  CommitBuffers tensors(c);
  const Status status = commit(tensors.host_args(c));
  EXPECT_TRUE(status.ok()) << status.message();
  return tensors.state.memory;
}

CommitPlan plan_of(const CommitArgs& args) {
  CommitProblem problem;
  CommitPlan plan;
  const Status described = make_problem(args, problem);
  EXPECT_TRUE(described.ok()) << described.message();
  const Status planned = make_plan(problem, plan);
  EXPECT_TRUE(planned.ok()) << planned.message();
  return plan;
}

class Commits : public GpuTest {
 protected:
  void expect_same_as_cpu(const CommitCase& c, std::int64_t shift = 0) {
    OnDevice device(c, shift);
    expect_ok(commit(device.args, stream_));
    EXPECT_TRUE(device.state() == state_on_cpu(c)) << c.text() << ", shifted by " << shift;
  }
};

TEST_F(Commits, EveryTypeAndWidthInEveryLayout) {
  std::vector<int> widths(capabilities().widths.begin(), capabilities().widths.end());
  widths.insert(widths.end(), {9, 12, capabilities().max_width});
  std::vector<DType> dtypes = {DType::kF64};
  for (const auto& row : capabilities().dtypes) dtypes.push_back(row.value);
  for (const int width : widths) {
    for (const DType dtype : dtypes) {
      CommitCase c;
      c.width = width;
      c.dtype = dtype;
      for_each_layout(c, [&](const CommitCase& one) { expect_same_as_cpu(one); });
    }
  }
}

TEST_F(Commits, AnyAlignmentLayersAndChannels) {
  for (const std::int64_t channels : {1, 7, 1032, 1100}) {
    for (const std::int64_t layers : {1, 5}) {
      CommitCase c;
      c.dtype = DType::kBF16;
      c.layers = layers;
      c.channels = channels;
      for_each_layout(c, [&](const CommitCase& one) {
        expect_same_as_cpu(one);
        expect_same_as_cpu(one, 2);
      });
    }
  }
}

TEST_F(Commits, WiderPoolsAndIndicesOfEitherType) {
  for (const DType dtype : {DType::kI32, DType::kI64}) {
    CommitCase c;
    c.extra_columns = 3;
    c.base_column = 2;
    c.index_dtype = dtype;
    c.strided_indices = true;
    for_each_layout(c, [&](const CommitCase& one) { expect_same_as_cpu(one); });
  }
}

TEST_F(Commits, BadValuesNeverLeaveTheTensors) {
  CommitCase c;
  c.index_dtype = DType::kI64;
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  c.accepted = {most, -most - 1, 0, 1, 18, 0, 2, 1, 0};
  c.slot = {0, 2, most, -most - 1, 3, 13, 4, 5, 6};
  c.bounds = {0, most, -most - 1, 4, 2, 19, 1 << 30, 3, 0, 18};
  for_each_layout(c, [&](const CommitCase& one) { expect_same_as_cpu(one); });
}

TEST_F(Commits, OffsetsHave64Bits) {
  constexpr std::int64_t kSlot = (std::int64_t{1} << 31) + 8;  // elements, of 2 bytes
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total));
  if (free < (std::size_t{14} << 30)) GTEST_SKIP() << "needs 14 GiB of GPU memory";
  const DeviceMemory state(3 * kSlot * 2), windows(3 * 64 * 2),
      accepted(std::vector<std::int32_t>{0}), slots(std::vector<std::int32_t>{2});
  check(cudaMemset(windows.data(), 0x5a, 3 * 64 * 2));
  CommitArgs args;
  args.intermediate_states =
      TensorRef::contiguous(windows.data(), DType::kBF16, {1, 1, 3, 64}, kGpu);
  args.state = TensorRef::contiguous(state.data(), DType::kBF16, {1, 3, 3, 64}, kGpu);
  args.state.strides[1] = kSlot;
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {1}, kGpu);
  args.slots = TensorRef::contiguous(slots.data(), DType::kI32, {1}, kGpu);
  args.width = 4;
  args.rows_per_token = 3;
  expect_ok(commit(args, stream_));
  wait();
  Differences differences;
  differences.add(static_cast<char*>(state.data()) + 2 * kSlot * 2, windows.data(), 3 * 64 * 2,
                  stream_);
  EXPECT_EQ(differences.total(), 0u);
}

TEST_F(Commits, ReturnWhileAKernelBeforeThemIsStillRunning) {
  std::vector<CommitCase> cases;
  for_each_layout(CommitCase{}, [&](const CommitCase& one) { cases.push_back(one); });
  std::vector<std::unique_ptr<OnDevice>> devices;
  std::vector<CommitPlan> plans;
  for (const CommitCase& one : cases) {
    devices.push_back(std::make_unique<OnDevice>(one));
    plans.push_back(plan_of(devices.back()->args));
  }
  int* flag = nullptr;
  check(cudaMallocHost(&flag, sizeof *flag));
  *flag = 0;
  wait_for_flag<<<1, 1, 0, stream_>>>(flag);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    expect_ok(run(plans[i], pointers(devices[i]->args), stream_));
    // A call that waited for the stream would never have come back.
    EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady) << cases[i].text();
  }
  *static_cast<volatile int*>(flag) = 1;
  wait();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_TRUE(devices[i]->state() == state_on_cpu(cases[i])) << cases[i].text();
  }
  check(cudaFreeHost(flag));
}

TEST_F(Commits, ReplayedGraphsServeOtherAcceptedNumbers) {
  for_each_layout(CommitCase{}, [&](CommitCase c) {
    OnDevice device(c);
    const CommitPlan plan = plan_of(device.args);
    const Replayable graph(stream_, [&] { return run(plan, pointers(device.args), stream_); });
    for (int replay = 0; replay < 3; ++replay) {
      for (std::int64_t& accepted : c.accepted) accepted = (accepted + 2) % 5 - 1;
      device.set_accepted(c);
      device.poison_state();
      graph.replay();
      EXPECT_TRUE(device.state() == state_on_cpu(c)) << c.text() << ", replay " << replay;
    }
  });
}

TEST_F(Commits, LeaveAnErrorOfTheCallerWhereItWas) {
  const CommitCase c;
  OnDevice device(c);
  void* too_much = nullptr;
  ASSERT_EQ(cudaMalloc(&too_much, std::size_t{1} << 60), cudaErrorMemoryAllocation);
  expect_ok(commit(device.args, stream_));
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  wait();
}

TEST_F(Commits, RefuseOtherDevicesAndOddAddresses) {
  const CommitCase c;
  const OnDevice device(c);
  const auto refusal = [&](auto&& change) {
    CommitArgs args = device.args;
    change(args);
    return commit(args, stream_).message();
  };
  EXPECT_EQ(refusal([](CommitArgs& a) {
              for (TensorRef* tensor :
                   {&a.intermediate_states, &a.state, &a.accepted, &*a.slots, &*a.second_slots}) {
                tensor->device.index = 1;
              }
            }),
            "device: intermediate_states is on cuda:1, but the current device is cuda:0");
  const auto odd = [](TensorRef& tensor) { tensor.data = static_cast<char*>(tensor.data) + 1; };
  const std::string text = ": address is not a multiple of the size of its elements";
  EXPECT_EQ(refusal([&](CommitArgs& a) { odd(a.intermediate_states); }),
            "intermediate_states" + text);
  EXPECT_EQ(refusal([&](CommitArgs& a) { odd(a.state); }), "state" + text);
  EXPECT_EQ(refusal([&](CommitArgs& a) { odd(a.accepted); }), "accepted" + text);
  EXPECT_EQ(refusal([&](CommitArgs& a) { odd(*a.slots); }), "slots" + text);
  EXPECT_EQ(refusal([&](CommitArgs& a) { odd(*a.second_slots); }), "second_slots" + text);
  EXPECT_TRUE(device.state() == device.host.state.memory);
}

}  // namespace
}  // namespace shortconv::gpu_tests
