// The calls that `shortconv bench` measures.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "shortconv/problem.hpp"

namespace shortconv::tools::bench {

enum class Layout { kTokenMajor, kChannelMajor };
enum class StateLayout { kChannelInnermost, kWindowInnermost };

struct Shape {
  std::string_view name;
  std::string_view description;
  std::int64_t channels;
  std::vector<std::int64_t> lengths;  // tokens of each sequence
  Op op = Op::kForward;
  Layout layout = Layout::kTokenMajor;
  StateLayout state_layout = StateLayout::kChannelInnermost;

  [[nodiscard]] std::int64_t sequences() const { return std::ssize(lengths); }
  [[nodiscard]] std::int64_t tokens() const;
  /// A prefill resumes every second sequence; single tokens of a mixed batch are decodes and always
  /// continue.
  [[nodiscard]] bool resumed(std::int64_t sequence) const;
};

[[nodiscard]] std::span<const Shape> shapes();

}  // namespace shortconv::tools::bench
