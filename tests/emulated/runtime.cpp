// The CUDA runtime of the emulated device: device memory is host memory, a kernel is the address of
// a function, launches are synchronous, and blocks run one after the other in random order.
#include "runtime.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "block.hpp"
#include "common/random.hpp"
#include "core/capability.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/group_params.hpp"
#include "cuda/host/backward_groups.hpp"
#include "cuda/host/commit.hpp"
#include "cuda/host/kernels.hpp"
#include "cuda/host/policy.hpp"
#include "cuda/host/prepare.hpp"
#include "cuda/host/select.hpp"
#include "cuda/kernel_params.hpp"
#include "cuda/launch_params.hpp"
#include "cuda/tuning.hpp"
#include "device.hpp"
#include "op/prepare.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::emulated {
namespace {

using cuda::KernelFunction;
using Invoke = void (*)(KernelFunction function, void** arguments);

template <typename Parameters>
void invoke(KernelFunction function, void** arguments) {
  const auto kernel = reinterpret_cast<void (*)(Parameters)>(const_cast<void*>(function));
  kernel(*static_cast<Parameters*>(arguments[0]));
}

/// All kernels of the backend.
class Kernels {
 public:
  struct Target {
    Invoke invoke;
    std::size_t use;
  };

  Kernels() {
    add_instances("f32", cuda::kernels_f32);
    add_instances("f16", cuda::kernels_f16);
    add_instances("bf16", cuda::kernels_bf16);
    add_general();
    add("replace_histories", "all", cuda::replace_histories_kernel(), invoke<cuda::GeneralParams>);
    add("clear_report", "all", cuda::clear_report_kernel(), invoke<cuda::GeneralParams>);
    add("count_violations", "all", cuda::count_violations_kernel(), invoke<cuda::GeneralParams>);
    for (const std::int64_t bytes : {2, 4, 16}) {
      add("commit", std::to_string(bytes) + " bytes", cuda::commit_kernel(bytes),
          invoke<cuda::CommitKernelParams>);
    }
    add_backward("f32", cuda::backward_kernel_f32);
    add_backward("f16", cuda::backward_kernel_f16);
    add_backward("bf16", cuda::backward_kernel_bf16);
    add("backward_general", "all", cuda::backward_general_kernel(),
        invoke<cuda::BackwardGeneralParams>);
    add("finish_backward", "all", cuda::finish_backward_kernel(), invoke<cuda::BackwardSumParams>);
    add_group_gradients();
    for (const auto& [name, function] : {std::pair{"convolve_group", cuda::convolve_group_kernel()},
                                         {"copy_group", cuda::copy_group_kernel()}}) {
      add(name, "all", function, invoke<cuda::GroupKernelParams>);
    }
    add("normalize_groups", "all", cuda::normalize_groups_kernel(), invoke<cuda::NormKernelParams>);
    for (const cuda::GroupKernel kernel : cuda::kGroupKernels) add_groups(kernel);
    add("store_gates", "all", cuda::store_gates_kernel(), invoke<cuda::GateKernelParams>);
    add("l2_norm", "all", cuda::l2_norm_kernel(), invoke<L2NormCall>);
    add("delta_gates", "all", cuda::delta_gates_kernel(), invoke<GatesCall>);
    add("block_snapshots", "all", cuda::block_snapshots_kernel(), invoke<BlockSnapshots>);
    add("tree_parents", "all", cuda::tree_parents_kernel(), invoke<TreeParents>);
  }

  [[nodiscard]] const Target* find(KernelFunction function) const {
    const auto found = targets_.find(function);
    return found == targets_.end() ? nullptr : &found->second;
  }

  std::vector<KernelUse> uses;

 private:
  void add_instances(std::string_view type,
                     const cuda::KernelFunctions& (*kernels)(int, Activation, bool f32_weights)) {
    for (std::size_t row = 0; row < cuda::kKernelRows; ++row) {
      const cuda::Kernel kernel = cuda::kKernelTable[row].kernel;
      const std::string name = name_of(cuda::kKernelTable[row]);
      const Invoke invoke_row = cuda::takes_general_params(kernel) ? invoke<cuda::GeneralParams>
                                                                   : invoke<cuda::KernelParams>;
      for (const int width : kWidths.all) {
        for (const auto& activation : kActivations) {
          for (const bool f32_weights : {false, true}) {
            add(name, type, kernels(width, activation.value, f32_weights)[row], invoke_row);
          }
        }
      }
    }
  }
  void add_general() {
    const std::vector<int> compiled(kWidths.all.begin(), kWidths.all.end());
    // Problems that have instances of their own, for each width.
    const auto add_all = [&](std::string_view name, const auto& kernel,
                             std::vector<Problem> problems) {
      for (const auto& [widths, windows] :
           {std::pair{compiled, "compiled widths"}, {std::vector{kMaxWidth}, "any width"}}) {
        for (Problem& p : problems) {
          for (const int width : widths) {
            p.width = width;
            add(name, windows, kernel(p), invoke<cuda::GeneralParams>);
          }
        }
      }
    };
    const auto add_sized = [&](std::string_view name, const auto& kernel, Problem p) {
      p.state.present = true;
      std::vector<Problem> sizes;
      for (const auto& [x, state] : {std::pair{DType::kBF16, DType::kBF16},
                                     {DType::kBF16, DType::kF32},
                                     {DType::kF32, DType::kF32}}) {
        p.x.dtype = x;
        p.state.dtype = state;
        sizes.push_back(p);
      }
      add_all(name, kernel, sizes);
      p.state.dtype = DType::kF16;
      add(name, "any types", kernel(p), invoke<cuda::GeneralParams>);
    };
    Problem trees, long_sequence;
    trees.parents.present = true;
    add_all("general", cuda::general_kernel, {Problem{}});
    add_sized("general verify, chains", cuda::general_verify_kernel, {});
    add_sized("general verify, trees", cuda::general_verify_kernel, trees);
    add_sized("general decode", cuda::general_decode_kernel, {});
    long_sequence.sequences = 1;
    long_sequence.tokens = cuda::kMaxShortWholeTokens + 1;
    add_all("whole sequences", cuda::whole_sequences_kernel, {long_sequence});
    for (const int width : kWidths.all) {
      Problem p;
      p.width = width;
      add("whole short sequences", "compiled widths", cuda::whole_sequences_kernel(p),
          invoke<cuda::GeneralParams>);
    }
  }
  void add_groups(cuda::GroupKernel kernel) {
    const std::string name = fmt::format("{}, groups", name_of(kernel));
    for (const auto& [type, dtype] : {std::pair{"f16", DType::kF16}, {"bf16", DType::kBF16}}) {
      for (const int width : cuda::kGroupTileWidths.all) {
        for (const auto& activation : kActivations) {
          add(name, type, cuda::group_tiles_kernel(kernel, dtype, width, activation.value),
              invoke<cuda::GroupTileParams>);
        }
      }
    }
  }
  void add_backward(std::string_view type,
                    cuda::BackwardKernel (*kernel)(const cuda::BackwardFeatures&)) {
    cuda::BackwardFeatures features;
    const auto add_all = [&](std::string_view name) {
      for (features.width = 2; features.width <= cuda::kMaxBackwardWidth; ++features.width) {
        for (const auto& activation : kActivations) {
          features.activation = activation.value;
          for (const bool has_bias : {false, true}) {
            features.has_bias = has_bias;
            add(fmt::format("{}, width {}", name, features.width), type, kernel(features).function,
                invoke<cuda::BackwardKernelParams>);
          }
        }
      }
    };
    add_all("backward");
    features.fits_packed_strips = false;
    add_all("backward with states");
    features.has_epilogue = true;
    add_all("backward with epilogue and states");
    features.fits_packed_strips = true;
    add_all("backward with epilogue");
    features.has_epilogue = false;
    features.has_adjacent_channels = false;
    add_all("backward, any strides");
  }
  void add_group_gradients() {
    for (const auto& [type, dtype] :
         {std::pair{"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}}) {
      for (const bool has_norm : {false, true}) {
        cuda::BackwardFeatures features;
        for (features.width = 2; features.width <= cuda::kMaxGroupWidth; ++features.width) {
          for (const auto& activation : kActivations) {
            features.activation = activation.value;
            for (const bool has_bias : {false, true}) {
              features.has_bias = has_bias;
              add(has_norm ? "gradients of normalized groups" : "gradients of groups", type,
                  cuda::backward_group_kernel(dtype, features, has_norm).function,
                  invoke<cuda::BackwardKernelParams>);
            }
          }
        }
      }
    }
    add("gradients of copied groups", "all", cuda::copy_group_gradient_kernel(),
        invoke<cuda::CopyGradientParams>);
    add("gradients of weights of groups", "all", cuda::finish_grouped_backward_kernel(),
        invoke<cuda::BackwardSumParams>);
    add("gradients of gates and groups", "all", cuda::gate_gradients_kernel(),
        invoke<cuda::GateGradientParams>);
  }
  void add(std::string_view name, std::string_view instances, KernelFunction function,
           Invoke invoke) {
    // Two rows may have the same function: 4 fp32 channels of decode are 16 bytes.
    if (function == nullptr || targets_.contains(function)) return;
    if (uses.empty() || uses.back().name != name || uses.back().instances != instances) {
      uses.push_back({std::string(name), std::string(instances)});
    }
    targets_.emplace(function, Target{invoke, uses.size() - 1});
  }

  std::map<KernelFunction, Target> targets_;
};

Kernels& kernels() {
  static Kernels kernels;
  return kernels;
}

std::string last_failure;
tools::Random order(0);
cuda::TuningPolicy policy;  // of the next calls

cudaError_t launch(const cudaLaunchConfig_t& config, KernelFunction function, void** arguments) {
  const Kernels::Target* target = kernels().find(function);
  if (target == nullptr) return cudaErrorInvalidDeviceFunction;
  KernelUse& use = kernels().uses[target->use];
  ++use.launches;
  std::vector<unsigned> blocks(std::size_t{config.gridDim.x} * config.gridDim.y);
  std::iota(blocks.begin(), blocks.end(), 0u);
  order.shuffle(blocks);
  blockDim = {config.blockDim.x};
  gridDim = {config.gridDim.x, config.gridDim.y};
  for (const unsigned block : blocks) {
    blockIdx = {block % config.gridDim.x, block / config.gridDim.x};
    pdl_waited = config.numAttrs == 0;
    pdl_overlaps = false;
    auto failure = run_block(static_cast<int>(config.blockDim.x), order,
                             [&] { target->invoke(function, arguments); });
    if (!failure && !pdl_waited) {
      failure = "a block of a launch with PDL does not wait for the previous kernel";
    }
    if (!failure) continue;
    last_failure = use.name + ", " + use.instances + ": " + *failure;
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

constexpr auto kMove = [](const Argument&, auto& tensor) {
  if constexpr (std::is_same_v<decltype(tensor), TensorRef&>) {
    tensor.device = kDevice;
  } else if (tensor) {
    tensor->device = kDevice;
  }
};

}  // namespace

std::vector<KernelUse> kernel_uses() { return kernels().uses; }

void begin(std::uint64_t seed) {
  order = tools::Random(seed);
  // Half of the calls are treated as small, a quarter as some waves of blocks, a quarter as large.
  const std::int64_t drawn = order.between(0, 3);
  const bool small = drawn % 2 == 1;
  policy = cuda::kHopperPolicy;
  if (!small) {
    policy.small_tile_waves = policy.small_decode_elements = policy.general_blocks = 0;
    policy.decode_wave_percent = 0;
  }
  if (drawn == 0) policy.start_blocks_take_all_waves = 0;
  policy.group_rounds_waves = order.between(0, 1);
  if (order.between(0, 1) == 0) policy.short_sequence_warps = 0;
  if (order.between(0, 1) == 0) {
    policy.small_short_sequence_warps = policy.small_shortest_sequence_warps = 0;
  }
  policy.short_sequence_tokens = std::array{0, 8, 24, 1000}[order.between(0, 3)];
  policy.general_rows = std::array{2, 8, 16, 64}[order.between(0, 3)];
}

ForwardArgs on_device(ForwardArgs args) {
  visit_forward_tensors(kMove, args);
  return args;
}

CommitArgs on_device(CommitArgs args) {
  visit_commit_tensors(kMove, args);
  return args;
}

BackwardArgs on_device(BackwardArgs args) {
  visit_backward_tensors(kMove, args);
  return args;
}

GateArgs on_device(GateArgs args) {
  visit_gate_tensors(kMove, args);
  return args;
}

GateGradientArgs on_device(GateGradientArgs args) {
  visit_gate_gradient_tensors(kMove, args);
  return args;
}

}  // namespace shortconv::emulated

/// Replaces host/policy.cpp.
const shortconv::cuda::TuningPolicy& shortconv::cuda::policy_for(const DeviceProperties&) {
  return emulated::policy;
}

/// Replaces host/backward_partition.cpp, whose long strips are for calls that take too long here.
/// Strips follow from the shape alone here as well, because the plan and the workspace ask for
/// them.
shortconv::cuda::BackwardPartition shortconv::cuda::backward_partition(const BackwardProblem& p) {
  tools::Random random(static_cast<std::uint64_t>((p.tokens * 131 + p.channels) * 131 + p.width));
  constexpr std::array<std::int32_t, 5> kRows{8, 16, 48, 96, 128};
  const std::int32_t long_rows = random.pick(kRows);
  const std::int32_t short_rows = random.chance(0.5) ? long_rows : random.pick(kRows);
  const std::int64_t long_unit = std::int64_t{long_rows} * kUnitStrips;
  const std::int64_t long_units = p.tokens / long_unit * random.between(0, 1);
  const std::int64_t short_unit = std::int64_t{short_rows} * kUnitStrips;
  const std::int64_t left = p.tokens - long_units * long_unit;
  return {.units = long_units + (left + short_unit - 1) / short_unit,
          .long_units = long_units,
          .long_rows = long_rows,
          .short_rows = short_rows};
}

namespace emulated = shortconv::emulated;

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      break;
    case cudaDevAttrComputeCapabilityMajor:
    case cudaDevAttrComputeCapabilityMinor:
      *value = 9;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulated::kSharedBytes;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  if (emulated::kernels().find(function) == nullptr) return cudaErrorInvalidDeviceFunction;
  return value <= emulated::kSharedBytes ? cudaSuccess : cudaErrorLaunchFailure;
}

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
                                         : "not a kernel of the emulated device";
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  attributes->ptxVersion = 90;
  return emulated::kernels().find(function) == nullptr ? cudaErrorInvalidDeviceFunction
                                                       : cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  return emulated::launch(*config, function, arguments);
}
