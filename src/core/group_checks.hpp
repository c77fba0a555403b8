// The rules for groups of channels, head maps, norms and gates, of forward and of backward calls.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "shortconv/groups.hpp"

namespace shortconv {

/// `group` is the name of the group, or empty for a norm by itself.
inline void check_norm(Checker& check, std::string_view group, const L2Norm& norm) {
  const auto require = [&](bool condition, std::string_view member, float value,
                           std::string_view expected) {
    if (group.empty()) {
      check.require(condition, member, "is ", value, "; expected ", expected);
    } else {
      check.require(condition, group, member, " is ", value, "; expected ", expected);
    }
  };
  require(norm.eps > 0 && std::isfinite(norm.eps), "eps", norm.eps, "a positive number");
  require(std::isfinite(norm.scale), "scale", norm.scale, "a finite number");
}

/// Replaces defaults, and refuses maps that leave `columns`.
inline HeadMap check_map(Checker& check, std::string_view argument, HeadMap map, std::int64_t heads,
                         std::int64_t head_dim, std::int64_t columns) {
  for (const std::int64_t part : {map.offset, map.head_stride, map.block_heads, map.block_stride}) {
    check.require(part >= 0 && part <= kMaxSize, argument, "map has a member of ", part,
                  "; expected 0 to 2^52");
  }
  if (map.head_stride == 0) map.head_stride = head_dim;
  if (map.block_heads == 0) map.block_heads = std::max<std::int64_t>(heads, 1);
  check.require(map.block_heads >= heads || map.block_stride > 0, argument, "map has blocks of ",
                map.block_heads, " heads, but block_stride is 0");
  if (!check.ok() || heads == 0 || head_dim == 0) return map;
  const auto wide = [](std::int64_t number) { return static_cast<__int128>(number); };
  const std::int64_t heads_of_block = std::min(map.block_heads, heads);
  const __int128 last = map.offset + wide((heads - 1) / map.block_heads) * map.block_stride +
                        wide(heads_of_block - 1) * map.head_stride + head_dim - 1;
  check.require(last < columns, argument, "map reaches beyond the ", columns,
                " columns of its rows");
  return map;
}

/// The tensor of a group, and its sizes.
inline void check_group_tensor(ArgumentChecker& check, const Argument& row,
                               const ChannelGroup& group, AxisSet absent, GroupLayout& layout) {
  check.size(Size::kHeads) = {"heads"};
  check.size(Size::kHeadDim) = {"head_dim"};
  check.check(row, group.out, layout.out, absent);
  if (!check.ok()) return;
  layout.heads = check.value(Size::kHeads);
  layout.head_dim = check.value(Size::kHeadDim);
  const __int128 channels = static_cast<__int128>(layout.heads) * layout.head_dim;
  check.require(channels <= kMaxSize, row.name, "has more than 2^52 channels");
  check.require(layout.out.channel_stride == 1 || !layout.out.has_elements, row.name,
                "has a channel stride of ", layout.out.channel_stride, "; expected 1");
}

/// The rest of a group whose tensor has been checked. `columns`: of x.
inline void check_group_options(ArgumentChecker& check, std::string_view name, const Argument& row,
                                const ChannelGroup& group, std::int64_t columns,
                                GroupLayout& layout) {
  check.require(std::isfinite(group.input_scale), name, "input_scale is ", group.input_scale,
                "; expected a finite number");
  if (group.copy) {
    check.require(group.out.dtype == check.x_dtype, row.name, "dtype is ",
                  shortconv::name(group.out.dtype), ", but the group copies x, which has ",
                  shortconv::name(check.x_dtype));
    check.require(!group.l2_norm && group.input_scale == 1, name,
                  "is copied; expected neither l2_norm nor input_scale");
  }
  layout.copy = group.copy;
  layout.input_scale = group.input_scale;
  layout.normalize = group.l2_norm.has_value();
  layout.l2_norm = group.l2_norm.value_or(L2Norm{});
  check_norm(check, name, layout.l2_norm);
  layout.input = check_map(check, name, group.input, layout.heads, layout.head_dim, columns);
}

/// Maps and options of gates or of their gradients, whose tensors have been checked.
template <typename Args, typename AnyGates>
void check_gate_maps(ArgumentChecker& check, const Args& args, AnyGates& p) {
  check.check_enumerator("decay", kDecayForms, args.decay);
  check.require(args.beta_factor == 1 || args.beta_factor == 2, "beta_factor", "is ",
                args.beta_factor, "; expected 1 or 2");
  p.heads = check.value(Size::kHeads);
  p.decay = args.decay;
  p.beta_factor = args.beta_factor;
  p.a_map = check_map(check, "a", args.a_map, p.heads, 1, check.value(Size::kColumnsOfA));
  p.b_map = check_map(check, "b", args.b_map, p.heads, 1, check.value(Size::kColumnsOfB));
}

}  // namespace shortconv
