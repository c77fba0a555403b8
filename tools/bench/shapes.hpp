// The calls that `shortconv bench` measures.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/front.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::tools::bench {

enum class Layout { kTokenMajor, kChannelMajor };
enum class StateLayout { kChannelInnermost, kWindowInnermost };

/// Which sequences of a forward call continue from their state; the other calls continue all.
enum class Resumed {
  kEverySecond,
  kSingleTokens,  // decodes among prefills
};

struct Shape {
  std::string name;
  std::string description;
  std::int64_t channels = 0;
  std::vector<std::int64_t> lengths = {};  // tokens of each sequence
  Op op = Op::kForward;
  Layout layout = Layout::kTokenMajor;
  StateLayout state_layout = StateLayout::kChannelInnermost;
  Resumed resumed_ones = Resumed::kEverySecond;
  std::vector<std::int32_t> parents = {};  // verify: the tree of each sequence's draft tokens
  bool window_slots = false;               // verify: windows in slots, of drafts of equal length
  bool rings = false;                      // states are rings, whose newest input stands anywhere
  bool older = false;                      // states have a column before the history
  bool in_place = false;                   // results replace x
  bool gated = false;                      // inputs and results, x and gates thirds of one tensor
  bool residual = false;                   // x is added to the results
  std::int64_t snapshot_tokens = 0;        // a snapshot after every so many tokens; 0: none
  bool checked = false;                    // with a report of the checked mode
  std::int64_t commit_layers = 0;  // a commit of that many layers after such a verify call; 0: none
  bool gradients = false;          // a backward call: gradients of x and of the weights
  bool seq_idx = false;            // row numbers in place of bounds, and no states
  bool states = false;  // of a backward call: initial states, and gradients of both states
  std::optional<Front> front = {};  // a call with groups; `channels` are its convolved ones
  bool gpu_only = false;  // left out where a CPU would take long; there, it has to be named

  [[nodiscard]] std::int64_t sequences() const { return std::ssize(lengths); }
  [[nodiscard]] std::int64_t tokens() const;
  [[nodiscard]] std::int64_t snapshots() const;
  [[nodiscard]] bool resumed(std::int64_t sequence) const;
};

[[nodiscard]] std::span<const Shape> shapes();

}  // namespace shortconv::tools::bench
