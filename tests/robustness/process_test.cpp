// Calls with threads in processes that fork, exit, or may not have threads: docs/robustness.md.
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

#include "robustness/batch.hpp"

// The leak sanitizer asks this before it looks. In a forked child it would report the buffers of
// threads that fork() left behind.
static bool is_child = false;
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off();
int __lsan_is_turned_off() { return is_child ? 1 : 0; }

namespace shortconv {
namespace {

constexpr int kFailed = 99;

// The exit code of a child that runs body(), or minus the signal that ended it: SIGALRM if it
// hangs.
template <typename Body>
int in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    is_child = true;
    alarm(60);
    _exit(body() ? 0 : kFailed);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool can_create_thread() {
  pthread_t thread;
  if (pthread_create(&thread, nullptr, [](void*) -> void* { return nullptr; }, nullptr) != 0) {
    return false;
  }
  pthread_join(thread, nullptr);
  return true;
}

TEST(Processes, ForkedChildCallsWithThreadsAfterItsParentDid) {
  ASSERT_TRUE(Batch(4).is_right());
  EXPECT_EQ(in_child([] { return Batch(4).is_right(); }), 0);
  EXPECT_TRUE(Batch(4).is_right());
}

TEST(Processes, ForkedChildOfAForkedChildCallsWithThreads) {
  ASSERT_TRUE(Batch(4).is_right());
  EXPECT_EQ(in_child([] {
              return Batch(4).is_right() && in_child([] { return Batch(4).is_right(); }) == 0;
            }),
            0);
}

TEST(Processes, ChildForkedDuringCallsOfOtherThreads) {
  ASSERT_TRUE(Batch(4).is_right());
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      Batch batch(3);
      while (!stop) (void)forward(batch.args());
    });
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(in_child([] {
                Batch batch(4);  // without the vectors and comparisons of is_right
                return forward(batch.args()).ok();
              }),
              0);
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
}

TEST(Processes, ForkedChildExitsWithoutWaitingForThreadsOfItsParent) {
  ASSERT_TRUE(Batch(4).is_right());
  EXPECT_EQ(in_child([]() -> bool { std::exit(0); }), 0);
  EXPECT_EQ(in_child([]() -> bool { std::exit(Batch(4).is_right() ? 0 : kFailed); }), 0);
}

TEST(Processes, ExitDuringACallOfAnotherThread) {
  EXPECT_EQ(in_child([]() -> bool {
              std::atomic<int> calls{0};
              auto* batch = new Batch(4);
              std::thread([&calls, batch] {
                for (;;) calls += forward(batch->args()).ok() ? 1 : 0;
              }).detach();
              while (calls < 3) usleep(1000);
              std::exit(0);
            }),
            0);
}

TEST(Processes, NoMoreProcessesAllowed) {
  EXPECT_EQ(in_child([] {
              const rlimit none{0, 0};
              if (setrlimit(RLIMIT_NPROC, &none) != 0) return false;
              // The limit does not hold for root.
              if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return false;
              return !can_create_thread() && Batch(4).is_right() && Batch(4).is_right();
            }),
            0);
}

TEST(Processes, NoAddressSpaceForStacksOfThreads) {
  EXPECT_EQ(in_child([] {
              constexpr rlim_t kStack = 256 << 20, kRoom = 64 << 20;
              pthread_attr_t attributes;
              pthread_attr_init(&attributes);
              pthread_attr_setstacksize(&attributes, kStack);
              if (pthread_setattr_default_np(&attributes) != 0) return false;
              rlim_t pages = 0;
              std::ifstream("/proc/self/statm") >> pages;
              const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + kRoom;
              const rlimit limit{bytes, bytes};
              if (setrlimit(RLIMIT_AS, &limit) != 0) return false;
              return !can_create_thread() && Batch(4).is_right();
            }),
            0);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end the process instead
TEST(Processes, NoMemoryForTheBuffersOfAThread) {
  EXPECT_EQ(in_child([] {
              bool refused = false;
              std::thread([&] {  // has made no call
                Batch batch(1);
                const Batch before = batch;
                const rlimit limit{1, 1};  // less than there is already
                if (setrlimit(RLIMIT_AS, &limit) != 0) return;
                constexpr std::size_t kPiece = 128 << 10;  // a third of what the call needs
                void* volatile piece = nullptr;            // or the compiler removes the loop
                do piece = std::malloc(kPiece);
                while (piece != nullptr);
                const Status status = forward(batch.args());
                refused = status.code() == Code::kOutOfMemory &&
                          status.message().starts_with("memory: ") && batch.has_bits_of(before);
              })
                  .join();
              return refused;
            }),
            0);
}
#endif

// With enough items for all of them.
TEST(Processes, AbsurdNumbersOfThreads) {
  constexpr std::int64_t kMany = 900'000;
  std::vector<float> x(kMany, 3.0f), weight(2, 0.5f);
  std::vector<std::int32_t> accepted(kMany, 0);
  for (const std::int32_t threads :
       {1000, 100'000, 1'000'000, std::numeric_limits<std::int32_t>::max()}) {
    std::vector<float> out(kMany), pool(kMany);
    ForwardArgs args;
    args.x = TensorRef::contiguous(x.data(), DType::kF32, {kMany, 1});
    args.out = TensorRef::contiguous(out.data(), DType::kF32, {kMany, 1});
    args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {1, 2});
    args.options.threads = threads;
    EXPECT_EQ(in_child([&] { return forward(args).ok() && out.back() == 3.0f; }), 0) << threads;

    CommitArgs copies;
    copies.intermediate_states = TensorRef::contiguous(x.data(), DType::kF32, {1, kMany, 1, 1});
    copies.state = TensorRef::contiguous(pool.data(), DType::kF32, {1, kMany, 1, 1});
    copies.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {kMany});
    copies.width = 2;
    copies.rows_per_token = 1;
    copies.threads = threads;
    EXPECT_EQ(in_child([&] { return commit(copies).ok() && pool == x; }), 0) << threads;
  }
}

// A signal for the process must reach a thread of the application.
TEST(Processes, ThreadsOfThePoolTakeNoSignals) {
  EXPECT_EQ(in_child([] {
              if (!Batch(4).is_right()) return false;
              sigset_t signals;
              sigemptyset(&signals);
              sigaddset(&signals, SIGUSR1);
              pthread_sigmask(SIG_BLOCK, &signals, nullptr);
              kill(getpid(), SIGUSR1);
              const timespec second{1, 0};
              return sigtimedwait(&signals, nullptr, &second) == SIGUSR1;
            }),
            0);
}

}  // namespace
}  // namespace shortconv
