// Threads that share the items of a call: one pool for the process.
//
// The calling thread works on its own call and never waits for a thread of the pool to start, only
// for threads that have started to work on it. A call therefore ends without any other thread:
// after fork(), where threads cannot be created, and where they get no processor in time. Calls of
// several threads share the pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace shortconv {

/// Largest number of threads of a call. Fewer already saturate the memory of any machine.
inline constexpr int kMaxThreads = 256;

/// Items of a call, each of which is taken once.
class Items {
 public:
  explicit Items(std::int64_t count) : count_(count) {}

  /// The next item; -1 if all are taken.
  std::int64_t take() {
    const std::int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count_ ? item : -1;
  }

 private:
  const std::int64_t count_;
  std::atomic<std::int64_t> next_{0};
};

/// Calls function(context) on the calling thread and on up to threads - 1 others, once each, and
/// returns when all have returned. The first return means that no work is left.
void run_on_threads(int threads, void (*function)(void* context), void* context) noexcept;

/// Calls body(Items&) on up to `threads` threads, the calling one among them. Each takes items
/// until none is left; a thread that takes none is harmless unless it is the calling one. `body`
/// does not throw.
template <typename Body>
void share_items(int threads, std::int64_t count, const Body& body) {
  struct Shared {
    Items items;
    const Body& body;
  } shared{Items(count), body};
  const auto work = [](void* context) {
    auto& call = *static_cast<Shared*>(context);
    call.body(call.items);
  };
  const auto most = static_cast<int>(std::min<std::int64_t>(count, std::min(threads, kMaxThreads)));
  if (most <= 1) return work(&shared);
  run_on_threads(most, work, &shared);
}

/// Calls body(item) for each item of [0, count), on up to `threads` threads.
template <typename Body>
void for_each_item(int threads, std::int64_t count, const Body& body) {
  share_items(threads, count, [&](Items& items) {
    for (std::int64_t item = items.take(); item >= 0; item = items.take()) body(item);
  });
}

}  // namespace shortconv
