// Index preparation: values by hand, random calls against the definition, and every refusal by its
// message. Memory around the tensors and all inputs are compared as well.
#include "shortconv/prepare.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "../common/prepare_case.hpp"

namespace shortconv {
namespace {

using test::SnapshotCase;
using test::TreeCase;

std::vector<void*> bases_of(std::vector<GuardedTensor>& tensors) {
  std::vector<void*> bases;
  for (GuardedTensor& tensor : tensors) bases.push_back(tensor.memory.data());
  return bases;
}

class Preparation : public testing::TestWithParam<BackendId> {
 protected:
  template <typename Case>
  static void check(const Case& c, const std::string& what) {
    std::vector<GuardedTensor> tensors = c.tensors(), expected = tensors;
    c.expect(expected);
    auto args = c.args(tensors, bases_of(tensors));
    args.backend = GetParam();
    const Status status = test::prepare(args);
    ASSERT_TRUE(status.ok()) << status.message() << ", " << what;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      ASSERT_TRUE(tensors[i].memory == expected[i].memory) << "tensor " << i << ", " << what;
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Preparation,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// Blocks of 4: the first sequence goes from 6 tokens to 13, the second from 0 to 3, the third from
// 4 to 8. One slot is none.
TEST_P(Preparation, BoundariesOfABlockTableByHand) {
  std::vector<std::int32_t> bounds = {0, 7, 10, 14}, computed = {6, 0, 4};
  std::vector<std::int64_t> slots = {10, 11, 12, 13, 20, 21, 22, 23, 30, -1, 32, 33};
  std::vector<std::int32_t> list(7 * 3, 99);
  BlockSnapshotsArgs args;
  args.query_start_loc = TensorRef::contiguous(bounds.data(), DType::kI32, {4});
  args.num_computed_tokens = TensorRef::contiguous(computed.data(), DType::kI32, {3});
  args.block_slots = TensorRef::contiguous(slots.data(), DType::kI64, {3, 4});
  args.snapshots = TensorRef::contiguous(list.data(), DType::kI32, {7, 3});
  args.tokens = 14;
  args.block_size = 4;
  args.backend = GetParam();
  ASSERT_TRUE(block_snapshots(args).ok());
  EXPECT_EQ(list, (std::vector<std::int32_t>{0,  2,  11, 0,  6,  12, -1, 0,  -1, -1, 0,
                                             -1, -1, 0,  -1, -1, 0,  -1, -1, 0,  -1}));
  slots[9] = 31;
  ASSERT_TRUE(block_snapshots(args).ok());
  EXPECT_EQ((std::vector<std::int32_t>{list.begin() + 12, list.begin() + 15}),
            (std::vector<std::int32_t>{2, 4, 31}));
}

TEST_P(Preparation, RandomListsAreThoseOfTheDefinition) {
  std::size_t found = 0;
  for (std::uint32_t seed = 0; seed < 4000; ++seed) {
    const SnapshotCase c(seed);
    found += c.boundaries().size();
    check(c, "seed " + std::to_string(seed));
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(found, 4000u) << "the cases are about nothing";
}

// Every length, start and block against each other: no row is missing, none is given twice.
TEST_P(Preparation, EveryBoundaryHasARowOfItsOwn) {
  for (std::int64_t block = 1; block <= 5; ++block) {
    for (std::int64_t computed = 0; computed <= block; ++computed) {
      for (std::int64_t first = 0; first <= 2 * block; ++first) {
        for (std::int64_t second = 0; second <= 2 * block; ++second) {
          SnapshotCase c;
          c.block_size = block;
          c.blocks = 4;
          c.bounds = {0, first, first + second};
          c.tokens = first + second;
          c.computed = {computed, block - computed};
          c.slots = {0, 1, 2, 3, 4, 5, 6, 7};
          check(c, "blocks of " + std::to_string(block));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// A second block that no number could reach: sums and products that leave 64 bits would find it.
TEST_P(Preparation, BlocksOfAnySizeAndNumbersOfAnySize) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t block : {kMost, kMost - 1, kMost / 2 + 1, std::int64_t{1}}) {
    for (const std::int64_t computed : {block - 1, kMost - 1, kMost}) {
      SnapshotCase c;
      c.computed_dtype = DType::kI64;
      c.bounds = {0, 3};
      c.tokens = 3;
      c.block_size = block;
      c.blocks = 6;
      c.spare_rows = 8;
      c.computed = {computed};
      c.slots = {0, 1, 2, 3, 4, 5};
      check(c, "blocks of " + std::to_string(block) + ", computed " + std::to_string(computed));
    }
  }
}

// What may be missing is not said; that nothing is invented, doubled or written elsewhere is.
TEST_P(Preparation, DecreasingBoundsGiveTrueBoundariesOrNone) {
  test::RandomValues random(5);
  for (std::uint32_t seed = 0; seed < 2000; ++seed) {
    SnapshotCase c(seed);
    for (std::int64_t& bound : c.bounds) {
      bound = random.chance(0.8) ? random.between(0, c.tokens) : random.bad_index(c.bounds_dtype);
    }
    std::vector<GuardedTensor> tensors = c.tensors();
    BlockSnapshotsArgs args = c.args(tensors, bases_of(tensors));
    args.backend = GetParam();
    ASSERT_TRUE(block_snapshots(args).ok());
    std::set<std::vector<std::int64_t>> allowed;
    for (const auto& row : c.boundaries()) allowed.insert({row.sequence, row.token, row.slot});
    std::vector<GuardedTensor> expected = c.tensors();
    GuardedTensor& list = tensors.back();
    for (std::int64_t row = 0; row < c.rows(); ++row) {
      std::vector<std::int64_t> said;
      for (std::int64_t field = 0; field < 3; ++field) {
        const std::uint8_t* at = list.element({row, field});
        std::int64_t value = 0;
        std::int32_t narrow = 0;
        std::memcpy(&value, at, c.list_dtype == DType::kI64 ? 8 : 0);
        std::memcpy(&narrow, at, 4);
        said.push_back(c.list_dtype == DType::kI64 ? value : narrow);
        expected.back().set({row, field}, said.back());
      }
      if (said == std::vector<std::int64_t>{-1, 0, -1}) continue;
      ASSERT_EQ(allowed.erase(said), 1u) << "seed " << seed << ", row " << row;
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      ASSERT_TRUE(tensors[i].memory == expected[i].memory) << "tensor " << i << ", seed " << seed;
    }
  }
}

// 0 has children 1 and 2, 1 has 3 and 4, 2 has 5; 6 is of nobody, and so is its child 7.
TEST_P(Preparation, ParentsOfATreeByHand) {
  TreeCase c;
  c.tokens = 8;
  c.bounds = {0, 8};
  c.first_child = {1, 3, 5, -1, -1, -1, 7, -1};
  c.next_sibling = {-1, 2, -1, 4, -1, -1, -1, -1};
  EXPECT_EQ(c.parents_of(0), (std::vector<std::int64_t>{-1, 0, 0, 1, 1, 2, -1, -1}));
  check(c, "by hand");
}

// Backwards, to itself, out of the sequence, twice, a sibling of the root.
TEST_P(Preparation, LinksThatMakeNoTreeLeadNowhere) {
  TreeCase c;
  c.tokens = 5;
  c.bounds = {0, 5, 10, 15, 20, 25, 30};
  c.first_child = {1, 2, 3, 0, -1, 1,  1, -1, -1, -1, 5, -1, -1, -1, -1,
                   1, 3, 3, 4, -1, -1, 2, -1, -1, -1, 1, -5, 7,  -1, -1};
  c.next_sibling = {-1, -1, -1, 4,  -1, -1, 0,  -1, -1, -1, -1, -1, -1, -1, -1,
                    -1, 2,  -1, -1, -1, 1,  -1, -1, -1, -1, -1, 2,  3,  99, -1};
  const std::vector<std::vector<std::int64_t>> parents = {
      {-1, 0, 1, 2, 2},   {-1, 0, -1, -1, -1},  {-1, -1, -1, -1, -1},
      {-1, 0, 0, -1, -1}, {-1, -1, -1, -1, -1}, {-1, 0, 0, 0, -1},
  };
  for (std::int64_t s = 0; s < 6; ++s) EXPECT_EQ(c.parents_of(s), parents[s]) << s;
  check(c, "by hand");
}

TEST_P(Preparation, RandomTreesAreThoseOfTheDefinition) {
  std::int64_t reached = 0, lost = 0;
  for (std::uint32_t seed = 0; seed < 4000; ++seed) {
    const TreeCase c(seed);
    check(c, "seed " + std::to_string(seed));
    if (HasFatalFailure()) return;
    for (std::int64_t s = 0; s < c.sequences(); ++s) {
      for (const std::int64_t parent : c.parents_of(s)) ++(parent < 0 ? lost : reached);
    }
  }
  EXPECT_GT(reached, 10000) << "the cases are about nothing";
  EXPECT_GT(lost, 10000);
}

TEST_P(Preparation, BadBoundsOfTreesStayInsideTheTensors) {
  test::RandomValues random(6);
  for (std::uint32_t seed = 0; seed < 2000; ++seed) {
    TreeCase c(seed);
    if (!c.ragged) continue;
    for (std::int64_t& bound : c.bounds) {
      bound = random.chance(0.8) ? random.between(0, c.tokens) : random.bad_index(c.bounds_dtype);
    }
    std::vector<GuardedTensor> tensors = c.tensors(), before = tensors;
    TreeParentsArgs args = c.args(tensors, bases_of(tensors));
    args.backend = GetParam();
    ASSERT_TRUE(tree_parents(args).ok());
    for (std::int64_t token = 0; token < c.tokens; ++token) {  // as it was, or anything
      std::memcpy(before.back().element({token}), tensors.back().element({token}),
                  static_cast<std::size_t>(element_bytes(c.parents_dtype)));
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      ASSERT_TRUE(tensors[i].memory == before[i].memory) << "tensor " << i << ", seed " << seed;
    }
  }
}

TEST_P(Preparation, NothingToDoIsNoError) {
  SnapshotCase none;
  none.bounds = {0};
  check(none, "no sequences, no rows");
  none.spare_rows = 5;
  check(none, "no sequences");
  SnapshotCase no_blocks;
  no_blocks.bounds = {0, 9};
  no_blocks.tokens = 9;
  no_blocks.computed = {0};
  check(no_blocks, "a table without blocks");
  TreeCase trees;
  for (const bool ragged : {false, true}) {
    trees.ragged = ragged;
    trees.bounds = {0};
    check(trees, "no trees");
    trees.bounds = {0, 0, 0};
    check(trees, "trees without tokens");
  }
}

// Applies `change` to the arguments of a valid call and expects `message` and untouched tensors.
template <typename Case, typename Change>
void expect_refusal_after(const Case& c, Change&& change, const std::string& message) {
  std::vector<GuardedTensor> tensors = c.tensors(), before = tensors;
  auto args = c.args(tensors, bases_of(tensors));
  ASSERT_TRUE(test::prepare(args).ok());
  tensors = before;
  args = c.args(tensors, bases_of(tensors));
  change(args);
  const Status status = test::prepare(args);
  ASSERT_FALSE(status.ok()) << "accepted, but expected: " << message;
  EXPECT_NE(status.message().find(message), std::string::npos)
      << "got: " << status.message() << "\nexpected part: " << message;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_TRUE(tensors[i].memory == before[i].memory) << "tensor " << i;
  }
}

template <typename Change>
void expect_list_refusal_after(Change&& change, const std::string& message) {
  SnapshotCase c;
  c.bounds = {0, 5, 9};
  c.tokens = 9;
  c.block_size = 2;
  c.blocks = 4;
  c.computed = {0, 1};
  c.slots = {0, 1, 2, 3, 4, 5, 6, 7};
  expect_refusal_after(c, change, message);
}

TEST(BlockSnapshotsRefusal, SizesAndNumbers) {
  using Args = BlockSnapshotsArgs;
  expect_list_refusal_after([](Args& a) { a.tokens = -1; }, "tokens: is -1; expected 0 to 2^62");
  expect_list_refusal_after([](Args& a) { a.tokens = INT64_MAX; }, "; expected 0 to 2^62");
  expect_list_refusal_after([](Args& a) { a.block_size = 0; },
                            "block_size: is 0; expected 1 or more");
  expect_list_refusal_after([](Args& a) { a.query_start_loc.shape[0] = 0; },
                            "query_start_loc: is empty; expected sequences + 1 entries");
  expect_list_refusal_after(
      [](Args& a) { a.num_computed_tokens.shape[0] = 3; },
      "num_computed_tokens: axis 0 ('sequences') is 3, but query_start_loc made 'sequences' = 2");
  expect_list_refusal_after([](Args& a) { a.block_slots.shape[0] = 1; },
                            "block_slots: axis 0 ('sequences') is 1, but query_start_loc made");
  expect_list_refusal_after([](Args& a) { a.block_slots.ndim = 1; },
                            "block_slots: expected 2 axes [sequences, blocks], got 1");
  expect_list_refusal_after([](Args& a) { a.snapshots.shape[1] = 4; },
                            "snapshots: axis 1 ('sequence, token, slot') is 4");
  expect_list_refusal_after([](Args& a) { a.snapshots.shape[0] = 5; },
                            "snapshots: has 5 rows, but 9 tokens in blocks of 2 and 2 sequences "
                            "need 6 (tokens / block_size + sequences)");
  expect_list_refusal_after(
      [](Args& a) {
        a.tokens = std::int64_t{1} << 31;
        a.block_size = a.tokens;
      },
      "snapshots: dtype i32 cannot hold numbers up to 2147483648; expected i64");
}

TEST(BlockSnapshotsRefusal, TypesMemoryAndDevices) {
  using Args = BlockSnapshotsArgs;
  expect_list_refusal_after([](Args& a) { a.num_computed_tokens.dtype = DType::kF32; },
                            "num_computed_tokens: dtype f32 is not supported (i32, i64)");
  expect_list_refusal_after([](Args& a) { a.block_slots.dtype = DType::kBool; },
                            "block_slots: dtype bool is not supported (i32, i64)");
  expect_list_refusal_after([](Args& a) { a.snapshots.data = nullptr; }, "snapshots: data is null");
  expect_list_refusal_after([](Args& a) { a.snapshots.strides[0] = 0; },
                            "snapshots: axis 0 has stride 0 but is written");
  expect_list_refusal_after([](Args& a) { a.snapshots.data = a.query_start_loc.data; },
                            "snapshots: overlaps query_start_loc");
  expect_list_refusal_after([](Args& a) { a.snapshots.data = a.num_computed_tokens.data; },
                            "snapshots: overlaps num_computed_tokens");
  expect_list_refusal_after([](Args& a) { a.snapshots.data = a.block_slots.data; },
                            "snapshots: overlaps block_slots");
  expect_list_refusal_after([](Args& a) { a.block_slots.device = {DeviceType::kCuda, 1}; },
                            "block_slots: is on device 2:1, but query_start_loc is on 1:0");
  expect_list_refusal_after([](Args& a) { a.backend = BackendId::kCuda; }, "backend: 'cuda'");
  expect_list_refusal_after([](Args& a) { a.backend = static_cast<BackendId>(77); },
                            "backend: value 77 is not known");
}

template <typename Change>
void expect_tree_refusal_after(bool ragged, Change&& change, const std::string& message) {
  TreeCase c;
  c.ragged = ragged;
  c.bounds = {0, 3, 6};
  c.tokens = ragged ? 6 : 3;
  c.first_child = {1, 2, -1, 1, 2, -1};
  c.next_sibling = {-1, -1, -1, -1, -1, -1};
  expect_refusal_after(c, change, message);
}

TEST(TreeParentsRefusal, SizesTypesMemoryAndDevices) {
  using Args = TreeParentsArgs;
  expect_tree_refusal_after(
      false, [](Args& a) { a.first_child.ndim = 1; },
      "first_child: expected 2 axes [sequences, tokens], got 1");
  expect_tree_refusal_after(
      true, [](Args& a) { a.first_child.ndim = 2; },
      "first_child: expected 1 axes [tokens], got 2");
  expect_tree_refusal_after(
      false, [](Args& a) { a.next_sibling.shape[1] = 2; },
      "next_sibling: axis 1 ('tokens') is 2, but first_child made");
  expect_tree_refusal_after(
      false, [](Args& a) { a.parents.shape[0] = 3; },
      "parents: axis 0 ('sequences') is 3, but first_child made");
  expect_tree_refusal_after(
      true, [](Args& a) { a.query_start_loc->shape[0] = 0; }, "query_start_loc: is empty");
  expect_tree_refusal_after(
      true, [](Args& a) { a.query_start_loc->dtype = DType::kF16; },
      "query_start_loc: dtype f16 is not supported (i32, i64)");
  expect_tree_refusal_after(
      false, [](Args& a) { a.parents.dtype = DType::kU8; },
      "parents: dtype u8 is not supported (i32, i64)");
  expect_tree_refusal_after(
      false, [](Args& a) { a.parents.strides[1] = 0; },
      "parents: axis 1 has stride 0 but is written");
  expect_tree_refusal_after(
      false, [](Args& a) { a.next_sibling.data = nullptr; }, "next_sibling: data is null");
  expect_tree_refusal_after(
      false, [](Args& a) { a.parents.data = a.first_child.data; }, "parents: overlaps first_child");
  expect_tree_refusal_after(
      false, [](Args& a) { a.parents.data = a.next_sibling.data; },
      "parents: overlaps next_sibling");
  expect_tree_refusal_after(
      true, [](Args& a) { a.parents.data = a.query_start_loc->data; },
      "parents: overlaps query_start_loc");
  expect_tree_refusal_after(
      false, [](Args& a) { a.parents.device = {DeviceType::kCuda, 0}; },
      "parents: is on device 2:0, but first_child is on 1:0");
  expect_tree_refusal_after(
      false, [](Args& a) { a.backend = BackendId::kCuda; }, "backend: 'cuda'");
  expect_tree_refusal_after(
      false,
      [](Args& a) {  // one sequence of nobody's tokens
        for (TensorRef* tensor : {&a.first_child, &a.next_sibling, &a.parents}) {
          tensor->shape[0] = 0;
          tensor->shape[1] = std::int64_t{1} << 31;
        }
      },
      "parents: dtype i32 cannot hold numbers up to 2147483648; expected i64");
}

}  // namespace
}  // namespace shortconv
