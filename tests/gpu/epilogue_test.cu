// Gates, residual and dilation on the GPU: random calls against plain ones that are finished by
// hand, most of them by other kernels, and a graph whose lengths change.
#include "../common/epilogue_case.hpp"
#include "shared_memory.cuh"

namespace shortconv::gpu_tests {
namespace {

using GpuEpilogues = GpuTest;

TEST_F(GpuEpilogues, EqualPlainCallsThatAreFinishedByHand) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SharedMemory shared(stream_);
    test::EpilogueCase one(shared.memory(), seed);
    one.check();
    if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "seed " << seed;
  }
}

/// LFM2's block: gates in front and behind, no activation.
ForwardArgs gated(const Batch& batch, const DeviceMemory& input_gate,
                  const DeviceMemory& output_gate) {
  ForwardArgs args = batch.args();
  args.epilogue.activation = Activation::kNone;
  args.input_gate = args.epilogue.output_gate = args.x;
  args.input_gate->data = input_gate.data();
  args.epilogue.output_gate->data = output_gate.data();
  return args;
}

TEST_F(GpuEpilogues, GraphsReplayWithOtherLengths) {
  Batch batch({40, 0, 1, 23}, 512, 64);
  DeviceMemory input_gate(batch.x.bytes()), output_gate(batch.x.bytes());
  input_gate.fill(5);
  output_gate.fill(6);
  const ForwardArgs args = gated(batch, input_gate, output_gate);
  Problem problem;
  Plan plan;
  expect_ok(make_problem(args, problem));
  expect_ok(make_plan(problem, plan));
  const Replayable graph(stream_, [&] { return run(plan, pointers(args), stream_); });
  Differences differences;
  for (const std::vector<std::int64_t>& lengths :
       {std::vector<std::int64_t>{16, 16, 16, 16}, {0, 64, 0, 0}, {1, 2, 3, 4}, {0, 0, 0, 0}}) {
    Batch expected(lengths, 512, 64);
    expect_ok(forward(gated(expected, input_gate, output_gate), stream_));
    batch.set_lengths(lengths);
    batch.out.poison();
    batch.state.fill(3);
    graph.replay();
    wait();
    differences.add(batch.out, expected.out, stream_);
    differences.add(batch.state, expected.state, stream_);
    EXPECT_EQ(differences.total(), 0u);
  }
}

TEST_F(GpuEpilogues, GatesAtOddAddressesAreRefusedBeforeTheLaunch) {
  const Batch batch({4, 4}, 64);
  const DeviceMemory gate(batch.x.bytes() + 4);
  ForwardArgs args = batch.args();
  args.input_gate = args.x;
  args.input_gate->data = static_cast<char*>(gate.data()) + 1;
  EXPECT_EQ(forward(args, stream_).message(),
            "input_gate: address is not a multiple of the size of its elements");
}

}  // namespace
}  // namespace shortconv::gpu_tests
