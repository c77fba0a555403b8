#include "core/check.hpp"
#include "cuda/commit.hpp"

namespace shortconv::cuda {
namespace {

constexpr std::int64_t kMostBlocks = 0x7fffffff;  // of a grid's first axis, and of FastDivisor

bool has_vectors(const CommitProblem& p) {
  const std::int64_t group = kVectorBytes / element_bytes(p.dtype);
  // A stride that is never taken may be anything.
  const auto keeps_groups = [&](std::int64_t extent, std::int64_t stride) {
    return extent <= 1 || stride % group == 0;
  };
  return p.windows_channel == 1 && p.state_channel == 1 && p.channels % group == 0 &&
         keeps_groups(p.layers, p.windows_layer) && keeps_groups(p.sequences, p.windows_sequence) &&
         keeps_groups(p.tokens, p.windows_token) && keeps_groups(p.width - 1, p.windows_row) &&
         keeps_groups(p.layers, p.state_layer) && keeps_groups(p.slots, p.state_slot) &&
         keeps_groups(p.state_columns, p.state_column);
}

Status cut_grid(const CommitProblem& p, std::int64_t unit_bytes, CommitLaunch& launch) {
  const std::int64_t bytes = element_bytes(p.dtype);
  const std::int64_t channels = unit_bytes / bytes;
  launch.grid.units = p.channels / channels;
  launch.grid.windows_step = channels * p.windows_channel * bytes;
  launch.grid.state_step = channels * p.state_channel * bytes;
  const std::int64_t unit_blocks = (launch.grid.units + kCommitThreads - 1) / kCommitThreads;
  // No product of three exceeds 2^62: make_commit_problem saw to it.
  launch.blocks = p.layers * p.sequences * unit_blocks;
  if (launch.blocks > kMostBlocks) {
    return {Code::kUnsupported,
            concat("windows: needs ", launch.blocks, " blocks of the commit kernel; a grid has at ",
                   "most ", kMostBlocks)};
  }
  if (launch.blocks == 0) return {};
  launch.strips = (p.width - 1 + kCommitRows - 1) / kCommitRows;
  launch.grid.sequences = FastDivisor(static_cast<std::uint32_t>(p.sequences));
  launch.grid.unit_blocks = FastDivisor(static_cast<std::uint32_t>(unit_blocks));
  return {};
}

}  // namespace

Status select_commit(const CommitProblem& p, CommitChoice& choice) {
  choice = {};
  if (has_vectors(p)) {
    if (Status status = cut_grid(p, kVectorBytes, choice.vectors); !status.ok()) return status;
  }
  return cut_grid(p, element_bytes(p.dtype), choice.elements);
}

const CommitLaunch& launch_for(const CommitChoice& choice, const CommitAddresses& at) {
  const auto aligned = [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % kVectorBytes == 0;
  };
  const bool vectors = choice.vectors.blocks > 0 && aligned(at.windows) && aligned(at.state);
  return vectors ? choice.vectors : choice.elements;
}

}  // namespace shortconv::cuda
