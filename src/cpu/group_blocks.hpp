// How the CPU backend divides the channels of a grouped call into blocks.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "op/groups.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cpu {

/// Adjacent channels of one group, in x and in the group's output.
struct GroupBlock {
  const GroupLayout* group = nullptr;  // null: the gates, all heads
  void* out = nullptr;                 // the group's output
  std::int64_t channel = 0;            // first of the block, counted in its group
  std::int64_t channels = 0;
  std::int64_t column = 0;      // of `channel` in x
  std::int64_t out_offset = 0;  // of `channel` in a row of the output
};

/// Blocks are numbered: those of convolved groups, then those of copied ones, then the gates.
class GroupBlocks {
 public:
  /// `limit`: channels of a block. Blocks of normalized groups are whole heads.
  GroupBlocks(const GroupedProblem& p, const GroupedPointers& at, std::int64_t limit)
      : p_(p), at_(at) {
    number_blocks(false, limit);
    convolved_ = count_;
    number_blocks(true, limit);
    copied_ = count_;
    if (p.has_gates && p.gates.heads > 0) ++count_;
  }

  [[nodiscard]] std::int64_t count() const { return count_; }
  [[nodiscard]] std::int64_t convolved_count() const { return convolved_; }

  [[nodiscard]] const GroupedProblem& problem() const { return p_; }
  [[nodiscard]] const GroupedPointers& pointers() const { return at_; }

  [[nodiscard]] GroupBlock operator[](std::int64_t block) const {
    if (block >= copied_) return {};
    for (std::size_t i = 0; i < p_.used_groups().size(); ++i) {
      const GroupLayout& group = p_.groups[i];
      const Runs& runs = runs_[i];
      const std::int64_t number = block - runs.first_block;
      if (number < 0 || number >= runs.blocks) continue;
      const std::int64_t head = number / runs.pieces * runs.heads;
      const std::int64_t from = number % runs.pieces * runs.piece_channels;
      const std::int64_t heads = std::min(runs.heads, group.heads - head);
      return {.group = &group,
              .out = at_.groups[i],
              .channel = head * group.head_dim + from,
              .channels = std::min(runs.piece_channels, heads * group.head_dim - from),
              .column = column_of(group.input, head) + from,
              .out_offset = head * group.out.head_stride + from};
    }
    return {};
  }

 private:
  /// Heads whose channels are adjacent in x and in the output, divided into pieces.
  struct Runs {
    std::int64_t first_block = 0, blocks = 0;
    std::int64_t heads = 1;
    std::int64_t pieces = 1, piece_channels = 0;
  };

  static std::int64_t adjacent_heads(const GroupLayout& group) {
    const HeadMap& map = group.input;
    if (group.out.head_stride != group.head_dim || map.head_stride != group.head_dim) return 1;
    const bool adjacent_blocks =
        map.block_heads >= group.heads || map.block_stride == map.block_heads * group.head_dim;
    return adjacent_blocks ? group.heads : map.block_heads;
  }

  void number_blocks(bool copied, std::int64_t limit) {
    for (std::size_t i = 0; i < p_.used_groups().size(); ++i) {
      const GroupLayout& group = p_.groups[i];
      Runs& runs = runs_[i];
      if (group.copy != copied) continue;
      runs.first_block = count_;
      if (group.channels() == 0) continue;
      runs.heads = adjacent_heads(group);
      const std::int64_t channels = runs.heads * group.head_dim;
      runs.piece_channels = std::min(channels, limit);
      if (group.normalize) runs.piece_channels -= runs.piece_channels % group.head_dim;
      runs.pieces = (channels + runs.piece_channels - 1) / runs.piece_channels;
      // The last run may have fewer heads, and pieces.
      const std::int64_t whole = group.heads / runs.heads;
      const std::int64_t rest = group.heads % runs.heads * group.head_dim;
      runs.blocks = whole * runs.pieces + (rest + runs.piece_channels - 1) / runs.piece_channels;
      count_ += runs.blocks;
    }
  }

  const GroupedProblem& p_;
  const GroupedPointers& at_;
  std::array<Runs, kMaxGroups> runs_;
  std::int64_t count_ = 0, convolved_ = 0, copied_ = 0;
};

}  // namespace shortconv::cpu
