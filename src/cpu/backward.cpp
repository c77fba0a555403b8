// Backward calls on the CPU.
//
// Threads: an item is a block of channels with all tokens, so the gradients of weights, which are
// sums over all tokens, do not depend on the number of threads, and no memory is needed for partial
// sums.
//
// Bytes moved: x and grad_out once in, grad_x once out, the gates twice. The ceiling is a copy of
// the same bytes; docs/performance.md has the distance to it.
#include <algorithm>

#include "core/check.hpp"
#include "core/thread_pool.hpp"
#include "cpu/backend.hpp"
#include "cpu/backward_worker.hpp"
#include "cpu/thread_buffers.hpp"

namespace shortconv::cpu {
namespace {

struct Choice {
  const BackwardKernels* kernels;
  BackwardStripFn strip;
  std::int32_t threads;
  std::int32_t block_channels;
};

/// As many as leave a block for each thread.
std::int32_t block_channels(std::int64_t channels, std::int32_t threads) {
  const std::int64_t share = (channels + threads - 1) / threads;
  const std::int64_t rounded =
      (share + kMinBackwardChannels - 1) / kMinBackwardChannels * kMinBackwardChannels;
  return static_cast<std::int32_t>(std::clamp(rounded, kMinBackwardChannels, kMaxBackwardChannels));
}

std::int64_t block_count(const BackwardProblem& p, const Choice& choice) {
  return (p.channels + choice.block_channels - 1) / choice.block_channels;
}

/// True if x, grad_out and grad_x are rows of one dtype and nothing else counts.
bool has_strips(const BackwardProblem& p) {
  return p.dilation == 1 && p.grad_out.dtype == p.x.dtype && p.x.channel_stride == 1 &&
         p.grad_out.channel_stride == 1 && (!p.grad_x.present || p.grad_x.channel_stride == 1) &&
         !p.input_gate.present && !p.output_gate.present && p.epilogue == Epilogue::kNone;
}

double bytes_moved(const BackwardProblem& p) {
  const auto elements = static_cast<double>(p.tokens) * static_cast<double>(p.channels);
  return elements *
         static_cast<double>(2 * element_bytes(p.x.dtype) + element_bytes(p.grad_out.dtype));
}

}  // namespace

Status plan_backward(const BackwardProblem& p, PlanStorage& storage) {
  for (const DType dtype : {p.x.dtype, p.weight.dtype, p.grad_out.dtype, p.initial_state.dtype,
                            p.grad_final_state.dtype}) {
    if (dtype == DType::kF64) return refuse_f64(BackendId::kCpu);
  }
  const std::int32_t threads = thread_limit(p.threads, bytes_moved(p));
  const Choice choice{
      .kernels = select(p),
      .strip = has_strips(p) ? select_backward_strip(p.x.dtype, p.width, p.activation) : nullptr,
      .threads = threads,
      .block_channels = block_channels(p.channels, threads)};
  if (Status status = check_target(choice.kernels->target); !status.ok()) return status;
  store_choice(storage, choice);
  return {};
}

Status run_backward(const BackwardProblem& p, const PlanStorage& storage,
                    const BackwardPointers& at, void*) {
  const auto choice = load_choice<Choice>(storage);
  if (thread_buffers<BackwardBuffers>() == nullptr) return no_thread_buffers<BackwardBuffers>();
  share_items(choice.threads, block_count(p, choice), [&](Items& items) {
    BackwardBuffers* const buffers = thread_buffers<BackwardBuffers>();
    if (buffers == nullptr) return;  // leaves the items to the other threads
    BackwardWorker worker(p, at, *choice.kernels, choice.strip, *buffers);
    for (std::int64_t item = items.take(); item >= 0; item = items.take()) {
      const std::int64_t channel = item * choice.block_channels;
      worker.process(channel, std::min<std::int64_t>(choice.block_channels, p.channels - channel));
    }
  });
  return {};
}

std::string describe_backward(const BackwardProblem& p, const PlanStorage& storage) {
  const auto choice = load_choice<Choice>(storage);
  return concat(choice.kernels->target, " ", block_count(p, choice), " blocks of ",
                std::int64_t{choice.block_channels}, " channels, ", std::int64_t{choice.threads},
                " threads");
}

}  // namespace shortconv::cpu
