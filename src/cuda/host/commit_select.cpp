#include "core/check.hpp"
#include "cuda/host/commit.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kMaxBlocks = 0x7fffffff;  // limit of gridDim.x and of FastDivisor

bool is_vectorizable(const CommitProblem& p) {
  const std::int64_t group = kVectorBytes / element_bytes(p.state.dtype);
  // The stride of an axis with one element is unused.
  const auto keeps_groups = [&](std::int64_t extent, std::int64_t stride) {
    return extent <= 1 || stride % group == 0;
  };
  return p.intermediate_states.channel_stride == 1 && p.state.channel_stride == 1 &&
         p.channels % group == 0 && keeps_groups(p.layers, p.intermediate_states.layer_stride) &&
         keeps_groups(p.sequences, p.intermediate_states.sequence_stride) &&
         keeps_groups(p.tokens, p.intermediate_states.token_stride) &&
         keeps_groups(p.width - 1, p.intermediate_states.column_stride) &&
         keeps_groups(p.layers, p.state.layer_stride) &&
         keeps_groups(p.slot_count, p.state.slot_stride) &&
         keeps_groups(p.state_columns, p.state.column_stride);
}

Status divide_grid(const CommitProblem& p, std::int64_t unit_bytes, CommitLaunchConfig& launch) {
  const std::int64_t bytes = element_bytes(p.state.dtype);
  const std::int64_t channels = unit_bytes / bytes;
  launch.params.units = p.channels / channels;
  launch.params.intermediate_stride_bytes = channels * p.intermediate_states.channel_stride * bytes;
  launch.params.state_stride_bytes = channels * p.state.channel_stride * bytes;
  const std::int64_t unit_blocks = (launch.params.units + kCommitThreads - 1) / kCommitThreads;
  // No product of three exceeds 2^62: make_problem checks it.
  launch.blocks = p.layers * p.sequences * unit_blocks;
  if (launch.blocks > kMaxBlocks) {
    return {Code::kUnsupported,
            concat("intermediate_states: needs ", launch.blocks,
                   " blocks of the commit kernel; a grid has at most ", kMaxBlocks)};
  }
  if (launch.blocks == 0) return {};
  launch.strips = (p.width - 1 + kCommitRows - 1) / kCommitRows;
  launch.params.sequences = FastDivisor(static_cast<std::uint32_t>(p.sequences));
  launch.params.unit_blocks = FastDivisor(static_cast<std::uint32_t>(unit_blocks));
  return {};
}

}  // namespace

Status select_commit(const CommitProblem& p, CommitConfig& config) {
  config = {};
  if (is_vectorizable(p)) {
    if (Status status = divide_grid(p, kVectorBytes, config.vectors); !status.ok()) return status;
  }
  return divide_grid(p, element_bytes(p.state.dtype), config.elements);
}

const CommitLaunchConfig& launch_for(const CommitConfig& config, const CommitPointers& at) {
  const auto aligned = [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % kVectorBytes == 0;
  };
  const bool vectors =
      config.vectors.blocks > 0 && aligned(at.intermediate_states) && aligned(at.state);
  return vectors ? config.vectors : config.elements;
}

}  // namespace shortconv::cuda
