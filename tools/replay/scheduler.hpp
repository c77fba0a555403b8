#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "replay/drafts.hpp"
#include "replay/prefix_cache.hpp"

namespace shortconv::tools {

/// One request of a serving engine. Every token, generated ones included, goes through the layer.
struct Request {
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t shares_with = -1;   ///< an earlier request whose prompt begins like this one's,
  std::int64_t shared_tokens = 0;  ///< for so many tokens

  [[nodiscard]] std::int64_t tokens() const { return prompt_tokens + output_tokens; }
};

/// The first of all requests that begin with the same `tokens` tokens as this one.
[[nodiscard]] std::int64_t first_with_prefix(std::span<const Request> requests,
                                             std::int64_t request, std::int64_t tokens);

struct SchedulerOptions {
  std::int64_t chunk = 8192;       ///< prompt tokens of one call at most
  std::int64_t max_running = 256;  ///< requests that hold a slot at most; also their slots
  std::int64_t draft = 0;  ///< tokens by which a step advances a request; 0: plain one-token decode
  bool mixed = false;      ///< prompts and steps share calls

  DraftTree tree{};     ///< rows of a step that are verified before some are accepted; empty: none
  double accept = 0.7;  ///< probability that a draft is, if the one before it was
  std::uint64_t seed = 0;  ///< of acceptance

  std::int64_t prefix_block = 0;  ///< states of prompts are kept after so many tokens; 0: never
  std::int64_t prefix_slots = 0;  ///< for these states, behind those of requests

  [[nodiscard]] std::int64_t slots() const { return max_running + prefix_slots; }
};

enum class CallKind : std::uint8_t { kExtend, kDraftExtend, kDecode, kMixed, kVerify, kCommit };
inline constexpr int kCallKinds = 6;

[[nodiscard]] std::string_view name(CallKind kind);

/// The share of one request in one call.
struct Segment {
  /// The state after that many blocks of the request goes to that slot as well.
  struct Snapshot {
    std::int64_t blocks;
    std::int32_t slot;
  };

  std::int64_t request = 0;
  std::int64_t first_token = 0;
  std::int64_t count = 0;  ///< rows of the call; of a commit, the tokens that are accepted
  std::int32_t slot = 0;
  std::int32_t read_slot = 0;  ///< where its state is: its own slot or, once, that of a snapshot
  bool resumed = false;        ///< has a state; otherwise the slot holds someone else's
  bool finishes = false;  ///< the last segment of the request; its slot is free after this call
  /// Drafts, and their commit: the rows that are what the request goes on with, from first_token.
  std::vector<std::int32_t> accepted{};
  std::vector<Snapshot> snapshots{};

  [[nodiscard]] bool is_draft() const { return !accepted.empty(); }
  [[nodiscard]] bool begins_from_snapshot() const { return read_slot != slot; }
};

struct Call {
  CallKind kind = CallKind::kExtend;
  std::int64_t tokens = 0;    ///< of all segments
  std::int64_t advanced = 0;  ///< by which the requests came nearer to their end
  std::vector<Segment> segments;
};

/// Turns requests into the calls of continuous batching, prompts first: while a prompt waits and a
/// slot is free, a call takes prompt tokens up to the chunk, cutting the last prompt; otherwise
/// every running request advances by a step. With a draft tree a step is verified in one call,
/// with other rows beside the accepted ones, and committed in the next. With a prefix cache a
/// request begins behind the longest part of its prompt whose state is in it. Pure and
/// deterministic.
class Scheduler {
 public:
  /// Every request has at least one prompt token. The requests must outlive the scheduler.
  Scheduler(std::span<const Request> requests, const SchedulerOptions& options);

  /// The next call, or false when every request has finished.
  bool next(Call& call);

 private:
  struct Active {
    std::int64_t request;
    std::int64_t done;
    std::int32_t slot;
    std::int32_t read_slot;
  };

  [[nodiscard]] std::int64_t step_tokens(const Active& active) const;
  void advance(Active& active, std::int64_t count, Call& call) const;
  void verify_step(Active& active, Call& call);
  bool admit();
  void find_prefix(Active& active);
  void take_snapshots(Segment& segment);
  void add_prompts(std::int64_t budget, Call& call, std::vector<Active>& prefilled);

  std::span<const Request> requests_;
  SchedulerOptions options_;
  std::int64_t waiting_ = 0;              // the next request to admit
  std::optional<Active> prefilling_;      // the one whose prompt is cut
  std::vector<Active> running_;           // prompt done, in order of admission
  std::vector<std::int32_t> free_slots_;  // a stack
  PrefixCache cache_;
  Call commit_;  // of the drafts that were verified last; without segments: none
};

}  // namespace shortconv::tools
