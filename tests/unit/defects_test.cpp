// Known defects of others on the host's backends, and those that take memory of the host: offsets
// of more than 32 bits, and tensors at the edge of what may be read.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>

#include "../common/defects_batch.hpp"
#include "../common/defects_drafts.hpp"
#include "../common/defects_state.hpp"
#include "../common/known_values.hpp"

namespace shortconv::test {
namespace {

// On one thread, unless the test says otherwise: a team costs more than most of these calls.
Machine host(std::string name, BackendId backend) {
  const auto choose = [backend](auto& options) {
    options.backend = backend;
    options.threads = std::max(options.threads, 1);
  };
  return {.name = std::move(name),
          .forward =
              [=](ForwardArgs args) {
                choose(args.options);
                return forward(args);
              },
          .commit =
              [=](CommitArgs args) {
                choose(args);
                return commit(args);
              }};
}
const auto kHosts =
    testing::Values(host("reference", BackendId::kReference), host("cpu", BackendId::kCpu));
constexpr auto kNameOf = [](const auto& info) { return info.param.name; };

INSTANTIATE_TEST_SUITE_P(Backends, Defects, kHosts, kNameOf);

/// Address space of which only the pages that are touched become memory.
class SparseMemory {
 public:
  explicit SparseMemory(std::int64_t elements)
      : bytes_(static_cast<std::size_t>(elements) * sizeof(float)),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    EXPECT_NE(data_, MAP_FAILED);
  }
  ~SparseMemory() { (void)munmap(data_, bytes_); }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  [[nodiscard]] float* data() const { return static_cast<float*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

class LargeDefects : public Defects {
 protected:
  static constexpr std::int64_t kFar = std::int64_t{1} << 30;   // five of them are beyond 2^32
  static constexpr std::int64_t kWide = std::int64_t{1} << 21;  // and 2049 of these
  static constexpr std::int64_t kManyChannels = 2051;

  /// The elements of `dense`, a distance apart along one axis and dense along the others.
  static TensorRef spread(const TensorRef& dense, int axis, std::int64_t distance,
                          const SparseMemory& memory) {
    TensorRef far = dense;
    far.strides[axis] = distance;
    const std::int64_t backwards = distance < 0 ? (1 - dense.shape[axis]) * distance : 0;
    far.data = memory.data() + backwards;
    return far;
  }
  template <typename Visit>
  static void for_each_index(const TensorRef& tensor, Visit&& visit) {
    std::int64_t count = 1;
    for (int axis = 0; axis < tensor.ndim; ++axis) count *= tensor.shape[axis];
    for (std::int64_t i = 0; i < count; ++i) {
      std::array<std::int64_t, kMaxDims> index{};
      std::int64_t rest = i;
      for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
        index[static_cast<std::size_t>(axis)] = rest % tensor.shape[axis];
        rest /= tensor.shape[axis];
      }
      visit(index);
    }
  }
  static float& element(const TensorRef& tensor, const std::array<std::int64_t, kMaxDims>& index) {
    std::int64_t offset = 0;
    for (int axis = 0; axis < tensor.ndim; ++axis) {
      offset += index[static_cast<std::size_t>(axis)] * tensor.strides[axis];
    }
    return static_cast<float*>(tensor.data)[offset];
  }
  static void copy(const TensorRef& from, const TensorRef& to) {
    for_each_index(from, [&](const auto& index) { element(to, index) = element(from, index); });
  }
  static void expect_equal(const TensorRef& got, const TensorRef& expected) {
    for_each_index(expected, [&](const auto& index) {
      ASSERT_EQ(element(got, index), element(expected, index))
          << index[0] << ", " << index[1] << ", " << index[2];
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, LargeDefects, kHosts, kNameOf);

// The offset of a token, or of a channel, was counted in 32 bits: from 2^31 elements on kernels
// faulted, or read and wrote rows of others (sglang 33665 and 29602, vllm 41617, causal-conv1d 114,
// fla 783, 803 and 1082).
TEST_P(LargeDefects, OffsetsOfTokensAndChannelsHave64Bits) {
  struct Spread {
    std::int64_t channels;
    int axis;
    std::int64_t distance;
  };
  for (const auto& [channels, axis, distance] : {Spread{7, 0, kFar},
                                                 {7, 0, -kFar},
                                                 {7, 1, kFar},
                                                 {7, 1, -kFar},
                                                 {kManyChannels, 1, kWide}}) {
    Call call = make({0, 4, 7}, {.channels = channels});
    call.flags = {1, 0};
    Call dense = call;
    run(dense);
    const SparseMemory x(8 * kFar), out(8 * kFar);
    ForwardArgs args = call.fill();
    if (channels == kManyChannels) args.x.strides[0] = args.out.strides[0] = 1;
    const TensorRef near_x = dense.args.x;
    args.x = spread(args.x, axis, distance, x);
    args.out = spread(args.out, axis, distance, out);
    copy(near_x, args.x);
    run(args);
    expect_equal(args.out, dense.args.out);
    ASSERT_TRUE(call.state == dense.state);
  }
}

// The same for slots of a large pool, or of pages that lie far apart (vllm 20838 and 20938).
TEST_P(LargeDefects, OffsetsOfSlotsHave64Bits) {
  for (const int axis : {0, 1, 2, 3}) {  // 3: of many channels
    for (const bool one_token : {false, true}) {
      const std::int64_t channels = axis == 3 ? kManyChannels : 6;
      Call call = make({0, 1, 2}, {.channels = channels, .width = 6, .slots = 6});
      call.read_slots = {5, 2};
      call.write_slots = {4, 3};
      call.flags = {1, 1};
      std::vector<std::int32_t> snapshots = {0, 0, 1};
      take(call, snapshots);
      Call dense = call;
      one_token ? decode(dense) : run(dense);
      const SparseMemory pool(8 * kFar);
      ForwardArgs args = call.fill();
      const TensorRef near_state = *args.pool.state;
      args.pool.state =
          axis == 3 ? spread(near_state, 2, kWide, pool) : spread(near_state, axis, kFar, pool);
      if (axis == 3) {  // slots and columns within the distance of two channels
        args.pool.state->strides[0] = 5;
        args.pool.state->strides[1] = 1;
      }
      copy(near_state, *args.pool.state);
      if (one_token) {
        args.op = Op::kDecode;
        args.sequences.query_start_loc.reset();
        args.sequences.has_initial_state.reset();
      }
      run(args);
      ASSERT_TRUE(call.out == dense.out);
      expect_equal(*args.pool.state, *dense.args.pool.state);
    }
  }
}

// The same for captured windows and for the layers of a commit.
TEST_P(LargeDefects, OffsetsOfIntermediateStatesAndLayersHave64Bits) {
  for (const int axis : {0, 1, 2}) {
    Drafts drafts(make({0, 6, 12}, {.channels = 6}), 2);
    drafts.call.read_slots = {3, 0};
    Drafts dense = drafts;
    const ForwardArgs near_args = dense.verify();
    run(near_args);
    const SparseMemory windows(6 * kFar);
    ForwardArgs args = drafts.verify();
    args.drafts.intermediate_states = spread(*args.drafts.intermediate_states, axis, kFar, windows);
    run(args);
    expect_equal(*args.drafts.intermediate_states, *near_args.drafts.intermediate_states);
  }
  std::vector<float> windows(5 * 3 * 6), state(windows.size());
  std::iota(windows.begin(), windows.end(), 1.0f);
  std::vector<std::int32_t> accepted = {0};
  CommitArgs args;
  args.width = 4;
  args.rows_per_token = 3;
  args.intermediate_states = TensorRef::contiguous(windows.data(), DType::kF32, {5, 1, 3, 6});
  args.state = TensorRef::contiguous(state.data(), DType::kF32, {5, 1, 3, 6});
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {1});
  const TensorRef near_windows = args.intermediate_states;
  const SparseMemory far_windows(5 * kFar), far_state(5 * kFar);
  args.intermediate_states = spread(args.intermediate_states, 0, kFar, far_windows);
  args.state = spread(args.state, 0, kFar, far_state);
  copy(near_windows, args.intermediate_states);
  const Status status = GetParam().commit(args);
  ASSERT_TRUE(status.ok()) << status.message();
  expect_equal(args.state, near_windows);
}

/// Memory whose last byte is the last one that may be touched, or whose first one is the first.
class EdgeMemory {
 public:
  EdgeMemory(const void* from, std::size_t bytes, bool at_end) : page_(page_bytes()) {
    pages_ = (bytes + page_ - 1) / page_ * page_ + 2 * page_;
    first_ = static_cast<char*>(
        mmap(nullptr, pages_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    EXPECT_NE(static_cast<void*>(first_), MAP_FAILED);
    EXPECT_EQ(mprotect(first_ + page_, pages_ - 2 * page_, PROT_READ | PROT_WRITE), 0);
    data_ = at_end ? first_ + pages_ - page_ - bytes : first_ + page_;
    std::memcpy(data_, from, bytes);
  }
  ~EdgeMemory() { (void)munmap(first_, pages_); }
  EdgeMemory(const EdgeMemory&) = delete;
  EdgeMemory& operator=(const EdgeMemory&) = delete;
  [[nodiscard]] void* data() const { return data_; }

 private:
  static std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }
  std::size_t page_, pages_ = 0;
  char* first_ = nullptr;
  char* data_ = nullptr;
};

// The last tile read indices, and rows, behind the end of a tensor (causal-conv1d 67, fla 615 and
// 774). One byte too far ends this test.
TEST_P(Defects, NothingOutsideOfTheTensorsIsTouched) {
  for (const std::int64_t channels : {1, 7, 16, 33}) {
    for (const bool at_end : {false, true}) {
      for (const Op op : {Op::kForward, Op::kDecode, Op::kVerify}) {
        Call call = op == Op::kDecode ? make({0, 1, 2, 3}, {.channels = channels})
                                      : make({0, 2, 2, 19}, {.channels = channels});
        call.slots = 3;
        call.resize(call.tokens);
        call.bias.assign(static_cast<std::size_t>(channels), 0.0f);
        call.read_slots = {2, 0, 1};
        call.flags = {1, 1, 1};
        Call old = call;
        ForwardArgs args = call.fill();
        args.op = op;
        if (op == Op::kDecode) args.sequences.query_start_loc.reset();
        std::vector<std::unique_ptr<EdgeMemory>> edges;
        const auto move = [&](TensorRef& tensor) {
          std::int64_t count = element_bytes(tensor.dtype);
          for (int axis = 0; axis < tensor.ndim; ++axis) count *= tensor.shape[axis];
          edges.push_back(
              std::make_unique<EdgeMemory>(tensor.data, static_cast<std::size_t>(count), at_end));
          tensor.data = edges.back()->data();
        };
        for (TensorRef* tensor : {&args.x, &args.out, &args.weight, &*args.bias, &*args.pool.state,
                                  &*args.pool.read_slots, &*args.sequences.has_initial_state}) {
          move(*tensor);
        }
        if (args.sequences.query_start_loc) move(*args.sequences.query_start_loc);
        run(args);
        std::memcpy(call.out.data(), args.out.data, call.out.size() * sizeof(float));
        expect_rows(call, {.call = old, .begin = 2, .slot = 1}, op == Op::kDecode ? 1 : 17);
      }
    }
  }
}

}  // namespace
}  // namespace shortconv::test
