// Parts of a forward call that a grouped call shares.
#pragma once

#include <string>

#include "core/backend.hpp"
#include "cpu/group_blocks.hpp"
#include "cpu/worker.hpp"

namespace shortconv::cpu {

/// Kernels and form of a call; kUnsupported for f64.
Status choose_kernels(const Problem& p, CpuConfig& config);

/// Divides the rows of a flat schedule into tiles for `config.channel_blocks`.
void set_tiles(const Problem& p, int threads, std::int64_t longest_tile, CpuConfig& config);

/// Runs all items of a call. `groups` is null without groups.
Status run_items(const Problem& p, const CpuConfig& config, const TensorPointers& at,
                 const GroupBlocks* groups);

std::string describe_items(const Problem& p, const CpuConfig& config);

}  // namespace shortconv::cpu
