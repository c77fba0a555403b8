#pragma once

#include "core/prepare.hpp"
#include "shortconv/status.hpp"

namespace shortconv::cpu {

// On one thread: a step has some hundred entries, thousands at most.
Status block_snapshots(const BlockSnapshots& call, void* stream);
Status tree_parents(const TreeParents& call, void* stream);

}  // namespace shortconv::cpu
