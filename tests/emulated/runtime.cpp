// The CUDA runtime of the emulated device: memory is the host's, an entry point is the address of a
// function, a launch is over when it returns, and blocks run one after the other in any order.
#include "runtime.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "block.hpp"
#include "core/capability.hpp"
#include "cuda/call.hpp"
#include "cuda/commit.hpp"
#include "cuda/grid.hpp"
#include "cuda/kernels.hpp"
#include "cuda/prepare.hpp"
#include "cuda/select.hpp"
#include "cuda/tuning.hpp"
#include "device.hpp"
#include "op/prepare.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::emulated {
namespace {

using cuda::Entry;
using cuda::Kernel;
using cuda::Kernels;
using Invoke = void (*)(Entry entry, void** arguments);

template <typename... Parameters>
void invoke(Entry entry, void** arguments) {
  const auto kernel = reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(entry));
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    kernel(*static_cast<Parameters*>(arguments[i])...);
  }(std::index_sequence_for<Parameters...>{});
}
constexpr Invoke kInvokeOnCall = invoke<cuda::Call>;
constexpr Invoke kInvokeOnProblem = invoke<Problem, Addresses, cuda::Grid>;

struct Field {
  std::string_view name;
  Entry Kernels::* entry;
  Kernel kernel;
};
constexpr Field kFields[] = {
    {"tiles", &Kernels::tiles, Kernel::kTiles},
    {"full_tiles", &Kernels::full_tiles, Kernel::kTiles},
    {"short_sequences", &Kernels::short_sequences, Kernel::kShortSequences},
    {"small_tiles", &Kernels::small_tiles, Kernel::kSmallTiles},
    {"numbered_tiles", &Kernels::numbered_tiles, Kernel::kNumberedTiles},
    {"decode", &Kernels::decode, Kernel::kDecode},
    {"full_decode", &Kernels::full_decode, Kernel::kDecode},
    {"ring_decode", &Kernels::ring_decode, Kernel::kDecode},
    {"small_decode", &Kernels::small_decode, Kernel::kSmallDecode},
    {"older_decode", &Kernels::older_decode, Kernel::kSmallDecode},
    {"drafts", &Kernels::drafts, Kernel::kDrafts},
    {"full_drafts", &Kernels::full_drafts, Kernel::kDrafts},
    {"trees", &Kernels::trees, Kernel::kTrees},
    {"full_trees", &Kernels::full_trees, Kernel::kTrees},
    {"gated_tiles", &Kernels::gated_tiles, Kernel::kTiles},
    {"gated_decode", &Kernels::gated_decode, Kernel::kSmallDecode},
    {"gated_drafts", &Kernels::gated_drafts, Kernel::kDrafts},
    {"f32_state_tiles", &Kernels::f32_state_tiles, Kernel::kTiles},
    {"f32_state_decode", &Kernels::f32_state_decode, Kernel::kSmallDecode},
    {"columns", &Kernels::columns, Kernel::kColumns},
    {"chunks", &Kernels::chunks, Kernel::kChunks},
};
static_assert(std::size(kFields) == sizeof(Kernels) / sizeof(Entry), "each member of Kernels");

/// Every entry point of the backend.
class Entries {
 public:
  struct Target {
    Invoke invoke;
    std::size_t use;
  };

  Entries() {
    add_instances("f32", cuda::kernels_f32);
    add_instances("f16", cuda::kernels_f16);
    add_instances("bf16", cuda::kernels_bf16);
    add("general", "all", cuda::general_kernel(), kInvokeOnProblem);
    add("replace_histories", "all", cuda::replace_histories_kernel(), kInvokeOnProblem);
    add("clear_report", "all", cuda::clear_report_kernel(), invoke<Problem, Addresses>);
    add("count_violations", "all", cuda::count_violations_kernel(), invoke<Problem, Addresses>);
    for (const std::int64_t bytes : {2, 4, 16}) {
      add("commit", std::to_string(bytes) + " bytes", cuda::commit_kernel(bytes),
          invoke<CommitProblem, CommitAddresses, cuda::CommitGrid>);
    }
    add("block_snapshots", "all", cuda::block_snapshots_kernel(), invoke<BlockSnapshots>);
    add("tree_parents", "all", cuda::tree_parents_kernel(), invoke<TreeParents>);
  }

  [[nodiscard]] const Target* find(Entry entry) const {
    const auto found = targets_.find(entry);
    return found == targets_.end() ? nullptr : &found->second;
  }

  std::vector<KernelUse> uses;

 private:
  void add_instances(std::string_view type,
                     const Kernels& (*kernels)(int, Activation, bool f32_weights)) {
    for (const Field& field : kFields) {
      const Invoke invoke = takes_call(field.kernel) ? kInvokeOnCall : kInvokeOnProblem;
      for (const int width : kWidths.all) {
        for (const auto& activation : kActivations) {
          for (const bool f32_weights : {false, true}) {
            add(field.name, type, kernels(width, activation.value, f32_weights).*field.entry,
                invoke);
          }
        }
      }
    }
  }
  void add(std::string_view name, std::string_view instances, Entry entry, Invoke invoke) {
    // Two members may be one function: of fp32, 4 channels of decode are 16 bytes.
    if (entry == nullptr || targets_.contains(entry)) return;
    if (uses.empty() || uses.back().name != name || uses.back().instances != instances) {
      uses.push_back({std::string(name), std::string(instances)});
    }
    targets_.emplace(entry, Target{invoke, uses.size() - 1});
  }

  std::map<Entry, Target> targets_;
};

Entries& entries() {
  static Entries entries;
  return entries;
}

std::string last_failure;
std::mt19937 order;

cudaError_t launch(const cudaLaunchConfig_t& config, Entry entry, void** arguments) {
  const Entries::Target* target = entries().find(entry);
  if (target == nullptr) return cudaErrorInvalidDeviceFunction;
  KernelUse& use = entries().uses[target->use];
  ++use.launches;
  std::vector<unsigned> blocks(std::size_t{config.gridDim.x} * config.gridDim.y);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), order);
  blockDim = {config.blockDim.x};
  gridDim = {config.gridDim.x, config.gridDim.y};
  for (const unsigned block : blocks) {
    blockIdx = {block % config.gridDim.x, block / config.gridDim.x};
    waited = config.numAttrs == 0;
    auto failure = run_block(static_cast<int>(config.blockDim.x), order,
                             [&] { target->invoke(entry, arguments); });
    if (!failure && !waited) {
      failure = "a block that may start while the kernel before is ending does not wait for it";
    }
    if (!failure) continue;
    last_failure = use.name + ", " + use.instances + ": " + *failure;
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

void move(TensorRef& tensor) { tensor.device = kDevice; }
void move(std::optional<TensorRef>& tensor) {
  if (tensor) move(*tensor);
}
template <typename... Tensors>
void move_there(Tensors&... tensors) {
  (move(tensors), ...);
}

}  // namespace

std::vector<KernelUse> kernel_uses() { return entries().uses; }

void begin(std::uint64_t number) {
  order.seed(static_cast<std::uint32_t>(number));
  // Half of the calls are taken for small ones, a quarter for some waves of blocks, a quarter for
  // large ones.
  const auto drawn = order() % 4;
  const bool small = drawn % 2 == 1;
  cuda::kSmallTilesUpTo = small ? cuda::kMeasuredSmallTilesUpTo : 0;
  cuda::kSmallDecode = small ? cuda::kMeasuredSmallDecode : 0;
  cuda::kGeneralBlocks = small ? cuda::kMeasuredGeneralBlocks : 0;
  cuda::kHeadsBeginUpTo = drawn == 0 ? 0 : cuda::kMeasuredHeadsBeginUpTo;
}

ForwardArgs on_device(ForwardArgs a) {
  move_there(a.x, a.out, a.weight, a.bias, a.state, a.input_gate, a.output_gate, a.read_slots,
             a.write_slots, a.read_offsets, a.query_start_loc, a.has_initial_state,
             a.block_sequence, a.block_offset, a.ring_positions, a.snapshots, a.parents, a.windows,
             a.window_slots, a.violations, a.seq_idx);
  return a;
}

CommitArgs on_device(CommitArgs a) {
  move_there(a.windows, a.state, a.accepted, a.slots, a.second_slots, a.query_start_loc);
  return a;
}

}  // namespace shortconv::emulated

namespace emulated = shortconv::emulated;

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "emulated");
  properties->major = properties->minor = 0;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? emulated::last_failure.c_str()
                                         : "not an entry point that the emulated device knows";
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* entry) {
  attributes->ptxVersion = 90;
  return emulated::entries().find(entry) == nullptr ? cudaErrorInvalidDeviceFunction : cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* entry,
                                void** arguments) {
  return emulated::launch(*config, entry, arguments);
}
