// The CPU backend: plans, and the loop over items. Items are distributed dynamically because
// threads of a shared machine differ in speed. Results do not depend on the distribution.
#include "cpu/backend.hpp"

#include <hwy/targets.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "core/thread_count.hpp"
#include "core/thread_pool.hpp"
#include "cpu/forward.hpp"
#include "cpu/kernels.hpp"
#include "cpu/thread_buffers.hpp"
#include "cpu/worker.hpp"

namespace shortconv {
namespace cpu {
namespace {

// SHORTCONV_CPU_TARGET=AVX2 restricts the kernels to one instruction set, for the tests. Read once.
const char* forced_target() {
  static const char* const forced = [] {
    const char* wanted = std::getenv("SHORTCONV_CPU_TARGET");
    if (wanted == nullptr) return wanted;
    const std::int64_t supported = hwy::SupportedTargets();
    for (std::int64_t rest = supported; rest != 0; rest &= rest - 1) {
      const std::int64_t target = rest & -rest;
      if (std::string_view(hwy::TargetName(target)) == wanted)
        hwy::SetSupportedTargetsForTest(target);
    }
    return wanted;
  }();
  return forced;
}

}  // namespace

Status check_target(std::string_view chosen) {
  const char* forced = forced_target();
  if (forced == nullptr || chosen == forced) return {};
  return {Code::kUnavailable, concat("SHORTCONV_CPU_TARGET: '", forced,
                                     "' is not available in this build on this machine; '", chosen,
                                     "' would be chosen")};
}

const BackwardKernels* select(const BackwardProblem& p) {
  (void)forced_target();
  return select_backward(p.width, p.dilation, p.activation);
}

const Kernels* select(DType dtype, int width, Activation activation) {
  (void)forced_target();
  switch (dtype) {
    case DType::kF16:
      return select_f16(width, activation);
    case DType::kBF16:
      return select_bf16(width, activation);
    case DType::kF32:
    case DType::kF64:  // refused by plan
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kBool:
      break;
  }
  return select_f32(width, activation);
}

int thread_limit(int wanted, double bytes) {
  // A decode of 1 x 8192 fp32 moves 256 KB and takes 6 us on one thread, as a prefill of 64 KB.
  // Handing a part over takes 5 us, and more if the other thread has to wake.
  constexpr double kBytesOfThread = 192 << 10;
  if (wanted > 0) return std::min(wanted, kMaxThreads);
  const double worth = bytes / kBytesOfThread;
  return worth < 2 ? 1 : static_cast<int>(std::min<double>(worth, available_threads()));
}

namespace {

// 0: kernels for any width and dilation.
int kernel_width(const Problem& p) { return p.dilation == 1 ? p.width : 0; }

Form form_of(const Problem& p) {
  if (p.in_place || p.x.dtype != p.out.dtype) return Form::kStaged;
  const auto adjacent = [&](auto stride) {
    return p.x.*stride == 1 && p.out.*stride == 1 &&
           (!p.input_gate.present || p.input_gate.*stride == 1) &&
           (!p.output_gate.present || p.output_gate.*stride == 1);
  };
  if (adjacent(Stride<Axis::kChannel>::kMember)) return Form::kTokenMajor;
  if (adjacent(Stride<Axis::kToken>::kMember)) return Form::kChannelsFirst;
  return Form::kStaged;
}

// A non-temporal store saves the read of the line before the write, but a following read of the
// result misses the caches.
//
// | 8192 x 8192 bf16, 2 cores | of copy speed |
// |---------------------------|---------------|
// | plain stores              | 0.79          |
// | non-temporal stores       | 0.82 to 0.87  |
bool should_stream(const Problem& p, Form form) {
  // More than the level-2 caches of a few cores.
  constexpr std::int64_t kBytes = std::int64_t{32} << 20;
  const std::int64_t bytes = element_bytes(p.out.dtype);
  return form == Form::kTokenMajor && p.tokens * p.channels >= kBytes / bytes &&
         p.out.token_stride * bytes % 64 == 0 && p.out.sequence_stride * bytes % 64 == 0;
}

// Inputs, outputs and states once each way; gates and snapshots count as nothing.
// In fp64, in which no size overflows.
double bytes_moved(const Problem& p) {
  const auto tokens = static_cast<double>(p.tokens), channels = static_cast<double>(p.channels);
  const double states = std::min(static_cast<double>(p.sequences), tokens) * history_of(p);
  const auto bytes = [](DType dtype) { return static_cast<double>(element_bytes(dtype)); };
  return channels *
         (tokens * (bytes(p.x.dtype) + bytes(p.out.dtype)) + 2 * states * bytes(p.state.dtype));
}

void set_threads(int threads, CpuConfig& config) {
  config.threads = static_cast<std::int32_t>(
      std::clamp<std::int64_t>(config.tiles * config.channel_blocks, 1, threads));
}

// Channels-first rows: 8192 x 8192 bf16 takes 43 ms on one thread with 16 channels x 2048 tokens,
// 64 ms with 64 x 512. Short sequences keep 64 channels: 64 x 16 tokens are 22% slower with 16.
constexpr std::int64_t kLongestRun = 2048;
std::int64_t run_block_channels(const Problem& p) { return p.tokens < 64 * p.sequences ? 64 : 16; }

// Tiles are small enough for several items per thread, large enough to make the search for a
// sequence negligible, and longer than wide where tokens are adjacent.
void partition(const Problem& p, int threads, CpuConfig& config) {
  const bool flat = p.schedule == Schedule::kFlat;
  const bool channels_first = config.form == Form::kChannelsFirst;
  std::int64_t block = has_general_kernels(p)    ? kGeneralBlockChannels
                       : !flat                   ? kBlockChannels
                       : channels_first          ? run_block_channels(p)
                       : p.tokens <= p.sequences ? kTokenBlockChannels
                                                 : kMaxBlockChannels;
  const std::int64_t longest_tile = channels_first ? kLongestRun : 64;
  // Few tokens of few channels: smaller blocks occupy all threads.
  while (flat && block > 64 && (p.channels + block - 1) / block < threads &&
         p.tokens < 4 * longest_tile) {
    block /= 2;
  }
  config.block_channels = static_cast<std::int32_t>(block);
  config.channel_blocks = (p.channels + block - 1) / block;
  config.tile_tokens = longest_tile;
  // Tiles that are sequences or their blocks are followed by one for the rows outside all
  // sequences.
  switch (p.schedule) {
    case Schedule::kFlat: {
      if (p.op == Op::kVerify) {
        config.tiles = p.sequences + 1;
        break;
      }
      set_tiles(p, threads, longest_tile, config);
      break;
    }
    case Schedule::kBlockList:
      config.tiles = p.block_count + 1;
      break;
    case Schedule::kSequenceGrid: {
      const std::int64_t longest = p.query_start_loc.present ? p.max_seqlen : p.sequence_tokens;
      const std::int64_t blocks =
          std::max<std::int64_t>((longest + kBlockTokens - 1) / kBlockTokens, 1);
      config.tiles = p.sequences * blocks + 1;
      break;
    }
  }
  set_threads(threads, config);
}

}  // namespace

Status choose_kernels(const Problem& p, CpuConfig& config) {
  for (const DType dtype : {p.x.dtype, p.out.dtype, p.weight.dtype, p.state.dtype}) {
    if (dtype == DType::kF64) return refuse_f64(BackendId::kCpu);
  }
  const auto kernels = [&](DType dtype) { return select(dtype, kernel_width(p), p.activation); };
  config.x_kernels = kernels(p.x.dtype);
  if (Status status = check_target(config.x_kernels->target); !status.ok()) return status;
  config.out_kernels = kernels(p.out.dtype);
  config.weight_kernels = kernels(p.weight.dtype);
  config.state_kernels = kernels(p.state.dtype);
  config.f32_kernels = kernels(DType::kF32);
  config.form = form_of(p);
  config.start_tokens = p.in_place ? p.tokens : history_of(p);
  return {};
}

void set_tiles(const Problem& p, int threads, std::int64_t longest_tile, CpuConfig& config) {
  const std::int64_t tokens = p.tokens * config.channel_blocks / (std::int64_t{8} * threads);
  config.tile_tokens = std::clamp<std::int64_t>(tokens, kBlockTokens, longest_tile);
  config.tiles = (p.tokens + config.tile_tokens - 1) / config.tile_tokens;
  set_threads(threads, config);
}

namespace {

Status plan_cpu(const Problem& p, PlanStorage& storage) {
  CpuConfig config{};
  if (Status status = choose_kernels(p, config); !status.ok()) return status;
  // Sizes of tensors without elements are not bounded, so their products could overflow.
  if (p.tokens > 0 && p.channels > 0) {
    config.stream = should_stream(p, config.form);
    partition(p, thread_limit(p.threads, bytes_moved(p)), config);
  }
  store_choice(storage, config);
  return {};
}

// Computed once per call, so that sequence starts scan the list only if necessary.
bool replaces_histories(const Problem& p, const TensorPointers& at) {
  for (std::int64_t row = 0; row < p.snapshot_count; ++row) {
    const Snapshot snapshot = snapshot_at(p, at, row);
    if (snapshot.sequence < 0 || snapshot.sequence >= p.sequences) continue;
    const Sequence s = sequence_at(p, at, snapshot.sequence);
    if (is_taken(p, s, snapshot) && replaces_history(s, snapshot)) return true;
  }
  return false;
}

}  // namespace

Status run_items(const Problem& p, const CpuConfig& config, const TensorPointers& at,
                 const GroupBlocks* groups) {
  if (thread_buffers<Scratch>() == nullptr) return no_thread_buffers<Scratch>();
  const bool replaces = replaces_histories(p, at);
  // A thread of the pool that gets no scratch leaves the items to the others.
  const auto share = [&](std::int64_t items, const auto& process) {
    share_items(config.threads, items, [&](Items& left) {
      Scratch* const scratch = thread_buffers<Scratch>();
      if (scratch == nullptr) return;
      Worker worker(p, config, at, replaces, groups, *scratch);
      for (std::int64_t item = left.take(); item >= 0; item = left.take()) process(worker, item);
      worker.finish();
    });
  };
  // All of them precede all writes of states.
  if (p.snapshot_count > 0) {
    const std::int64_t blocks =
        groups == nullptr ? config.channel_blocks : groups->convolved_count();
    share(p.snapshot_count * blocks,
          [](Worker& worker, std::int64_t item) { worker.take_snapshot(item); });
  }
  share(config.tiles * config.channel_blocks,
        [](Worker& worker, std::int64_t item) { worker.process(item); });
  return {};
}

namespace {

Status run_cpu(const Problem& p, const PlanStorage& storage, const TensorPointers& at, void*) {
  if (p.violations.present) report_violations(p, at);
  if (p.tokens == 0 || p.channels == 0) return {};
  return run_items(p, load_choice<CpuConfig>(storage), at, nullptr);
}

BackendInfo cpu_info() {
  const Kernels& kernels = *select(DType::kF32, 4, Activation::kNone);
  const Status status = check_target(kernels.target);
  if (!status.ok()) return {"cpu", false, status.message()};
  return {"cpu", true, concat(kernels.target, ", ", std::int64_t{available_threads()}, " threads")};
}

std::string_view name(Form form) {
  switch (form) {
    case Form::kTokenMajor:
      return "token-major";
    case Form::kChannelsFirst:
      return "channels-first";
    case Form::kStaged:
      return "staged";
  }
  return {};
}

}  // namespace

std::string describe_items(const Problem& p, const CpuConfig& config) {
  return concat(config.x_kernels->target, " ", name(config.form), ", ", name(p.schedule), ", ",
                config.tiles, " tiles of ", config.tile_tokens, " tokens x ", config.channel_blocks,
                " blocks of ", std::int64_t{config.block_channels}, " channels, ",
                std::int64_t{config.threads}, " threads");
}

namespace {

Status refuse_grouped_backward(const GroupedBackwardProblem&, PlanStorage&) {
  return {Code::kUnsupported,
          "groups: the backend 'cpu' does not compute their gradients; 'reference' does"};
}

std::string describe_cpu(const Problem& p, const PlanStorage& storage) {
  return describe_items(p, load_choice<CpuConfig>(storage));
}

}  // namespace
}  // namespace cpu

extern const Backend kCpuBackend{
    .id = BackendId::kCpu,
    .device = DeviceType::kCpu,
    .info = cpu::cpu_info,
    .forward = {.plan = cpu::plan_cpu, .run = cpu::run_cpu, .describe = cpu::describe_cpu},
    .commit = {.plan = cpu::plan_commit, .run = cpu::run_commit, .describe = cpu::describe_commit},
    .backward = {.plan = cpu::plan_backward,
                 .run = cpu::run_backward,
                 .describe = cpu::describe_backward},
    .grouped = {.plan = cpu::plan_grouped,
                .run = cpu::run_grouped,
                .describe = cpu::describe_grouped},
    // No kernels: plan refuses every call.
    .grouped_backward = {.plan = cpu::refuse_grouped_backward, .run = nullptr, .describe = nullptr},
    .l2_norm = cpu::l2_norm,
    .delta_gates = cpu::delta_gates,
    .block_snapshots = cpu::block_snapshots,
    .tree_parents = cpu::tree_parents,
};

}  // namespace shortconv
