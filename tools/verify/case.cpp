#include "verify/case.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <span>

#include "shortconv/capability.hpp"

namespace shortconv::tools::verify {
namespace {

std::string_view name_of(Layout layout) {
  switch (layout) {
    case Layout::kTokenMajor:
      return "token-major";
    case Layout::kChannelMajor:
      return "channel-major";
    case Layout::kStrided:
      break;
  }
  return "strided";
}

std::string_view name_of(Op op) {
  switch (op) {
    case Op::kForward:
      return "forward";
    case Op::kDecode:
      return "decode";
    case Op::kVerify:
      break;
  }
  return "verify";
}

std::string_view name_of(WindowsKind kind) {
  switch (kind) {
    case WindowsKind::kNone:
      return "none";
    case WindowsKind::kRows:
      return "rows";
    case WindowsKind::kOverlapping:
      return "overlapping";
    case WindowsKind::kSlots:
      return "slots";
    case WindowsKind::kOverlappingSlots:
      return "overlapping-slots";
    case WindowsKind::kPool:
      break;
  }
  return "pool";
}

std::string_view name_of(InitialState initial) {
  switch (initial) {
    case InitialState::kNone:
      return "none";
    case InitialState::kAll:
      return "all";
    case InitialState::kByFlag:
      break;
  }
  return "by-flag";
}

using Values = std::vector<std::string>;

template <typename T>
Values names_of(std::span<const Named<T>> values) {
  Values names;
  for (const Named<T>& entry : values) names.emplace_back(entry.name);
  return names;
}

// Names of the enumerators from 0 to `last`.
template <typename T>
Values names_up_to(T last) {
  Values names;
  for (int i = 0; i <= static_cast<int>(last); ++i) names.emplace_back(name_of(static_cast<T>(i)));
  return names;
}

Values possible_dilations() {
  const int most_distance = capabilities().max_width - 1;
  std::set<int> dilations;
  for (int taps = 1; taps <= most_distance; ++taps) {
    const int most = most_distance / taps;
    for (const int dilation : {1, 2, 3, 4, most}) dilations.insert(std::min(dilation, most));
  }
  Values names;
  for (const int dilation : dilations) names.push_back(std::to_string(dilation));
  return names;
}

}  // namespace

std::int64_t Case::rows() const {
  return x.shape.size() == 2 ? x.shape[0] : x.shape[0] * x.shape[1];
}

std::int64_t Case::length(std::int64_t sequence) const {
  return starts[sequence + 1] - starts[sequence];
}

std::int64_t Case::read_slot(std::int64_t sequence) const {
  return read_slots ? read_slots->values[sequence] : sequence;
}

std::int64_t Case::write_slot(std::int64_t sequence) const {
  if (!writes_state()) return -1;
  return write_slots ? write_slots->values[sequence] : read_slot(sequence);
}

std::int64_t Case::read_offset(std::int64_t sequence) const {
  if (!read_offsets) return 0;
  const std::int64_t last = state->shape[1] - history() - base_column;
  return std::clamp<std::int64_t>(read_offsets->values[sequence], 0, last);
}

bool Case::resumed(std::int64_t sequence) const {
  switch (initial_state) {
    case InitialState::kNone:
      return false;
    case InitialState::kAll:
      return true;
    case InitialState::kByFlag:
      break;
  }
  return has_initial_state->values[sequence] != 0;
}

std::int64_t Case::ring_column(std::int64_t sequence, std::int64_t input) const {
  const std::int64_t columns = state->shape[1];
  const std::int64_t position = std::max<std::int64_t>(cache_seqlens->values[sequence], 0);
  return ((position % columns + input) % columns + columns) % columns;
}

std::int64_t Case::token_before(std::int64_t sequence, std::int64_t token) const {
  if (!parents || token <= 0) return token - 1;
  const std::int64_t parent = parents->values[starts[sequence] + token];
  return parent >= 0 && parent < token ? parent : -1;
}

SnapshotRow Case::snapshot(std::int64_t number) const {
  const std::int64_t* row = &snapshots->values[3 * number];
  return {row[0], row[1], row[2]};
}

bool Case::is_taken(const SnapshotRow& row) const {
  return row.sequence >= 0 && row.sequence < sequences() && live(row.sequence) && row.token >= 0 &&
         row.token <= length(row.sequence) && valid_slot(row.slot) &&
         row.slot != write_slot(row.sequence);
}

std::optional<std::int64_t> Case::window_offset(std::int64_t sequence, std::int64_t token) const {
  if (!windows) return std::nullopt;
  if (!intermediate_slots) {
    const std::int64_t row = starts[sequence] + token;
    return windows->shape.size() == 3 ? windows->offset({row}) : windows->offset({sequence, token});
  }
  const std::int64_t slot = intermediate_slots->values[sequence];
  const bool captured = slot >= 0 && slot < windows->shape[0] && !(null_slot && slot == *null_slot);
  if (!captured || token >= windows->shape[1]) return std::nullopt;
  return windows->offset({slot, token});
}

bool Case::valid_slot(std::int64_t slot) const {
  return slot >= 0 && (!null_slot || slot != *null_slot) && (!state || slot < slots());
}

std::vector<std::pair<std::string_view, std::string>> traits(const Case& problem) {
  const auto text = [](std::string_view value) { return std::string(value); };
  const auto yes = [](bool value) { return std::string(value ? "yes" : "no"); };
  return {
      {"op", text(name_of(problem.op))},
      {"width", std::to_string(problem.width)},
      {"dtype", text(name(problem.x.dtype))},
      {"out", text(name(problem.out.dtype))},
      {"weight", text(name(problem.weight.dtype))},
      {"state", problem.state ? text(name(problem.state->dtype)) : "none"},
      {"dilation", std::to_string(problem.dilation)},
      {"activation", text(name(problem.activation))},
      {"epilogue", text(name(problem.epilogue))},
      {"input-gate", yes(problem.input_gate.has_value())},
      {"bias", yes(problem.bias.has_value())},
      {"layout", text(name_of(problem.layout))},
      {"packed", yes(problem.query_start_loc.has_value())},
      {"schedule", text(name(problem.schedule))},
      {"threads", std::to_string(problem.threads)},
      {"padded-rows", text(name(problem.padded_rows))},
      {"initial-state", text(name_of(problem.initial_state))},
      {"in-place", yes(problem.in_place)},
      {"older", yes(problem.older() > 0)},
      {"ring", yes(problem.cache_seqlens.has_value())},
      {"snapshots", yes(problem.snapshots.has_value())},
      {"numbered", yes(problem.seq_idx.has_value())},
      {"tree", yes(problem.parents.has_value())},
      {"windows", text(name_of(problem.windows_kind))},
      {"keeps-state", yes(problem.state && problem.writes_state())},
      {"violations", yes(problem.violations.has_value())},
      {"special", yes(problem.special_period != 0)},
  };
}

TraitValues possible_traits() {
  const Capabilities& can = capabilities();
  const Values types = names_of(can.dtypes), yes_or_no{"no", "yes"};
  Values widths, state_types = types;
  for (int width = 2; width <= can.max_width; ++width) widths.push_back(std::to_string(width));
  state_types.emplace_back("none");
  return {
      {"op", names_up_to(Op::kVerify)},
      {"width", widths},
      {"dtype", types},
      {"out", types},
      {"weight", types},
      {"state", state_types},
      {"dilation", possible_dilations()},
      {"activation", names_of(can.activations)},
      {"epilogue", names_of(can.epilogues)},
      {"input-gate", yes_or_no},
      {"bias", yes_or_no},
      {"layout", names_up_to(Layout::kStrided)},
      {"packed", yes_or_no},
      {"schedule", names_of(can.schedules)},
      {"threads", {"1", "2", "3", "8"}},
      {"padded-rows", names_of(can.padded_rows)},
      {"initial-state", names_up_to(InitialState::kByFlag)},
      {"in-place", yes_or_no},
      {"older", yes_or_no},
      {"ring", yes_or_no},
      {"snapshots", yes_or_no},
      {"numbered", yes_or_no},
      {"tree", yes_or_no},
      {"windows", names_up_to(WindowsKind::kPool)},
      {"keeps-state", yes_or_no},
      {"violations", yes_or_no},
      {"special", yes_or_no},
  };
}

std::string to_string(const Case& problem) {
  std::string text = fmt::format("case {}\n ", problem.seed);
  for (const auto& [key, value] : traits(problem)) text += fmt::format(" {}={}", key, value);
  text += fmt::format("\n  x {}\n  out {}\n  weight {}\n", describe(problem.x),
                      problem.in_place ? "= x" : describe(problem.out), describe(problem.weight));
  if (problem.bias) text += fmt::format("  bias {}\n", describe(*problem.bias));
  if (problem.input_gate) {
    text += fmt::format("  input_gate {}\n", describe(*problem.input_gate));
  }
  if (problem.output_gate) {
    text += fmt::format("  output_gate {}\n", describe(*problem.output_gate));
  }
  if (problem.state) {
    text += fmt::format("  state {}, base {}{}\n", describe(*problem.state), problem.base_column,
                        problem.shift_full_state ? ", shift_full_state" : "");
  }
  text += describe("query_start_loc", problem.query_start_loc);
  text += describe("read_slots", problem.read_slots);
  text += describe("write_slots", problem.write_slots);
  text += describe("read_offsets", problem.read_offsets);
  text += describe("has_initial_state", problem.has_initial_state);
  text += describe("cache_seqlens", problem.cache_seqlens);
  text += describe("snapshots", problem.snapshots);
  text += describe("seq_idx", problem.seq_idx);
  text += describe("parents", problem.parents);
  if (problem.windows) text += fmt::format("  windows {}\n", describe(*problem.windows));
  text += describe("intermediate_slots", problem.intermediate_slots);
  if (problem.update_state) text += "  update_state\n";
  if (problem.violations) text += fmt::format("  violations {}\n", describe(*problem.violations));
  if (problem.null_slot) text += fmt::format("  null_slot {}\n", *problem.null_slot);
  if (problem.schedule == Schedule::kSequenceGrid) {
    text += fmt::format("  max_seqlen {}\n", problem.max_seqlen);
  }
  text += fmt::format("  values: x and state scaled by {}", problem.x_scale);
  if (problem.special_period != 0) {
    text += fmt::format(", one in {} NaN or infinite", problem.special_period);
  }
  return text + "\n";
}

}  // namespace shortconv::tools::verify
