// Calls with groups that the tile kernels compute in one launch.
#pragma once

#include "core/backend.hpp"
#include "cuda/group_params.hpp"
#include "cuda/host/select.hpp"

namespace shortconv::cuda {

/// What a plan keeps. The addresses of a call must be aligned.
struct GroupTileConfig {
  LaunchConfig launch;  // no blocks: the tile kernels do not support the call
  Alignment alignment;
  KernelFunction function = nullptr;
  // As in GroupTileParams.
  std::uint32_t convolved_blocks = 0, channel_blocks = 0, convolving_blocks = 0;
  std::uint32_t tile_rounds = 1, copy_rounds = 1;
  std::int32_t tile_gate_blocks = 0;
  GroupKernel kernel = GroupKernel::kTiles;
  bool has_gates = false;  // false: the gates need a launch of their own
};

/// Everything but the function.
[[nodiscard]] GroupTileConfig select_group_tiles(const GroupedProblem& problem,
                                                 const DeviceProperties& device,
                                                 const TuningPolicy& policy);

/// Copied columns that the kernel cannot move, such as two gates of each head, have a launch of
/// their own.
[[nodiscard]] bool has_own_launch(const GroupLayout& group);

/// Whether the tile kernels compute the norm of a group. Wider heads have a launch for it after
/// them.
[[nodiscard]] bool is_normalized_in_tiles(const GroupLayout& group);

/// Whether the addresses of a call are aligned as the kernel needs them.
[[nodiscard]] bool are_aligned(const GroupedProblem& problem, const GroupTileConfig& config,
                               const GroupedPointers& pointers);

[[nodiscard]] GroupTileParams make_group_tile_params(const GroupedProblem& problem,
                                                     const GroupTileConfig& config,
                                                     const GroupedPointers& pointers);

}  // namespace shortconv::cuda
