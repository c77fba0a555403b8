// The structs of the C ABI as arguments of the C++ API.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "core/check.hpp"
#include "shortconv/arguments.hpp"
#include "shortconv/groups.hpp"
#include "shortconv/prepare.hpp"
#include "shortconv/shortconv.h"

namespace shortconv {

inline Status invalid(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }

// Fields missing in the caller's header are zero; fields missing in this one must be zero.
template <typename Args>
Status read_args(const Args* from, std::size_t smallest, Args& args) {
  constexpr std::size_t kLargestStruct = 4096;
  if (from == nullptr) return invalid("args: is null");
  const std::size_t size = from->struct_size;
  const bool whole_fields = size % alignof(Args) == 0;  // no partial pointer
  if (size < smallest || size > kLargestStruct || !whole_fields) {
    return invalid(concat("args: struct_size is ", static_cast<std::int64_t>(size),
                          "; expected at least ", static_cast<std::int64_t>(smallest),
                          " and a multiple of ", static_cast<std::int64_t>(alignof(Args))));
  }
  args = {};
  std::memcpy(&args, from, std::min(size, sizeof args));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  if (std::any_of(bytes + std::min(size, sizeof args), bytes + size,
                  [](unsigned char b) { return b != 0; })) {
    return invalid("args: fields unknown to this version are not zero");
  }
  return {};
}

Status convert(const shortconv_forward_args* from, ForwardArgs& to);
Status convert(const shortconv_commit_args* from, CommitArgs& to);
Status convert(const shortconv_backward_args* from, BackwardArgs& to);
/// The arguments of a call with groups, which refer to its own array of them.
template <typename Args>
struct OwnedGroups {
  Args args;
  std::array<ChannelGroup, kMaxGroups> groups;
};
Status convert(const shortconv_grouped_args* from, OwnedGroups<GroupedArgs>& to);
Status convert(const shortconv_grouped_backward_args* from, OwnedGroups<GroupedBackwardArgs>& to);
Status convert(const shortconv_l2_norm_args* from, L2NormArgs& to);
Status convert(const shortconv_gate_args* from, GateArgs& to, BackendId& backend);
Status convert(const shortconv_block_snapshots_args* from, BlockSnapshotsArgs& to);
Status convert(const shortconv_tree_parents_args* from, TreeParentsArgs& to);

}  // namespace shortconv
