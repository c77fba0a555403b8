#pragma once

#include "core/prepare.hpp"
#include "shortconv/status.hpp"

namespace shortconv::reference {

Status block_snapshots(const BlockSnapshots& call, void* stream);
Status tree_parents(const TreeParents& call, void* stream);

}  // namespace shortconv::reference
