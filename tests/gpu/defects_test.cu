// Known defects of others on a GPU: the tests of the host, whose tensors are copied there and back.
#include <algorithm>

#include "../common/defects_batch.hpp"
#include "../common/defects_drafts.hpp"
#include "../common/defects_state.hpp"
#include "../common/known_values.hpp"
#include "fixture.cuh"
#include "shortconv/argument_table.hpp"

namespace shortconv::test {
namespace {

using gpu_tests::check;

/// The memory that tensors of the host reach, on the device: each byte at an address of the same
/// alignment, and tensors that share memory still do.
class Mirror {
 public:
  void add(const TensorRef& tensor) {
    const Block block = reach_of(tensor);
    if (block.begin < block.end) blocks_.push_back(block);
  }
  void copy_there() {
    std::sort(blocks_.begin(), blocks_.end(),
              [](const Block& a, const Block& b) { return a.begin < b.begin; });
    std::vector<Block> merged;
    for (const Block& block : blocks_) {
      if (!merged.empty() && block.begin < merged.back().end) {
        merged.back().end = std::max(merged.back().end, block.end);
      } else {
        merged.push_back(block);
      }
    }
    blocks_ = merged;
    for (Block& block : blocks_) {
      const std::size_t shift = reinterpret_cast<std::uintptr_t>(block.begin) % kAlignment;
      check(cudaMalloc(&block.memory, block.bytes() + kAlignment));
      block.there = static_cast<char*>(block.memory) + shift;
      check(cudaMemcpy(block.there, block.begin, block.bytes(), cudaMemcpyHostToDevice));
    }
  }
  void copy_back() {
    for (const Block& block : blocks_) {
      check(cudaMemcpy(block.begin, block.there, block.bytes(), cudaMemcpyDeviceToHost));
    }
  }
  void move(TensorRef& tensor) const {
    tensor.device = gpu_tests::kGpu;
    const Block reach = reach_of(tensor);
    if (reach.begin == reach.end) return;
    for (const Block& block : blocks_) {
      if (reach.begin < block.begin || reach.end > block.end) continue;
      tensor.data = block.there + (static_cast<char*>(tensor.data) - block.begin);
    }
  }
  Mirror() = default;
  ~Mirror() {
    for (const Block& block : blocks_) (void)cudaFree(block.memory);
  }
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

 private:
  static constexpr std::size_t kAlignment = 256;
  struct Block {
    char* begin;
    char* end;
    void* memory = nullptr;
    char* there = nullptr;
    [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(end - begin); }
  };
  static Block reach_of(const TensorRef& tensor) {
    std::int64_t low = 0, high = 1;
    for (int axis = 0; axis < tensor.ndim; ++axis) {
      if (tensor.shape[axis] == 0) return {nullptr, nullptr};
      const std::int64_t reach = (tensor.shape[axis] - 1) * tensor.strides[axis];
      (reach < 0 ? low : high) += reach;
    }
    char* data = static_cast<char*>(tensor.data);
    const std::int64_t bytes = element_bytes(tensor.dtype);
    return {data + low * bytes, data + high * bytes};
  }
  std::vector<Block> blocks_;
};

/// Calls visit(tensor) for each present one.
template <typename Visit>
auto visit_present(const Visit& visit) {
  return [&visit](const Argument&, auto& tensor) {
    if constexpr (std::is_same_v<decltype(tensor), TensorRef&>) {
      visit(tensor);
    } else if (tensor) {
      visit(*tensor);
    }
  };
}
template <typename Visit>
void for_each_tensor(ForwardArgs& args, const Visit& visit) {
  visit_forward_tensors(visit_present(visit), args);
}
template <typename Visit>
void for_each_tensor(CommitArgs& args, const Visit& visit) {
  visit_commit_tensors(visit_present(visit), args);
}

Status launch(const ForwardArgs& args) { return forward(args); }
Status launch(const CommitArgs& args) { return commit(args); }

template <typename Args>
Status on_device(Args args) {
  Mirror mirror;
  for_each_tensor(args, [&](TensorRef& tensor) { mirror.add(tensor); });
  mirror.copy_there();
  for_each_tensor(args, [&](TensorRef& tensor) { mirror.move(tensor); });
  const Status status = launch(args);
  check(cudaDeviceSynchronize());
  mirror.copy_back();
  return status;
}

bool has_gpu() {
  int devices = 0;
  const bool found = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  if (!found) (void)cudaGetLastError();
  return found;
}

INSTANTIATE_TEST_SUITE_P(Gpu, Defects,
                         testing::Values(Machine{
                             .name = "cuda",
                             .forward = [](const ForwardArgs& args) { return on_device(args); },
                             .commit = [](const CommitArgs& args) { return on_device(args); },
                             .available = has_gpu()}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace shortconv::test
