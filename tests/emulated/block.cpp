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

/// What a stack is left at. The address sanitizer is told which one is in use.
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

/// A stack, with whatever thread runs on it.
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
  std::optional<std::string> run(int threads, std::mt19937& random,
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

  const Answers& ask(Question question, std::uint32_t mask, std::uint32_t value,
                     const std::source_location& place) {
    Thread& thread = threads_[current_];
    thread.phase = Phase::kAsks;
    thread.question = question;
    thread.mask = mask;
    thread.value = value;
    thread.place = place;
    leave(thread.fiber->context, main_);
    return answers_[current_ / kWarp];
  }

  void wait_for_all(const std::source_location& place) {
    Thread& thread = threads_[current_];
    thread.phase = Phase::kWaits;
    thread.place = place;
    leave(thread.fiber->context, main_);
  }

  [[noreturn]] void fail(std::string_view what) {
    failure_ = "thread " + std::to_string(current_) + " of block " + std::to_string(blockIdx.x) +
               ": " + std::string(what);
    for (;;) leave(threads_[current_].fiber->context, main_);
  }

 private:
  enum class Phase : std::uint8_t { kNew, kReady, kRuns, kAsks, kWaits, kEnded };
  struct Thread {
    Phase phase = Phase::kNew;
    Question question{};
    std::uint32_t mask = 0, value = 0;
    std::source_location place;
    Fiber* fiber = nullptr;
  };

  /// Which thread's turn comes first, and whether the others follow upwards or downwards; false if
  /// all have ended.
  bool choose_order(std::mt19937& random) {
    const auto drawn = static_cast<std::size_t>(random());
    first_ = drawn / 2 % threads_.size();
    upwards_ = drawn % 2 == 0;
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
  /// One thread after the other, as long as the next one has no stack yet: threads that ask nothing
  /// do with one.
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

  /// Every thread asks, waits or has ended: answers, or lets those go on that wait.
  void settle() {
    bool asked = false;
    for (std::size_t first = 0; first < threads_.size(); first += kWarp) asked |= answer(first);
    if (asked || failure_) return;
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

  /// Whether the warp from thread `first` on asks something.
  bool answer(std::size_t first) {
    const std::span<Thread> warp(&threads_[first], kWarp);
    const Thread* other = nullptr;
    Answers& answers = answers_[first / kWarp];
    answers = {};
    for (std::size_t lane = 0; lane < kWarp; ++lane) {
      const Thread& thread = warp[lane];
      if (thread.phase == Phase::kEnded) continue;
      answers.values[lane] = thread.value;
      answers.lanes |= 1u << lane;
      if (other != nullptr) compare(thread, *other);
      other = &thread;
    }
    if (failure_ || other == nullptr || other->phase != Phase::kAsks) return false;
    if ((answers.lanes & ~other->mask) != 0) {
      failure_ = "the mask lacks lanes that ask at " + text_of(other->place);
    }
    for (Thread& thread : warp) {
      if (thread.phase == Phase::kAsks) thread.phase = Phase::kReady;
    }
    return true;
  }

  void compare(const Thread& a, const Thread& b) {
    if (a.phase != b.phase || a.question != b.question || !same(a.place, b.place)) {
      failure_ = "lanes of a warp are at " + text_of(a.place) + " and at " + text_of(b.place);
    } else if (a.phase == Phase::kAsks && a.mask != b.mask) {
      failure_ = "lanes ask with different masks at " + text_of(a.place);
    }
  }

  /// Nobody comes back to the threads.
  void give_up() {
    fibers_.clear();
    idle_.clear();
  }

  Context main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  const std::function<void()>* body_ = nullptr;
  std::vector<Thread> threads_;
  std::array<Answers, 1024 / kWarp> answers_{};
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

std::optional<std::string> run_block(int threads, std::mt19937& random,
                                     const std::function<void()>& body) {
  return block.run(threads, random, body);
}

void fail(std::string_view what) { block.fail(what); }

const Answers& ask(Question question, std::uint32_t mask, std::uint32_t value,
                   const std::source_location& place) {
  return block.ask(question, mask, value, place);
}

void wait_for_block(const std::source_location& place) { block.wait_for_all(place); }

}  // namespace shortconv::emulated
