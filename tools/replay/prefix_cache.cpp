#include "replay/prefix_cache.hpp"

#include <iterator>

namespace shortconv::tools {

PrefixCache::PrefixCache(std::int32_t first_slot, std::int64_t slots) {
  for (std::int64_t i = slots; i-- > 0;) {
    free_slots_.push_back(first_slot + static_cast<std::int32_t>(i));
  }
}

std::optional<std::int32_t> PrefixCache::find(const Prefix& prefix) {
  const auto found = by_prefix_.find(prefix);
  if (found == by_prefix_.end() || found->second->written == call_) return std::nullopt;
  touch(found->second);
  return found->second->slot;
}

std::optional<std::int32_t> PrefixCache::add(const Prefix& prefix) {
  if (const auto found = by_prefix_.find(prefix); found != by_prefix_.end()) {
    touch(found->second);
    return std::nullopt;
  }
  std::int32_t slot = 0;
  if (!free_slots_.empty()) {
    slot = free_slots_.back();
    free_slots_.pop_back();
  } else {
    if (entries_.empty() || entries_.front().used == call_) return std::nullopt;
    slot = entries_.front().slot;
    by_prefix_.erase(entries_.front().prefix);
    entries_.pop_front();
  }
  entries_.push_back({.prefix = prefix, .slot = slot, .written = call_, .used = call_});
  by_prefix_.emplace(prefix, std::prev(entries_.end()));
  return slot;
}

void PrefixCache::touch(Entries::iterator entry) {
  entry->used = call_;
  entries_.splice(entries_.end(), entries_, entry);
}

}  // namespace shortconv::tools
