// A Problem as one line, and as a hash.
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/check.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {
namespace {

/// Visits all fields but the tensors.
template <typename Visit>
void visit_fields(const Problem& p, const Visit& visit) {
  visit("op", p.op);
  visit("backend", p.backend);
  visit("device_type", p.device.type);
  visit("device", p.device.index);
  visit("activation", p.activation);
  visit("epilogue", p.epilogue);
  visit("padded_rows", p.padded_rows);
  visit("initial_state", p.initial_state);
  visit("schedule", p.schedule);
  visit("has_null_slot", p.has_null_slot);
  visit("writes_state", p.writes_state);
  visit("in_place", p.in_place);
  visit("programmatic_launch", p.programmatic_launch);
  visit("width", p.width);
  visit("dilation", p.dilation);
  visit("threads", p.threads);
  visit("tokens", p.tokens);
  visit("channels", p.channels);
  visit("sequences", p.sequences);
  visit("sequence_tokens", p.sequence_tokens);
  visit("slots", p.slots);
  visit("state_columns", p.state_columns);
  visit("base_column", p.base_column);
  visit("shifted_columns", p.shifted_columns);
  visit("null_slot", p.null_slot);
  visit("max_seqlen", p.max_seqlen);
  visit("blocks", p.block_count);
  visit("snapshots", p.snapshot_count);
  visit("intermediate_slots", p.intermediate_slot_count);
  visit("intermediate_tokens", p.intermediate_tokens);
}

template <typename Visit>
void visit_fields(const BackwardProblem& p, const Visit& visit) {
  visit("backend", p.backend);
  visit("device_type", p.device.type);
  visit("device", p.device.index);
  visit("activation", p.activation);
  visit("epilogue", p.epilogue);
  visit("accumulate", p.accumulate);
  visit("width", p.width);
  visit("dilation", p.dilation);
  visit("threads", p.threads);
  visit("tokens", p.tokens);
  visit("channels", p.channels);
  visit("sequences", p.sequences);
  visit("sequence_tokens", p.sequence_tokens);
}

template <typename Visit, Axis... kAxes>
void visit_strides(const TensorLayout<kAxes...>& layout, const Visit& visit) {
  (visit(layout.*Stride<kAxes>::kMember), ...);
}

template <typename T>
concept HasName = requires(T value) { name(value); };

template <typename AnyProblem>
std::string text_of(const AnyProblem& problem) {
  std::string text;
  const auto add = [&](std::string_view label, std::string_view value) {
    text += concat(text.empty() ? "" : " ", label, "=", value);
  };
  std::vector<std::int64_t> defaults;
  visit_fields(AnyProblem{}, [&](std::string_view, auto field) {
    defaults.push_back(static_cast<std::int64_t>(field));
  });
  std::size_t index = 0;
  visit_fields(problem, [&](std::string_view label, auto field) {
    const auto value = static_cast<std::int64_t>(field);
    if (value == defaults[index++]) return;
    if constexpr (HasName<decltype(field)>) {
      add(label, name(field));
    } else {
      add(label, std::to_string(value));
    }
  });
  visit_tensors(
      [&](const Argument& row, const auto& layout) {
        if (!layout.present) return;
        std::string strides;
        visit_strides(layout, [&](std::int64_t stride) {
          strides += concat(strides.empty() ? "" : ",", stride);
        });
        add(row.name, concat(name(layout.dtype), "(", strides, ")"));
      },
      problem);
  return text;
}

}  // namespace

std::size_t hash(const Problem& problem) {
  std::uint64_t mixed = 0xcbf29ce484222325ull;  // FNV-1a over whole fields, with a final shift
  const auto mix = [&](auto field) {
    mixed = (mixed ^ static_cast<std::uint64_t>(field)) * 0x100000001b3ull;
    mixed ^= mixed >> 29;
  };
  visit_fields(problem, [&](std::string_view, auto field) { mix(field); });
  visit_tensors(
      [&](const Argument&, const auto& layout) {
        mix(layout.present);
        mix(layout.dtype);
        visit_strides(layout, mix);
      },
      problem);
  return static_cast<std::size_t>(mixed);
}

std::string to_string(const Problem& problem) { return text_of(problem); }
std::string to_string(const BackwardProblem& problem) { return text_of(problem); }

}  // namespace shortconv
