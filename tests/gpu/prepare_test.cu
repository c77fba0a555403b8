// Index preparation on a GPU: the values of the CPU, bit for bit, good ones and bad ones; no
// waiting, and a captured call serves other values.
#include <memory>

#include "../common/prepare_case.hpp"
#include "fixture.cuh"

namespace shortconv::gpu_tests {
namespace {

using test::SnapshotCase;
using test::TreeCase;

std::vector<std::vector<std::uint8_t>> bytes_of(const std::vector<GuardedTensor>& tensors) {
  std::vector<std::vector<std::uint8_t>> bytes;
  for (const GuardedTensor& tensor : tensors) bytes.push_back(tensor.memory);
  return bytes;
}

template <typename Case>
std::vector<std::vector<std::uint8_t>> on_cpu(const Case& c) {
  std::vector<GuardedTensor> tensors = c.tensors();
  std::vector<void*> bases;
  for (GuardedTensor& tensor : tensors) bases.push_back(tensor.memory.data());
  const Status status = test::prepare(c.args(tensors, bases));
  EXPECT_TRUE(status.ok()) << status.message();
  return bytes_of(tensors);
}

/// The tensors of a case on the device, and arguments with their addresses.
template <typename Case>
struct OnDevice {
  std::vector<GuardedTensor> host;
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  decltype(std::declval<Case>().args({}, {})) args;

  explicit OnDevice(const Case& c) : host(c.tensors()) {
    std::vector<void*> bases;
    for (const GuardedTensor& tensor : host) {
      memory.push_back(std::make_unique<DeviceMemory>(tensor.memory));
      bases.push_back(memory.back()->data());
    }
    args = c.args(host, bases, kGpu);
  }
  /// Values of another case of the same shapes and types.
  void set(const Case& c) {
    const std::vector<GuardedTensor> values = c.tensors();
    for (std::size_t i = 0; i < memory.size(); ++i) {
      ASSERT_EQ(values[i].memory.size(), host[i].memory.size());
      check(cudaMemcpy(memory[i]->data(), values[i].memory.data(), values[i].memory.size(),
                       cudaMemcpyHostToDevice));
    }
    check(cudaDeviceSynchronize());
  }
  [[nodiscard]] std::vector<std::vector<std::uint8_t>> bytes() const {
    auto bytes = bytes_of(host);
    check(cudaDeviceSynchronize());
    for (std::size_t i = 0; i < memory.size(); ++i) {
      check(
          cudaMemcpy(bytes[i].data(), memory[i]->data(), bytes[i].size(), cudaMemcpyDeviceToHost));
    }
    return bytes;
  }
};

class Preparation : public GpuTest {
 protected:
  template <typename Case>
  void expect_same_as_cpu(const Case& c, std::uint32_t seed) {
    OnDevice<Case> device(c);
    expect_ok(test::prepare(device.args, stream_));
    ASSERT_TRUE(device.bytes() == on_cpu(c)) << "seed " << seed;
  }

  /// Captures the first case and replays it with the values of the others.
  template <typename Case>
  void expect_replays(const std::vector<Case>& cases) {
    OnDevice<Case> device(cases[0]);
    auto empty = device.args;  // loads the kernel
    make_empty(empty);
    expect_ok(test::prepare(empty, stream_));
    const Replayable graph(stream_, [&] { return test::prepare(device.args, stream_); });
    EXPECT_EQ(graph.nodes(), 1u);
    for (const Case& c : cases) {
      device.set(c);
      graph.replay();
      wait();
      EXPECT_TRUE(device.bytes() == on_cpu(c));
    }
  }
  static void make_empty(BlockSnapshotsArgs& args) {
    args.tokens = 0;
    args.query_start_loc.shape[0] = 1;
    args.num_computed_tokens.shape[0] = args.block_slots.shape[0] = args.snapshots.shape[0] = 0;
  }
  static void make_empty(TreeParentsArgs& args) {
    args.first_child.shape[0] = args.next_sibling.shape[0] = args.parents.shape[0] = 0;
  }
};

TEST_F(Preparation, ListsAreThoseOfTheCpu) {
  for (std::uint32_t seed = 0; seed < 600; ++seed) {
    expect_same_as_cpu(SnapshotCase(seed), seed);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Preparation, ListsOfDecreasingBoundsAreThoseOfTheCpu) {
  test::RandomValues random(5);
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SnapshotCase c(seed);
    for (std::int64_t& bound : c.bounds) {
      bound = random.chance(0.8) ? random.between(0, c.tokens) : random.bad_index(c.bounds_dtype);
    }
    expect_same_as_cpu(c, seed);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Preparation, ParentsAreThoseOfTheCpu) {
  for (std::uint32_t seed = 0; seed < 600; ++seed) {
    expect_same_as_cpu(TreeCase(seed), seed);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Preparation, ManySequencesTakeManyBlocks) {
  SnapshotCase lists;
  lists.block_size = 4;
  lists.blocks = 8;
  lists.bounds = {0};
  for (std::int64_t s = 0; s < 1000; ++s) {
    lists.bounds.push_back(lists.bounds.back() + s % 13);
    lists.computed.push_back(s % 17);
    for (std::int64_t block = 0; block < 8; ++block) lists.slots.push_back(s * 8 + block);
  }
  lists.tokens = lists.bounds.back();
  expect_same_as_cpu(lists, 0);
  TreeCase trees;
  trees.tokens = 7;
  for (std::int64_t s = 0; s <= 1000; ++s) trees.bounds.push_back(s * 7);
  for (std::int64_t s = 0; s < 1000; ++s) {
    trees.first_child.insert(trees.first_child.end(), {1, 3, 5, -1, -1, -1, s % 9 - 1});
    trees.next_sibling.insert(trees.next_sibling.end(), {-1, 2, -1, 4, -1, 6, -1});
  }
  expect_same_as_cpu(trees, 0);
}

TEST_F(Preparation, ReplayedGraphsServeOtherValues) {
  std::vector<SnapshotCase> lists(3);
  for (std::size_t i = 0; i < lists.size(); ++i) {
    const auto shift = static_cast<std::int64_t>(i);
    lists[i].block_size = 4;
    lists[i].blocks = 3;
    lists[i].tokens = 20;
    lists[i].bounds = {0, 5 + shift, 5 + 3 * shift, 20 - shift};
    lists[i].computed = {shift, 3 - shift, 2 * shift};
    lists[i].slots = {1, 2, 3, 4, 5, 6, 7 + shift, 8, 9};
  }
  expect_replays(lists);
  std::vector<TreeCase> trees(3);
  for (std::size_t i = 0; i < trees.size(); ++i) {
    trees[i].tokens = 4;
    trees[i].bounds = {0, 4, 8};
    trees[i].first_child = {1, 2, -1, -1, 2, 1, 3, -1};
    trees[i].next_sibling = {-1, 3, -1, -1, -1, static_cast<std::int64_t>(i), -1, -1};
    trees[i].first_child[0] = 1 + static_cast<std::int64_t>(i);
  }
  expect_replays(trees);
}

TEST_F(Preparation, ReturnsWhileAKernelBeforeItIsStillRunning) {
  const SnapshotCase list(11);
  const TreeCase tree(12);
  OnDevice<SnapshotCase> lists(list);
  OnDevice<TreeCase> trees(tree);
  expect_ok(test::prepare(lists.args, stream_));  // loads the kernels
  expect_ok(test::prepare(trees.args, stream_));
  wait();
  lists.set(list);
  trees.set(tree);
  int* flag = nullptr;
  check(cudaMallocHost(&flag, sizeof *flag));
  *flag = 0;
  wait_for_flag<<<1, 1, 0, stream_>>>(flag);
  expect_ok(test::prepare(lists.args, stream_));
  expect_ok(test::prepare(trees.args, stream_));
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  *static_cast<volatile int*>(flag) = 1;
  wait();
  EXPECT_TRUE(lists.bytes() == on_cpu(list));
  EXPECT_TRUE(trees.bytes() == on_cpu(tree));
  check(cudaFreeHost(flag));
}

TEST_F(Preparation, RefusesOtherDevicesAndOddAddresses) {
  const auto refusal = [&](auto args, auto&& change) {
    change(args);
    return test::prepare(args, stream_).message();
  };
  const auto odd = [](TensorRef& tensor) { tensor.data = static_cast<char*>(tensor.data) + 1; };
  const std::string text = ": address is not a multiple of the size of its elements";
  SnapshotCase list;
  list.bounds = {0, 4};
  list.tokens = 4;
  list.blocks = 4;
  list.computed = {0};
  list.slots = {0, 1, 2, 3};
  const OnDevice<SnapshotCase> lists(list);
  using Lists = BlockSnapshotsArgs;
  EXPECT_EQ(refusal(lists.args,
                    [](Lists& a) {
                      for (TensorRef* tensor : {&a.query_start_loc, &a.num_computed_tokens,
                                                &a.block_slots, &a.snapshots}) {
                        tensor->device.index = 1;
                      }
                    }),
            "device: query_start_loc is on cuda:1, but the current device is cuda:0");
  EXPECT_EQ(refusal(lists.args, [&](Lists& a) { odd(a.query_start_loc); }),
            "query_start_loc" + text);
  EXPECT_EQ(refusal(lists.args, [&](Lists& a) { odd(a.num_computed_tokens); }),
            "num_computed_tokens" + text);
  EXPECT_EQ(refusal(lists.args, [&](Lists& a) { odd(a.block_slots); }), "block_slots" + text);
  EXPECT_EQ(refusal(lists.args, [&](Lists& a) { odd(a.snapshots); }), "snapshots" + text);

  TreeCase tree;
  tree.ragged = true;
  tree.tokens = 3;
  tree.bounds = {0, 3};
  tree.first_child = {1, 2, -1};
  tree.next_sibling = {-1, -1, -1};
  const OnDevice<TreeCase> trees(tree);
  using Trees = TreeParentsArgs;
  EXPECT_EQ(refusal(trees.args, [&](Trees& a) { odd(a.first_child); }), "first_child" + text);
  EXPECT_EQ(refusal(trees.args, [&](Trees& a) { odd(a.next_sibling); }), "next_sibling" + text);
  EXPECT_EQ(refusal(trees.args, [&](Trees& a) { odd(*a.query_start_loc); }),
            "query_start_loc" + text);
  EXPECT_EQ(refusal(trees.args, [&](Trees& a) { odd(a.parents); }), "parents" + text);
}

}  // namespace
}  // namespace shortconv::gpu_tests
