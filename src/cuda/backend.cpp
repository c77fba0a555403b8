// The CUDA backend: what is asked of the device once, and the launch. One call is one kernel, and
// two more before it in the checked mode.
//
// Nothing waits, allocates or changes the current device. A kernel's code is loaded when it is
// first planned, not when it is first launched, so that the first run may already be inside a
// capture.
#include "core/backend.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "cuda/call.hpp"
#include "cuda/commit.hpp"
#include "cuda/prepare.hpp"
#include "cuda/select.hpp"
#include "cuda/tuning.hpp"
#include "op/commit.hpp"
#include "op/violation.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace cuda {
namespace {

Status cuda_status(std::string_view what, cudaError_t error) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // it is reported here; the caller's own last error is not to be it
  return {Code::kUnavailable, concat(what, ": ", cudaGetErrorString(error))};
}

// The runtime works on the current device; a plan for another one is refused rather than moved.
Status require_current(Device device, std::string_view argument) {
  int current = -1;
  if (Status status = cuda_status("device", cudaGetDevice(&current)); !status.ok()) return status;
  if (current == device.index) return {};
  return {Code::kInvalidArgument,
          concat("device: ", argument, " is on cuda:", std::int64_t{device.index},
                 ", but the current device is cuda:", std::int64_t{current})};
}

const Kernels& kernels_of(const Problem& p) {
  const bool f32_weights = p.weight_dtype == DType::kF32;
  switch (p.x_dtype) {
    case DType::kF16:
      return kernels_f16(p.width, p.activation, f32_weights);
    case DType::kBF16:
      return kernels_bf16(p.width, p.activation, f32_weights);
    default:
      return kernels_f32(p.width, p.activation, f32_weights);
  }
}

Entry entry_of(const Problem& p, Kernel kernel) {
  const Features features = features_of(p);
  const bool plain = features == Features::kPlain, gated = features == Features::kGated;
  const bool f32_states = features == Features::kF32States;
  switch (kernel) {
    case Kernel::kTiles:
      if (gated) return kernels_of(p).gated_tiles;
      if (f32_states) return kernels_of(p).f32_state_tiles;
      return plain ? kernels_of(p).tiles : kernels_of(p).full_tiles;
    case Kernel::kShortSequences:
      return kernels_of(p).short_sequences;
    case Kernel::kSmallTiles:
      return kernels_of(p).small_tiles;
    case Kernel::kNumberedTiles:
      return kernels_of(p).numbered_tiles;
    case Kernel::kDecode:
      if (features == Features::kRings) return kernels_of(p).ring_decode;
      return plain ? kernels_of(p).decode : kernels_of(p).full_decode;
    case Kernel::kSmallDecode:
      if (gated) return kernels_of(p).gated_decode;
      if (f32_states) return kernels_of(p).f32_state_decode;
      return plain ? kernels_of(p).small_decode : kernels_of(p).older_decode;
    case Kernel::kDrafts:
      if (gated) return kernels_of(p).gated_drafts;
      return plain ? kernels_of(p).drafts : kernels_of(p).full_drafts;
    case Kernel::kTrees:
      return plain ? kernels_of(p).trees : kernels_of(p).full_trees;
    case Kernel::kColumns:
      return kernels_of(p).columns;
    case Kernel::kChunks:
      return kernels_of(p).chunks;
    case Kernel::kGeneral:
      break;
  }
  return general_kernel();
}

// Which kernels are known to be loaded, and to have code that waits for the kernel before, one bit
// a device. Only a cache: a lost entry costs a second question, and a collision of two kernels too.
constexpr std::size_t kLoadedSlots = 1024;
struct Loaded {
  std::atomic<Entry> entry{nullptr};
  std::atomic<std::uint64_t> devices{0};
  std::atomic<std::uint64_t> waits{0};
};
std::array<Loaded, kLoadedSlots> loaded;

// Programmatic dependent launch came with this architecture; code that was compiled for older ones
// does not wait, wherever it runs.
constexpr int kFirstToWait = 90;

Status load(Entry entry, int device, bool* waits = nullptr) {
  Loaded& slot = loaded[(reinterpret_cast<std::uintptr_t>(entry) >> 4) % kLoadedSlots];
  const std::uint64_t bit = std::uint64_t{1} << (device % 64);
  const bool known = slot.entry.load(std::memory_order_acquire) == entry;
  if (known && (slot.devices.load(std::memory_order_acquire) & bit) != 0) {
    if (waits != nullptr) *waits = (slot.waits.load(std::memory_order_relaxed) & bit) != 0;
    return {};
  }
  cudaFuncAttributes attributes;
  if (Status status = cuda_status("device", cudaFuncGetAttributes(&attributes, entry));
      !status.ok()) {
    return status;
  }
  const bool can_wait = attributes.ptxVersion >= kFirstToWait;
  if (waits != nullptr) *waits = can_wait;
  Entry none = nullptr;
  if (known || slot.entry.compare_exchange_strong(none, entry, std::memory_order_acq_rel)) {
    if (can_wait) slot.waits.fetch_or(bit, std::memory_order_relaxed);
    slot.devices.fetch_or(bit, std::memory_order_release);
  }
  return {};
}

// A thread takes one number of those that rules are about.
std::int64_t violation_blocks(const Problem& p) {
  return (violation_numbers(p) - 1) / kViolationThreads + 1;
}

Status plan_violations(const Problem& p) {
  if (violation_blocks(p) > kMostBlocks) {
    return {Code::kUnsupported, concat("violations: needs ", violation_blocks(p),
                                       " blocks; a grid has at most ", kMostBlocks)};
  }
  if (Status status = require_current(p.device, "x"); !status.ok()) return status;
  for (const Entry entry : {clear_report_kernel(), count_violations_kernel()}) {
    if (Status status = load(entry, p.device.index); !status.ok()) return status;
  }
  return {};
}

Status plan_cuda(const Problem& p, PlanStorage& storage) {
  for (const DType dtype : {p.x_dtype, p.out_dtype, p.weight_dtype, p.state_dtype}) {
    if (dtype == DType::kF64) {
      return {Code::kUnsupported, "backend: 'cuda' has no f64; the reference backend has"};
    }
  }
  Choice choice;
  if (Status status = select(p, choice); !status.ok()) return status;
  if (choice.aligned.blocks > 0) {
    if (Status status = require_current(p.device, "x"); !status.ok()) return status;
    choice.aligned_entry = entry_of(p, choice.aligned.kernel);
    choice.otherwise_entry = entry_of(p, choice.otherwise.kernel);
    if (choice.aligned.replacing_blocks > 0) {
      if (Status status = load(replace_histories_kernel(), p.device.index); !status.ok()) {
        return status;
      }
    }
    bool waits = false;
    if (Status status = load(choice.aligned_entry, p.device.index, &waits); !status.ok()) {
      return status;
    }
    if (!waits) choice.aligned.grid.overlap = Overlap::kNone;
    if (Status status = load(choice.otherwise_entry, p.device.index); !status.ok()) return status;
  }
  if (p.has_violations) {
    if (Status status = plan_violations(p); !status.ok()) return status;
  }
  store_choice(storage, choice);
  return {};
}

// A GPU has no unaligned loads: an element at an odd address would end the caller's context.
bool aligned(const void* address, DType dtype) {
  const auto bytes = static_cast<std::uintptr_t>(element_bytes(dtype));
  return (reinterpret_cast<std::uintptr_t>(address) & (bytes - 1)) == 0;  // twenty divisions less
}

Status refuse_unaligned(const char* argument) {
  if (argument == nullptr) return {};
  return {Code::kInvalidArgument,
          concat(argument, ": address is not a multiple of the size of its elements")};
}

Status check_alignment(const Problem& p, const Addresses& at) {
  const char* argument = nullptr;
  if (!aligned(at.x, p.x_dtype)) argument = "x";
  if (!aligned(at.out, p.out_dtype)) argument = "out";
  if (!aligned(at.weight, p.weight_dtype)) argument = "weight";
  if (!aligned(at.bias, p.weight_dtype)) argument = "bias";
  if (!aligned(at.state, p.state_dtype)) argument = "state";
  if (!aligned(at.query_start_loc, p.query_start_loc_dtype)) argument = "query_start_loc";
  if (!aligned(at.read_slots, p.read_slots_dtype)) argument = "read_slots";
  if (!aligned(at.write_slots, p.write_slots_dtype)) argument = "write_slots";
  if (!aligned(at.read_offsets, p.read_offsets_dtype)) argument = "read_offsets";
  if (!aligned(at.ring_positions, p.ring_positions_dtype)) argument = "ring_positions";
  if (!aligned(at.snapshots, p.snapshots_dtype)) argument = "snapshots";
  if (!aligned(at.parents, p.parents_dtype)) argument = "parents";
  if (!aligned(at.windows, p.state_dtype)) argument = "windows";
  if (!aligned(at.window_slots, p.window_slots_dtype)) argument = "window_slots";
  if (!aligned(at.block_sequence, DType::kI32)) argument = "block_sequence";
  if (!aligned(at.block_offset, DType::kI32)) argument = "block_offset";
  if (!aligned(at.violations, DType::kI64)) argument = "violations";
  if (!aligned(at.input_gate, p.x_dtype)) argument = "input_gate";
  if (!aligned(at.output_gate, p.x_dtype)) argument = "output_gate";
  if (!aligned(at.seq_idx, p.seq_idx_dtype)) argument = "seq_idx";
  return refuse_unaligned(argument);
}

Status launch_kernel(Entry entry, std::int64_t blocks, std::int32_t threads, Overlap overlap,
                     void** arguments, void* stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = overlap == Overlap::kNone ? 0 : 1;
  return cuda_status("launch", cudaLaunchKernelExC(&config, entry, arguments));
}

Status run_violations(const Problem& p, const Addresses& at, void* stream) {
  void* arguments[] = {const_cast<Problem*>(&p), const_cast<Addresses*>(&at)};
  constexpr std::int32_t kWarp = 32;  // a thread for each word of the report
  static_assert(2 * kViolations <= kWarp);
  if (Status status =
          launch_kernel(clear_report_kernel(), 1, kWarp, Overlap::kNone, arguments, stream);
      !status.ok()) {
    return status;
  }
  return launch_kernel(count_violations_kernel(), violation_blocks(p), kViolationThreads,
                       Overlap::kNone, arguments, stream);
}

Status replace_histories(const Problem& p, const Addresses& at, std::int64_t blocks, void* stream) {
  Grid grid;
  grid.channel_blocks = FastDivisor(static_cast<std::uint32_t>(blocks / p.snapshots));
  void* arguments[] = {const_cast<Problem*>(&p), const_cast<Addresses*>(&at), &grid};
  return launch_kernel(replace_histories_kernel(), blocks, kGeneralThreads, Overlap::kNone,
                       arguments, stream);
}

Status run_cuda(const Problem& p, const PlanStorage& storage, const Addresses& at, void* stream) {
  const auto choice = load_choice<Choice>(storage);
  if (choice.aligned.blocks == 0 && !p.has_violations) return {};
  if (Status status = check_alignment(p, at); !status.ok()) return status;
  if (Status status = require_current(p.device, "x"); !status.ok()) return status;
  if (p.has_violations) {
    if (Status status = run_violations(p, at, stream); !status.ok()) return status;
  }
  if (choice.aligned.blocks == 0) return {};

  Launch launch;
  const Entry entry = launch_for(choice, at, launch);
  if (takes_call(launch.kernel)) {
    Call call = call_of(p, at, launch.grid);
    void* arguments[] = {&call};
    if (Status status = launch_kernel(entry, launch.blocks, launch.threads, launch.grid.overlap,
                                      arguments, stream);
        !status.ok() || launch.replacing_blocks == 0) {
      return status;
    }
    return replace_histories(p, at, launch.replacing_blocks, stream);
  }
  void* arguments[] = {const_cast<Problem*>(&p), const_cast<Addresses*>(&at), &launch.grid};
  return launch_kernel(entry, launch.blocks, launch.threads, Overlap::kNone, arguments, stream);
}

Status plan_commit(const CommitProblem& p, PlanStorage& storage) {
  CommitChoice choice;
  if (Status status = select_commit(with_adjacent_channels(p), choice); !status.ok()) {
    return status;
  }
  if (choice.elements.blocks > 0) {
    if (Status status = require_current(p.device, "windows"); !status.ok()) return status;
    choice.elements.entry = commit_kernel(element_bytes(p.dtype));
    choice.vectors.entry = commit_kernel(kVectorBytes);
    for (const Entry entry : {choice.elements.entry, choice.vectors.entry}) {
      if (Status status = load(entry, p.device.index); !status.ok()) return status;
    }
  }
  store_choice(storage, choice);
  return {};
}

Status check_alignment(const CommitProblem& p, const CommitAddresses& at) {
  const char* argument = nullptr;
  if (!aligned(at.windows, p.dtype)) argument = "windows";
  if (!aligned(at.state, p.dtype)) argument = "state";
  if (!aligned(at.accepted, p.accepted_dtype)) argument = "accepted";
  if (!aligned(at.slots, p.slots_dtype)) argument = "slots";
  if (!aligned(at.second_slots, p.second_slots_dtype)) argument = "second_slots";
  if (!aligned(at.query_start_loc, p.query_start_loc_dtype)) argument = "query_start_loc";
  return refuse_unaligned(argument);
}

Status run_commit(const CommitProblem& problem, const PlanStorage& storage,
                  const CommitAddresses& at, void* stream) {
  const auto choice = load_choice<CommitChoice>(storage);
  if (Status status = check_alignment(problem, at); !status.ok()) return status;
  if (Status status = require_current(problem.device, "windows"); !status.ok()) return status;

  CommitProblem p = with_adjacent_channels(problem);
  CommitLaunch launch = launch_for(choice, at);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.blocks), static_cast<unsigned>(launch.strips));
  config.blockDim = dim3(kCommitThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {&p, const_cast<CommitAddresses*>(&at), &launch.grid};
  return cuda_status("launch", cudaLaunchKernelExC(&config, launch.entry, arguments));
}

// Index preparation: `call` goes to the kernel by value.
template <typename Call>
Status launch_preparation(const Call& call, std::string_view argument, Entry entry,
                          std::int64_t blocks, int threads, void* stream) {
  if (Status status = require_current(call.device, argument); !status.ok()) return status;
  if (Status status = load(entry, call.device.index); !status.ok()) return status;
  if (blocks > kMostBlocks) {
    return {Code::kUnsupported,
            concat(argument, ": needs ", blocks, " blocks; a grid has at most ", kMostBlocks)};
  }
  if (blocks == 0) return {};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {const_cast<Call*>(&call)};
  return cuda_status("launch", cudaLaunchKernelExC(&config, entry, arguments));
}

/// A thread takes one item.
template <typename Call>
Status launch_items(const Call& call, std::string_view argument, Entry entry, std::int64_t items,
                    void* stream) {
  return launch_preparation(call, argument, entry, prepare_blocks(items), kPrepareThreads, stream);
}

bool aligned(const IndexTensor& tensor) { return aligned(tensor.data, tensor.dtype); }

Status run_block_snapshots(const BlockSnapshots& call, void* stream) {
  const char* argument = nullptr;
  if (!aligned(call.query_start_loc)) argument = "query_start_loc";
  if (!aligned(call.computed_tokens)) argument = "computed_tokens";
  if (!aligned(call.block_slots)) argument = "block_slots";
  if (!aligned(call.snapshots)) argument = "snapshots";
  if (Status status = refuse_unaligned(argument); !status.ok()) return status;
  return launch_items(call, "query_start_loc", block_snapshots_kernel(), call.rows, stream);
}

Status run_tree_parents(const TreeParents& call, void* stream) {
  const char* argument = nullptr;
  if (!aligned(call.first_child)) argument = "first_child";
  if (!aligned(call.next_sibling)) argument = "next_sibling";
  if (!aligned(call.query_start_loc)) argument = "query_start_loc";
  if (!aligned(call.parents)) argument = "parents";
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
  const auto choice = load_choice<Choice>(storage);
  if (choice.aligned.blocks == 0) return "nothing to do";
  return concat(name(choice.aligned.kernel), ", ", name(p.schedule), ", ", choice.aligned.blocks,
                " blocks of ", std::int64_t{choice.aligned.threads}, " threads");
}

}  // namespace
}  // namespace cuda

extern const Backend kCudaBackend{
    .id = BackendId::kCuda,
    .device = DeviceType::kCuda,
    .info = cuda::cuda_info,
    .plan = cuda::plan_cuda,
    .run = cuda::run_cuda,
    .describe = cuda::describe_cuda,
    .plan_commit = cuda::plan_commit,
    .run_commit = cuda::run_commit,
    .block_snapshots = cuda::run_block_snapshots,
    .tree_parents = cuda::run_tree_parents,
};

}  // namespace shortconv
