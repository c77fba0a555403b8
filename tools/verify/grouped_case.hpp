// A random forward or decode call with groups, its memory, and its check.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shortconv/plan.hpp"
#include "verify/buffers.hpp"
#include "verify/case.hpp"
#include "verify/check.hpp"

namespace shortconv::tools::verify {

struct GroupSpec {
  TensorSpec out;  // the last two axes are heads and head_dim
  HeadMap input;
  bool copy = false;
  std::optional<L2Norm> l2_norm;
  float input_scale = 1;

  [[nodiscard]] std::int64_t heads() const { return out.shape[out.shape.size() - 2]; }
  [[nodiscard]] std::int64_t head_dim() const { return out.shape.back(); }
};

struct GateSpec {
  TensorSpec a, b, a_log, dt_bias, g, beta;
  HeadMap a_map, b_map;
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;
  bool round_beta = false;
};

struct GroupedCase {
  std::uint64_t seed = 0;
  Case call;        // the call without groups: its x has the inputs in the order of the channels
  TensorSpec rows;  // x of the call with groups
  std::vector<GroupSpec> groups;
  bool share_outputs = false;  // the groups' outputs are columns of one tensor
  std::optional<GateSpec> gates;
};

/// The same case for the same seed, always. Half of the cases are as engines have them.
[[nodiscard]] GroupedCase make_grouped_case(std::uint64_t seed,
                                            std::span<const std::uint8_t> choices = {});

/// As of other cases; "op" is "groups".
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> traits(
    const GroupedCase& problem);
[[nodiscard]] TraitValues possible_grouped_traits();

[[nodiscard]] std::string to_string(const GroupedCase& problem);

/// The call with groups gives the bits of the call without them, of l2_norm and of delta_gates on
/// the same backend: outputs, states and the report of the checked mode. Rows of padding as the
/// policy says; no other byte written, guard bands included. Two NaN count as equal.
[[nodiscard]] Verdict check_grouped(const GroupedCase& problem, BackendId backend);

/// Gates and norms by themselves against the reference backend: norms bit for bit, gates within
/// 2e-6 of their magnitude.
[[nodiscard]] std::optional<std::string> check_group_operations(const GroupedCase& problem,
                                                                BackendId backend);

}  // namespace shortconv::tools::verify
