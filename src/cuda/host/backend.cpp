// The CUDA backend: plans and launches; host/backward.cpp has those of backward calls,
// host/groups.cpp those of calls with groups.
// A call launches one kernel, one more after it if snapshots replace histories, and two more before
// it in the checked mode.
//
// Nothing waits, allocates or changes the current device. The first plan with a kernel loads its
// code, so that the first run can be inside a stream capture.
#include "core/backend.hpp"

#include <cuda_runtime_api.h>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "cuda/host/backward_groups.hpp"
#include "cuda/host/commit.hpp"
#include "cuda/host/general.hpp"
#include "cuda/host/groups.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/prepare.hpp"
#include "cuda/host/select.hpp"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"
#include "op/commit.hpp"
#include "shortconv/argument_table.hpp"

namespace shortconv {
namespace cuda {
namespace {

const KernelFunctions& kernels_of(const Problem& p) {
  const bool f32_weights = p.weight.dtype == DType::kF32;
  switch (p.x.dtype) {
    case DType::kF16:
      return kernels_f16(p.width, p.activation, f32_weights);
    case DType::kBF16:
      return kernels_bf16(p.width, p.activation, f32_weights);
    case DType::kF32:
    case DType::kF64:  // refused by plan_cuda
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kBool:
      break;
  }
  return kernels_f32(p.width, p.activation, f32_weights);
}

KernelFunction function_of(const Problem& p, const LaunchConfig& launch) {
  switch (launch.row) {
    case kGeneralRow:
      return general_kernel(p);
    case kGeneralDecodeRow:
      return general_decode_kernel(p);
    case kGeneralVerifyRow:
      return general_verify_kernel(p);
    case kWholeSequencesRow:
      return whole_sequences_kernel(p);
    default:
      return kernels_of(p)[launch.row];
  }
}

/// The most dynamic shared memory that the function of a launch needs, for any problem.
std::int32_t max_shared_bytes(const Problem& p, const LaunchConfig& launch) {
  if (general_shared_bytes(p, launch.kernel(), launch.threads) == 0) return 0;
  switch (launch.kernel()) {
    case Kernel::kGeneral:
      return max_general_shared_bytes(launch.threads);
    case Kernel::kGeneralDecode:
      return max_general_decode_shared_bytes();
    case Kernel::kGeneralVerify:
      return max_general_verify_shared_bytes();
    case Kernel::kTiles:
    case Kernel::kShortSequences:
    case Kernel::kSmallTiles:
    case Kernel::kSeqIdxTiles:
    case Kernel::kDecode:
    case Kernel::kSmallDecode:
    case Kernel::kDrafts:
    case Kernel::kTrees:
    case Kernel::kChannelsFirst:
    case Kernel::kBlockList:
    case Kernel::kWholeSequences:
      break;
  }
  return 0;  // every launch has 48 KB
}

Status plan_cuda(const Problem& p, PlanStorage& storage) {
  for (const DType dtype : {p.x.dtype, p.out.dtype, p.weight.dtype, p.state.dtype}) {
    if (dtype == DType::kF64) return refuse_f64(BackendId::kCuda);
  }
  KernelConfig config;
  if (p.tokens > 0 && p.channels > 0) {
    if (Status status = require_current(p.device, "x"); !status.ok()) return status;
    DeviceProperties properties;
    if (Status status = properties_of(p.device.index, properties); !status.ok()) return status;
    if (Status status = select(p, properties, policy_for(properties), config); !status.ok())
      return status;
    config.aligned_function = function_of(p, config.aligned);
    config.fallback_function = function_of(p, config.fallback);
    if (config.aligned.replacing_blocks > 0) {
      if (Status status = load(replace_histories_kernel(), p.device.index); !status.ok()) {
        return status;
      }
    }
    bool has_pdl = false;
    if (Status status = load(config.aligned_function, p.device.index, &has_pdl,
                             max_shared_bytes(p, config.aligned));
        !status.ok()) {
      return status;
    }
    if (!has_pdl) config.aligned.params.pdl = PdlMode::kOff;
    if (Status status = load(config.fallback_function, p.device.index, &has_pdl,
                             max_shared_bytes(p, config.fallback));
        !status.ok()) {
      return status;
    }
    if (!has_pdl) config.fallback.params.pdl = PdlMode::kOff;
  }
  if (p.violations.present) {
    if (Status status = plan_violations(p); !status.ok()) return status;
  }
  store_choice(storage, config);
  return {};
}

Status replace_histories(GeneralParams& params, std::int64_t blocks, void* stream) {
  params.launch = {};
  params.launch.channel_blocks =
      FastDivisor(static_cast<std::uint32_t>(blocks / params.problem.snapshot_count));
  void* arguments[] = {&params};
  return launch_kernel(
      {.function = replace_histories_kernel(), .blocks = blocks, .threads = kGeneralThreads},
      arguments, stream);
}

Status launch_forward(const Problem& p, const KernelConfig& config, const TensorPointers& at,
                      void* stream) {
  LaunchConfig launch;
  const KernelFunction function = launch_for(config, at, launch);
  if (takes_general_params(launch.kernel())) {
    GeneralParams params{p, at, launch.params};
    void* arguments[] = {&params};
    return launch_kernel({.function = function,
                          .blocks = launch.blocks,
                          .threads = launch.threads,
                          .shared_bytes = general_shared_bytes(p, launch.kernel(), launch.threads),
                          .programmatic = launch.params.pdl != PdlMode::kOff},
                         arguments, stream);
  }
  KernelParams params = make_kernel_params(p, at, launch.params);
  void* arguments[] = {&params};
  if (Status status = launch_kernel({.function = function,
                                     .blocks = launch.blocks,
                                     .threads = launch.threads,
                                     .programmatic = launch.params.pdl != PdlMode::kOff},
                                    arguments, stream);
      !status.ok() || launch.replacing_blocks == 0) {
    return status;
  }
  GeneralParams general{p, at, {}};
  return replace_histories(general, launch.replacing_blocks, stream);
}

Status run_cuda(const Problem& p, const PlanStorage& storage, const TensorPointers& at,
                void* stream) {
  const auto config = load_choice<KernelConfig>(storage);
  if (config.aligned.blocks == 0 && !p.violations.present) return {};
  if (Status status = check_alignment(p, at); !status.ok()) return status;
  if (Status status = require_current(p.device, "x"); !status.ok()) return status;
  if (p.violations.present) {
    if (Status status = run_violations(p, at, stream); !status.ok()) return status;
  }
  if (config.aligned.blocks == 0) return {};
  return launch_forward(p, config, at, stream);
}

Status plan_commit(const CommitProblem& p, PlanStorage& storage) {
  CommitConfig config;
  if (Status status = select_commit(with_adjacent_channels(p), config); !status.ok()) {
    return status;
  }
  if (config.elements.blocks > 0) {
    if (Status status = require_current(p.device, "intermediate_states"); !status.ok())
      return status;
    config.elements.function = commit_kernel(element_bytes(p.state.dtype));
    config.vectors.function = commit_kernel(kVectorBytes);
    for (const KernelFunction function : {config.elements.function, config.vectors.function}) {
      if (Status status = load(function, p.device.index); !status.ok()) return status;
    }
  }
  store_choice(storage, config);
  return {};
}

Status run_commit(const CommitProblem& problem, const PlanStorage& storage,
                  const CommitPointers& at, void* stream) {
  const auto plan = load_choice<CommitConfig>(storage);
  if (Status status = check_alignment(problem, at); !status.ok()) return status;
  if (Status status = require_current(problem.device, "intermediate_states"); !status.ok())
    return status;

  const CommitLaunchConfig& launch = launch_for(plan, at);
  CommitKernelParams params{with_adjacent_channels(problem), at, launch.params};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.blocks), static_cast<unsigned>(launch.strips));
  config.blockDim = dim3(kCommitThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {&params};
  return cuda_status("launch", cudaLaunchKernelExC(&config, launch.function, arguments));
}

std::string describe_commit(const CommitProblem&, const PlanStorage& storage) {
  const auto config = load_choice<CommitConfig>(storage);
  return concat("commit, ", config.vectors.blocks > 0 ? "vectors" : "elements");
}

// Index preparation. The kernel takes `call` by value.
template <typename Preparation>
Status launch_preparation(const Preparation& call, std::string_view argument,
                          KernelFunction function, std::int64_t blocks, int threads, void* stream) {
  if (Status status = require_current(call.device, argument); !status.ok()) return status;
  if (Status status = load(function, call.device.index); !status.ok()) return status;
  if (blocks > kMaxBlocks) {
    return {Code::kUnsupported,
            concat(argument, ": needs ", blocks, " blocks; a grid has at most ", kMaxBlocks)};
  }
  if (blocks == 0) return {};
  void* arguments[] = {const_cast<Preparation*>(&call)};
  return launch_kernel({.function = function, .blocks = blocks, .threads = threads}, arguments,
                       stream);
}

/// One thread per item.
template <typename Preparation>
Status launch_items(const Preparation& call, std::string_view argument, KernelFunction function,
                    std::int64_t items, void* stream) {
  return launch_preparation(call, argument, function, prepare_blocks(items), kPrepareThreads,
                            stream);
}

bool is_aligned(const IndexTensor& tensor) { return aligned(tensor.data, tensor.dtype); }

Status run_block_snapshots(const BlockSnapshots& call, void* stream) {
  std::string_view argument;
  if (!is_aligned(call.query_start_loc)) argument = "query_start_loc";
  if (!is_aligned(call.num_computed_tokens)) argument = "num_computed_tokens";
  if (!is_aligned(call.block_slots)) argument = "block_slots";
  if (!is_aligned(call.snapshots)) argument = "snapshots";
  if (Status status = refuse_unaligned(argument); !status.ok()) return status;
  return launch_items(call, "query_start_loc", block_snapshots_kernel(), call.rows, stream);
}

Status run_tree_parents(const TreeParents& call, void* stream) {
  std::string_view argument;
  if (!is_aligned(call.first_child)) argument = "first_child";
  if (!is_aligned(call.next_sibling)) argument = "next_sibling";
  if (!is_aligned(call.query_start_loc)) argument = "query_start_loc";
  if (!is_aligned(call.parents)) argument = "parents";
  if (Status status = refuse_unaligned(argument); !status.ok()) return status;
  return launch_items(call, "first_child", tree_parents_kernel(),
                      call.tokens == 0 ? 0 : call.sequences, stream);
}

BackendInfo cuda_info() {
  int device = 0;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return {"cuda", false, cudaGetErrorString(error)};
  }
  return {"cuda", true,
          concat(std::string_view(properties.name), ", sm_", std::int64_t{properties.major},
                 std::int64_t{properties.minor})};
}

std::string describe_cuda(const Problem& p, const PlanStorage& storage) {
  const auto config = load_choice<KernelConfig>(storage);
  if (config.aligned.blocks == 0) return "empty";
  return concat(to_string(config.aligned), ", ", name(p.schedule));
}

}  // namespace
}  // namespace cuda

extern const Backend kCudaBackend{
    .id = BackendId::kCuda,
    .device = DeviceType::kCuda,
    .info = cuda::cuda_info,
    .forward = {.plan = cuda::plan_cuda, .run = cuda::run_cuda, .describe = cuda::describe_cuda},
    .commit = {.plan = cuda::plan_commit,
               .run = cuda::run_commit,
               .describe = cuda::describe_commit},
    .backward = cuda::kBackward,
    .grouped = cuda::kGrouped,
    .grouped_backward = cuda::kGroupedBackward,
    .l2_norm = cuda::run_l2_norm,
    .delta_gates = cuda::run_delta_gates,
    .block_snapshots = cuda::run_block_snapshots,
    .tree_parents = cuda::run_tree_parents,
};

}  // namespace shortconv
