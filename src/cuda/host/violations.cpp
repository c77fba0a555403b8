// The checked mode of the CUDA backend: two launches before the call.
#include "core/check.hpp"
#include "cuda/host/groups.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/select.hpp"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"
#include "op/violation.hpp"
#include "shortconv/violation.hpp"

namespace shortconv::cuda {
namespace {

// One thread per number, see op/violation.hpp.
std::int64_t violation_blocks(const Problem& p) {
  return (violation_numbers(p) - 1) / kViolationThreads + 1;
}

}  // namespace

Status plan_violations(const Problem& p) {
  if (violation_blocks(p) > kMaxBlocks) {
    return {Code::kUnsupported, concat("violations: needs ", violation_blocks(p),
                                       " blocks; a grid has at most ", kMaxBlocks)};
  }
  if (Status status = require_current(p.device, "x"); !status.ok()) return status;
  for (const KernelFunction function : {clear_report_kernel(), count_violations_kernel()}) {
    if (Status status = load(function, p.device.index); !status.ok()) return status;
  }
  return {};
}

Status run_violations(const Problem& p, const TensorPointers& at, void* stream) {
  GeneralParams params{p, at, {}};
  void* arguments[] = {&params};
  constexpr std::int32_t kWarp = 32;  // one thread per word of the report
  static_assert(2 * kViolations <= kWarp);
  if (Status status = launch_kernel(
          {.function = clear_report_kernel(), .blocks = 1, .threads = kWarp}, arguments, stream);
      !status.ok()) {
    return status;
  }
  return launch_kernel({.function = count_violations_kernel(),
                        .blocks = violation_blocks(p),
                        .threads = kViolationThreads},
                       arguments, stream);
}

}  // namespace shortconv::cuda
