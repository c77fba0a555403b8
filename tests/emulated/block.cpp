#include "block.hpp"

#include <ucontext.h>

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "device.hpp"

#ifdef SHORTCONV_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace shortconv::emulated {
namespace {

/// Where a stack continues, and its bounds for the address sanitizer.
struct Context {
  ucontext_t registers{};
  const void* stack = nullptr;
  std::size_t bytes = 0;
  void* shadow = nullptr;
};

void leave(Context& from, [[maybe_unused]] const Context& to) {
#ifdef SHORTCONV_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.shadow, to.stack, to.bytes);
#endif
  swapcontext(&from.registers, &to.registers);
#ifdef SHORTCONV_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.shadow, nullptr, nullptr);
#endif
}

/// A stack for threads.
struct Fiber {
  explicit Fiber(void (*start)()) {
    context.stack = memory.get();
    context.bytes = kBytes;
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = memory.get();
    context.registers.uc_stack.ss_size = kBytes;
    makecontext(&context.registers, start, 0);
  }

  static constexpr std::size_t kBytes = std::size_t{128} << 10;
  std::unique_ptr<std::byte[]> memory = std::make_unique_for_overwrite<std::byte[]>(kBytes);
  Context context;
};

std::string text_of(const std::source_location& place) {
  const std::string_view file = place.file_name();
  const std::size_t folder = file.rfind("cuda/");
  return std::string(file.substr(folder == std::string_view::npos ? 0 : folder)) + ":" +
         std::to_string(place.line());
}

bool same(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name();
}

class Block {
 public:
  std::optional<std::string> run(int threads, tools::Random& random,
                                 const std::function<void()>& body) {
    body_ = &body;
    threads_.assign(static_cast<std::size_t>(threads), {});
    failure_.reset();
    while (!failure_ && choose_order(random)) {
      for (turn_ = 0; turn_ < threads_.size() && !failure_;) take_turn();
      if (!failure_) settle();
    }
    if (failure_) give_up();
    return failure_;
  }

  const LaneValues& exchange(WarpOperation operation, std::uint32_t mask, std::uint32_t value,
                             const std::source_location& place) {
    Thread& thread = threads_[current_];
    thread.phase = Phase::kInWarpOperation;
    thread.operation = operation;
    thread.mask = mask;
    thread.value = value;
    thread.place = place;
    leave(thread.fiber->context, main_);
    return lane_values_[current_ / kWarp];
  }

  void wait_for_all(const std::source_location& place) {
    Thread& thread = threads_[current_];
    thread.phase = Phase::kAtBarrier;
    thread.place = place;
    leave(thread.fiber->context, main_);
  }

  [[noreturn]] void fail(std::string_view what) {
    failure_ = "thread " + std::to_string(current_) + " of block " + std::to_string(blockIdx.x) +
               ": " + std::string(what);
    for (;;) leave(threads_[current_].fiber->context, main_);
  }

 private:
  enum class Phase : std::uint8_t { kNew, kReady, kRuns, kInWarpOperation, kAtBarrier, kEnded };
  struct Thread {
    Phase phase = Phase::kNew;
    WarpOperation operation{};
    std::uint32_t mask = 0, value = 0;
    std::source_location place;
    Fiber* fiber = nullptr;
  };

  /// Draws the thread that runs first and the direction in which the others follow. False if all
  /// have ended.
  bool choose_order(tools::Random& random) {
    first_ = static_cast<std::size_t>(random.between(0, std::ssize(threads_) - 1));
    upwards_ = random.chance(0.5);
    for (const Thread& thread : threads_) {
      if (thread.phase != Phase::kEnded) return true;
    }
    return false;
  }
  [[nodiscard]] unsigned thread_of_turn() const {
    const std::size_t count = threads_.size();
    return static_cast<unsigned>((upwards_ ? first_ + turn_ : first_ + count - turn_) % count);
  }

  void take_turn() {
    current_ = thread_of_turn();
    ++turn_;
    Thread& thread = threads_[current_];
    if (thread.phase == Phase::kNew) {
      thread.fiber = idle_fiber();
    } else if (thread.phase != Phase::kReady) {
      return;
    }
    thread.phase = Phase::kRuns;
    threadIdx.x = current_;
    leave(main_, thread.fiber->context);
  }

  Fiber* idle_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(&Block::run_on_fiber));
      return fibers_.back().get();
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  static void run_on_fiber();
  /// Runs threads one after the other as long as the next one has no stack yet. Threads without
  /// warp operations share one stack.
  void run_threads() {
    for (;;) {
      (*body_)();
      Fiber* fiber = threads_[current_].fiber;
      threads_[current_].phase = Phase::kEnded;
      if (turn_ < threads_.size() && threads_[thread_of_turn()].phase == Phase::kNew) {
        current_ = thread_of_turn();
        ++turn_;
        threads_[current_].phase = Phase::kRuns;
        threads_[current_].fiber = fiber;
        threadIdx.x = current_;
        continue;
      }
      idle_.push_back(fiber);
      leave(fiber->context, main_);
    }
  }

  /// Called when no thread can run: completes the warp operations or, if there are none, the
  /// barrier.
  void settle() {
    bool completed = false;
    for (std::size_t first = 0; first < threads_.size(); first += kWarp) {
      completed |= complete_warp_operation(first);
    }
    if (completed || failure_) return;
    const Thread* other = nullptr;
    for (Thread& thread : threads_) {
      if (thread.phase == Phase::kEnded) continue;
      if (other != nullptr && !same(thread.place, other->place)) {
        failure_ = "threads wait for their block at " + text_of(other->place) + " and at " +
                   text_of(thread.place);
      }
      other = &thread;
      thread.phase = Phase::kReady;
    }
  }

  /// False if the warp from thread `first` on is in no warp operation.
  bool complete_warp_operation(std::size_t first) {
    const std::span<Thread> warp(&threads_[first], kWarp);
    const Thread* other = nullptr;
    LaneValues& result = lane_values_[first / kWarp];
    result = {};
    for (std::size_t lane = 0; lane < kWarp; ++lane) {
      const Thread& thread = warp[lane];
      if (thread.phase == Phase::kEnded) continue;
      result.values[lane] = thread.value;
      result.lanes |= 1u << lane;
      if (other != nullptr) compare(thread, *other);
      other = &thread;
    }
    if (failure_ || other == nullptr || other->phase != Phase::kInWarpOperation) return false;
    if ((result.lanes & ~other->mask) != 0) {
      failure_ = "the mask lacks active lanes at " + text_of(other->place);
    }
    for (Thread& thread : warp) {
      if (thread.phase == Phase::kInWarpOperation) thread.phase = Phase::kReady;
    }
    return true;
  }

  void compare(const Thread& a, const Thread& b) {
    if (a.phase != b.phase || a.operation != b.operation || !same(a.place, b.place)) {
      failure_ = "lanes of a warp are at " + text_of(a.place) + " and at " + text_of(b.place);
    } else if (a.phase == Phase::kInWarpOperation && a.mask != b.mask) {
      failure_ = "lanes have different masks at " + text_of(a.place);
    }
  }

  /// Abandons the threads.
  void give_up() {
    fibers_.clear();
    idle_.clear();
  }

  Context main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  const std::function<void()>* body_ = nullptr;
  std::vector<Thread> threads_;
  std::array<LaneValues, 1024 / kWarp> lane_values_{};
  std::optional<std::string> failure_;
  std::size_t turn_ = 0, first_ = 0;
  unsigned current_ = 0;
  bool upwards_ = true;
};

Block block;

void Block::run_on_fiber() {
#ifdef SHORTCONV_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &block.main_.stack, &block.main_.bytes);
#endif
  block.run_threads();
}

}  // namespace

std::optional<std::string> run_block(int threads, tools::Random& random,
                                     const std::function<void()>& body) {
  return block.run(threads, random, body);
}

void fail(std::string_view what) { block.fail(what); }

const LaneValues& exchange(WarpOperation operation, std::uint32_t mask, std::uint32_t value,
                           const std::source_location& place) {
  return block.exchange(operation, mask, value, place);
}

void wait_for_block(const std::source_location& place) { block.wait_for_all(place); }

}  // namespace shortconv::emulated
