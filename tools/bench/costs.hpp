// The calls of `shortconv costs`: what each width, type, layout and feature costs, alone
// and in the pairs that matter. docs/costs.md is made of them.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "bench/call_layout.hpp"
#include "bench/measure.hpp"
#include "bench/shapes.hpp"

namespace shortconv::tools::bench {

struct Cost {
  std::string operation;  // kind of call
  std::string types;      // of rows, weights and states
  std::string feature;    // "none", or what the call has besides
  Shape shape;            // its name is that of the row
  CallOptions options;
};

/// Each once: operations, then widths, types and features.
[[nodiscard]] std::span<const Cost> costs();

/// What a row is, its kernel and, if `row` is not null, its measurement.
[[nodiscard]] nlohmann::ordered_json to_json(const Cost& cost, std::string_view kernel,
                                             const Row* row);
/// The same as text.
[[nodiscard]] std::string cost_header(bool is_measured);
[[nodiscard]] std::string cost_line(const Cost& cost, std::string_view kernel, const Row* row);

}  // namespace shortconv::tools::bench
