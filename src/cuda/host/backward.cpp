// Backward calls of the CUDA backend: one kernel for the rows, and one after it, whose launch
// overlaps the end of the first, for the gradients of weights.
#include "cuda/host/backward.hpp"

#include "core/check.hpp"
#include "cuda/backward_tuning.hpp"
#include "cuda/host/launch.hpp"

namespace shortconv::cuda {

Status shared_bytes_of(int device, std::int32_t& bytes) {
  return cuda_status(
      "device", cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
}

namespace {

Status check_dtypes(const BackwardProblem& p) {
  bool has_f64 = false;
  visit_tensors(
      [&](const Argument&, const auto& layout) {
        if (layout.present && layout.dtype == DType::kF64) has_f64 = true;
      },
      p);
  return has_f64 ? refuse_f64(BackendId::kCuda) : Status();
}

Status plan_backward(const BackwardProblem& p, PlanStorage& storage) {
  if (Status status = check_dtypes(p); !status.ok()) return status;
  if (Status status = require_current(p.device, "x"); !status.ok()) return status;
  BackwardConfig config;
  std::int32_t most_bytes = 0;
  if (Status status = shared_bytes_of(p.device.index, most_bytes); !status.ok()) return status;
  if (Status status = select_backward(p, most_bytes, config); !status.ok()) return status;
  for (const BackwardLaunch* launch :
       {&config.row_strips, &config.channel_strips, &config.general}) {
    if (launch->blocks == 0) continue;
    // A kernel is prepared once for all calls; those of the general one differ.
    const bool differs = launch == &config.general;
    const std::int32_t bytes = differs ? most_bytes : launch->shared_bytes;
    if (Status status = load(launch->function, p.device.index, nullptr, bytes); !status.ok()) {
      return status;
    }
  }
  if (config.finish_blocks > 0) {
    if (Status status = load(finish_backward_kernel(), p.device.index, &config.finish_overlaps);
        !status.ok()) {
      return status;
    }
  }
  store_choice(storage, config);
  return {};
}

Status launch_rows(const BackwardProblem& p, const BackwardConfig& config,
                   const BackwardPointers& at, void* stream) {
  std::int32_t copy_bytes = 0;
  if (const BackwardLaunch* strips = choose_strips(config, at, copy_bytes)) {
    BackwardKernelParams params = make_backward_params(p, at, config, *strips);
    params.copy_bytes = copy_bytes;
    void* arguments[] = {&params};
    return launch_kernel({.function = strips->function,
                          .blocks = strips->blocks,
                          .threads = strips->threads,
                          .shared_bytes = strips->shared_bytes},
                         arguments, stream);
  }
  BackwardGeneralParams params{p, at, config.general.channel_blocks, config.partition};
  void* arguments[] = {&params};
  return launch_kernel({.function = config.general.function,
                        .blocks = config.general.blocks,
                        .threads = config.general.threads,
                        .shared_bytes = config.general.shared_bytes},
                       arguments, stream);
}

Status run_backward(const BackwardProblem& p, const PlanStorage& storage,
                    const BackwardPointers& at, void* stream) {
  const auto config = load_choice<BackwardConfig>(storage);
  if (Status status = check_alignment(p, at); !status.ok()) return status;
  if (Status status = require_current(p.device, "x"); !status.ok()) return status;
  if (config.general.blocks > 0) {
    if (Status status = launch_rows(p, config, at, stream); !status.ok()) return status;
  }
  if (config.finish_blocks == 0) return {};
  BackwardSumParams params = make_sum_params(p, at);
  add_segment(p, 0, config.partition.units, at.workspace, params);
  void* arguments[] = {&params};
  return launch_kernel({.function = finish_backward_kernel(),
                        .blocks = config.finish_blocks,
                        .threads = kSumThreads,
                        .programmatic = config.finish_overlaps && config.general.blocks > 0},
                       arguments, stream);
}

std::string describe_backward(const BackwardProblem&, const PlanStorage& storage) {
  const auto config = load_choice<BackwardConfig>(storage);
  if (config.general.blocks == 0) return "backward, empty";
  const char* kernel = config.row_strips.blocks > 0       ? "strips"
                       : config.channel_strips.blocks > 0 ? "channel strips"
                                                          : "general";
  const std::int64_t first = config.partition.strip_rows(0);
  const std::int64_t last = config.partition.strip_rows(config.partition.units - 1);
  const std::string rows = first == last ? concat(first) : concat(first, " and ", last);
  return concat("backward, ", kernel, " of ", rows, " rows");
}

std::int64_t backward_workspace_bytes(const BackwardProblem& p, const PlanStorage&) {
  return partial_sum_bytes(p);
}

}  // namespace

const OperationKernels<BackwardOperation> kBackward{.plan = plan_backward,
                                                    .run = run_backward,
                                                    .describe = describe_backward,
                                                    .workspace_bytes = backward_workspace_bytes};

}  // namespace shortconv::cuda
