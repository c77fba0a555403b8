// The CPU backend: what make_plan decides, and the loop over items.
//
// Threads come from OpenMP: engines that run on the CPU have its pool already, it stays alive
// between calls, and there is nothing of ours to start, stop or protect across fork. Items are
// dealt out dynamically because a shared machine does not run all threads at one speed. No result
// depends on who computes what.
#include "core/backend.hpp"

#include <hwy/targets.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string_view>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "cpu/commit.hpp"
#include "cpu/kernels.hpp"
#include "cpu/prepare.hpp"
#include "cpu/violation.hpp"
#include "cpu/worker.hpp"

namespace shortconv {
namespace cpu {
namespace {

// SHORTCONV_CPU_TARGET=AVX2 keeps to one instruction set, which is how the tests run each. Read
// once.
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

Status check_target(std::string_view chosen) {
  const char* forced = forced_target();
  if (forced == nullptr || chosen == forced) return {};
  return {Code::kUnavailable, concat("SHORTCONV_CPU_TARGET: '", forced,
                                     "' is not available in this build on this machine; '", chosen,
                                     "' would be chosen")};
}

}  // namespace

const Kernels* select(DType dtype, int width, Activation activation) {
  (void)forced_target();
  switch (dtype) {
    case DType::kF16:
      return select_f16(width, activation);
    case DType::kBF16:
      return select_bf16(width, activation);
    default:
      return select_f32(width, activation);
  }
}

namespace {

// Of the kernels: 0 are those that take any width, and a dilation.
int kernel_width(const Problem& p) { return p.dilation == 1 ? p.width : 0; }

Form form_of(const Problem& p) {
  if (p.in_place || p.x_dtype != p.out_dtype) return Form::kStaged;
  const auto adjacent = [&](std::int64_t x, std::int64_t out, std::int64_t input_gate,
                            std::int64_t output_gate) {
    return x == 1 && out == 1 && (!p.has_input_gate || input_gate == 1) &&
           (p.epilogue != Epilogue::kOutputGate || output_gate == 1);
  };
  if (adjacent(p.x_channel, p.out_channel, p.input_gate_channel, p.output_gate_channel)) {
    return Form::kRows;
  }
  if (adjacent(p.x_token, p.out_token, p.input_gate_token, p.output_gate_token)) {
    return Form::kColumns;
  }
  return Form::kStaged;
}

// A store that bypasses the caches saves reading the line first, and costs whoever reads the result
// next from cache. 8192 x 8192 bf16 on 2 cores: 0.79 of copy speed without, 0.82 to 0.87 with.
bool should_stream(const Problem& p, Form form) {
  constexpr std::int64_t kBytes = std::int64_t{32}
                                  << 20;  // beyond the level-2 caches of a few cores
  const std::int64_t bytes = element_bytes(p.out_dtype);
  return form == Form::kRows && p.tokens * p.channels >= kBytes / bytes &&
         p.out_token * bytes % 64 == 0 && p.out_sequence * bytes % 64 == 0;
}

// Tiles are small enough that every thread gets several, large enough that finding the sequence
// costs nothing, and longer than wide where tokens are adjacent.
void partition(const Problem& p, int threads, Choice& choice) {
  const bool general = p.dilation > 1 || p.width > kWidths.all.back();
  const bool chunked = p.schedule != Schedule::kFlat;
  const bool columns = choice.form == Form::kColumns;
  std::int64_t block = general   ? Worker::kGeneralBlockChannels
                       : chunked ? kChunkChannels
                       : columns ? 64
                                 : Worker::kMaxBlockChannels;
  const std::int64_t longest_tile = columns ? 512 : 64;
  if (!chunked) {
    // A few tokens over few channels still deserve all threads.
    while (block > 64 && (p.channels + block - 1) / block < threads && p.tokens < 4 * longest_tile)
      block /= 2;
  }
  choice.block_channels = static_cast<std::int32_t>(block);
  choice.channel_blocks = (p.channels + block - 1) / block;
  choice.head_tokens = p.in_place ? p.tokens : history_of(p);
  choice.tile_tokens = longest_tile;
  if (p.op == Op::kVerify) {  // an item is a sequence; one more fills the rows outside of all
    choice.tiles = p.sequences + 1;
    choice.threads = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(choice.tiles * choice.channel_blocks, 1, threads));
    return;
  }
  switch (p.schedule) {
    case Schedule::kFlat: {
      const std::int64_t wanted = p.tokens * choice.channel_blocks / (std::int64_t{8} * threads);
      const FlatTiles tiles =
          plan_flat(p.tokens, std::clamp<std::int64_t>(wanted, kChunkTokens, longest_tile));
      choice.tile_tokens = tiles.tile_tokens;
      choice.tiles = tiles.tiles;
      break;
    }
    case Schedule::kBlockList:  // one more item fills the rows outside of all sequences
      choice.tiles = p.blocks + 1;
      break;
    case Schedule::kSequenceGrid: {
      const std::int64_t longest = p.has_query_start_loc ? p.longest_sequence : p.sequence_tokens;
      const std::int64_t chunks =
          std::max<std::int64_t>((longest + kChunkTokens - 1) / kChunkTokens, 1);
      choice.tiles = p.sequences * chunks + 1;
      break;
    }
  }
  choice.threads = static_cast<std::int32_t>(
      std::clamp<std::int64_t>(choice.tiles * choice.channel_blocks, 1, threads));
}

Status plan_cpu(const Problem& p, PlanStorage& storage) {
  for (const DType dtype : {p.x_dtype, p.out_dtype, p.weight_dtype, p.state_dtype}) {
    if (dtype == DType::kF64) {
      return {Code::kUnsupported, "backend: 'cpu' has no f64; the reference backend has"};
    }
  }
  Choice choice{};
  const int width = kernel_width(p);
  choice.of_x = select(p.x_dtype, width, p.activation);
  if (Status status = check_target(choice.of_x->target); !status.ok()) return status;
  choice.of_out = select(p.out_dtype, width, p.activation);
  choice.of_weight = select(p.weight_dtype, width, p.activation);
  choice.of_state = select(p.state_dtype, width, p.activation);
  choice.of_stage = select(DType::kF32, width, p.activation);
  choice.form = form_of(p);
  choice.stream = should_stream(p, choice.form);
  partition(p, p.threads > 0 ? p.threads : omp_get_max_threads(), choice);
  store_choice(storage, choice);
  return {};
}

// Known before the work starts, so that heads need not look through the list otherwise.
bool replaces_histories(const Problem& p, const Addresses& at) {
  for (std::int64_t number = 0; number < p.snapshots; ++number) {
    const Snapshot snapshot = snapshot_at(p, at, number);
    if (snapshot.sequence < 0 || snapshot.sequence >= p.sequences) continue;
    const Sequence s = sequence_at(p, at, snapshot.sequence);
    if (is_taken(p, s, snapshot) && replaces_history(s, snapshot)) return true;
  }
  return false;
}

Status run_cpu(const Problem& p, const PlanStorage& storage, const Addresses& at, void*) {
  const auto choice = load_choice<Choice>(storage);
  if (p.has_violations) report_violations(p, at);
  if (p.tokens == 0 || p.channels == 0) return {};
  const std::int64_t items = choice.tiles * choice.channel_blocks;
  const std::int64_t snapshots = p.snapshots * choice.channel_blocks;
  const bool replaces = replaces_histories(p, at);
  if (choice.threads == 1) {
    Worker worker(p, choice, at, replaces);
    for (std::int64_t item = 0; item < snapshots; ++item) worker.take_snapshot(item);
    for (std::int64_t item = 0; item < items; ++item) worker.process(item);
    worker.finish();
    return {};
  }
#pragma omp parallel num_threads(choice.threads)
  {
    Worker worker(p, choice, at, replaces);
    if (snapshots > 0) {
#pragma omp for schedule(dynamic)  // with its barrier: states are written afterwards
      for (std::int64_t item = 0; item < snapshots; ++item) worker.take_snapshot(item);
    }
#pragma omp for schedule(dynamic) nowait  // finish() comes before the barrier of the region
    for (std::int64_t item = 0; item < items; ++item) worker.process(item);
    worker.finish();
  }
  return {};
}

BackendInfo cpu_info() {
  const Kernels& kernels = *select(DType::kF32, 4, Activation::kNone);
  const Status status = check_target(kernels.target);
  if (!status.ok()) return {"cpu", false, status.message()};
  return {"cpu", true,
          concat(kernels.target, ", ", std::int64_t{omp_get_max_threads()}, " threads")};
}

std::string describe_cpu(const Problem& p, const PlanStorage& storage) {
  const auto choice = load_choice<Choice>(storage);
  const std::string_view form = choice.form == Form::kRows      ? "rows"
                                : choice.form == Form::kColumns ? "columns"
                                                                : "staged";
  return concat(choice.of_x->target, " ", form, ", ", name(p.schedule), ", ", choice.tiles,
                " tiles of ", choice.tile_tokens, " tokens x ", choice.channel_blocks,
                " blocks of ", std::int64_t{choice.block_channels}, " channels, ",
                std::int64_t{choice.threads}, " threads");
}

}  // namespace
}  // namespace cpu

extern const Backend kCpuBackend{
    .id = BackendId::kCpu,
    .device = DeviceType::kCpu,
    .info = cpu::cpu_info,
    .plan = cpu::plan_cpu,
    .run = cpu::run_cpu,
    .describe = cpu::describe_cpu,
    .plan_commit = cpu::plan_commit,
    .run_commit = cpu::run_commit,
    .block_snapshots = cpu::block_snapshots,
    .tree_parents = cpu::tree_parents,
};

}  // namespace shortconv
