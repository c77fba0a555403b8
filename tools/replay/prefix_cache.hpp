#pragma once

#include <compare>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <vector>

namespace shortconv::tools {

/// The states after beginnings of prompts that lie in slots of their own, so that later requests
/// need not compute these beginnings again. The ones not used for longest make room for others.
/// Within one call no slot is both read and written, nor read before the call that writes it.
class PrefixCache {
 public:
  /// So many tokens of that request's prompt, as a name for all prompts that begin alike.
  struct Prefix {
    std::int64_t request = 0;
    std::int64_t tokens = 0;

    friend auto operator<=>(const Prefix&, const Prefix&) = default;
  };

  PrefixCache(std::int32_t first_slot, std::int64_t slots);

  /// What was added before is there to be read from now on, and every slot may be given up again.
  void begin_call() { ++call_; }

  /// The slot that holds the state after `prefix`.
  [[nodiscard]] std::optional<std::int32_t> find(const Prefix& prefix);

  /// A slot that the call at hand writes the state after `prefix` to; none when there is one
  /// already, or when this call uses all of them.
  [[nodiscard]] std::optional<std::int32_t> add(const Prefix& prefix);

 private:
  struct Entry {
    Prefix prefix;
    std::int32_t slot;
    std::int64_t written;  // in this call
    std::int64_t used;     // in this call last
  };
  using Entries = std::list<Entry>;

  void touch(Entries::iterator entry);

  Entries entries_;  // in order of their last use
  std::map<Prefix, Entries::iterator> by_prefix_;
  std::vector<std::int32_t> free_slots_;  // a stack
  std::int64_t call_ = 0;
};

}  // namespace shortconv::tools
