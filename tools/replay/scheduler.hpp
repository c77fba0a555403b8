#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace shortconv::tools {

/// One request of a serving engine. Every token, generated ones included, goes through the layer.
struct Request {
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;

  [[nodiscard]] std::int64_t tokens() const { return prompt_tokens + output_tokens; }
};

struct SchedulerOptions {
  std::int64_t chunk = 8192;       ///< prompt tokens of one call at most
  std::int64_t max_running = 256;  ///< requests that hold a slot at most; also the slots there are
  std::int64_t draft = 0;  ///< tokens by which a step advances a request; 0: plain one-token decode
  bool mixed = false;      ///< prompts and steps share calls
};

enum class CallKind : std::uint8_t { kExtend, kDraftExtend, kDecode, kMixed };
inline constexpr int kCallKinds = 4;

[[nodiscard]] std::string_view name(CallKind kind);

/// The share of one request in one call.
struct Segment {
  std::int64_t request = 0;
  std::int64_t first_token = 0;
  std::int64_t count = 0;
  std::int32_t slot = 0;
  bool resumed = false;  ///< continues from its slot; otherwise the slot holds someone else's state
  bool finishes = false;  ///< the last segment of the request; its slot is free after this call
};

struct Call {
  CallKind kind = CallKind::kExtend;
  std::int64_t tokens = 0;
  std::vector<Segment> segments;
};

/// Turns requests into the calls of continuous batching, prompts first: while a prompt waits and a
/// slot is free, a call takes prompt tokens up to the chunk, cutting the last prompt; otherwise
/// every running request advances by a step. Pure and deterministic.
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
  };

  [[nodiscard]] std::int64_t step_tokens(const Active& active) const;
  void advance(Active& active, std::int64_t count, Call& call) const;
  bool admit();
  void add_prompts(std::int64_t budget, Call& call, std::vector<Active>& prefilled);

  std::span<const Request> requests_;
  SchedulerOptions options_;
  std::int64_t waiting_ = 0;              // the next request to admit
  std::optional<Active> prefilling_;      // the one whose prompt is cut
  std::vector<Active> running_;           // prompt done, in order of admission
  std::vector<std::int32_t> free_slots_;  // a stack
};

}  // namespace shortconv::tools
