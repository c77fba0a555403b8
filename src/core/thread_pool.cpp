#include "core/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <chrono>

namespace shortconv {
namespace {

// How long a thread of the pool looks for the next call before it sleeps, and a caller for the end
// of its call. Waking a thread takes 5 to 60 us, and calls of a model follow each other at such
// distances. Both yield meanwhile: without, a call that shares its processor with a thread of the
// pool takes 46 us instead of 21 (two threads of two busy processors).
constexpr std::chrono::microseconds kIdleSpin{50}, kEndSpin{5};

struct Call {
  void (*function)(void*);
  void* context;
  int open_threads;  // further threads that may work on it
  std::atomic<int> working{0};
  bool open = false;  // in the list of the pool
  Call* next = nullptr;
  pthread_cond_t left = PTHREAD_COND_INITIALIZER;
};

// Plain data, so that neither the order of static destructors nor fork() matters. `mutex` protects
// all but `posted`, which is written under it.
struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  std::atomic<std::uint32_t> posted{0};  // calls so far
  Call* calls = nullptr;                 // that further threads may work on
  int threads = 0;
  int sleeping = 0;
  int calls_until_retry = 0;  // after a thread could not be created
  bool handles_fork = false;
  bool stopping = false;
  pthread_t handles[kMaxThreads];
};
constinit Pool pool{};

class Lock {
 public:
  Lock() { pthread_mutex_lock(&pool.mutex); }
  ~Lock() { pthread_mutex_unlock(&pool.mutex); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
};

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Until done(), but not longer than `time`.
template <typename Done>
void spin(std::chrono::microseconds time, const Done& done) {
  const auto end = std::chrono::steady_clock::now() + time;
  do {
    sched_yield();
    for (int i = 0; i < 16; ++i) {
      if (done()) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
}

void close(Call& call) {
  if (!call.open) return;
  Call** link = &pool.calls;
  while (*link != &call) link = &(*link)->next;
  *link = call.next;
  call.open = false;
}

void post(Call& call) {
  Call** link = &pool.calls;
  while (*link != nullptr) link = &(*link)->next;
  *link = &call;
  call.open = true;
  pool.posted.fetch_add(1, std::memory_order_relaxed);
  if (call.open_threads >= pool.sleeping) {
    pthread_cond_broadcast(&pool.wake);
  } else {
    for (int i = 0; i < call.open_threads; ++i) pthread_cond_signal(&pool.wake);
  }
}

void* work(void*) {
  pthread_mutex_lock(&pool.mutex);
  while (!pool.stopping) {
    Call* const call = pool.calls;
    if (call == nullptr) {
      const std::uint32_t seen = pool.posted.load(std::memory_order_relaxed);
      pthread_mutex_unlock(&pool.mutex);
      spin(kIdleSpin, [&] { return pool.posted.load(std::memory_order_relaxed) != seen; });
      pthread_mutex_lock(&pool.mutex);
      if (pool.calls != nullptr || pool.stopping) continue;
      ++pool.sleeping;
      pthread_cond_wait(&pool.wake, &pool.mutex);
      --pool.sleeping;
      continue;
    }
    if (--call->open_threads == 0) close(*call);
    call->working.fetch_add(1, std::memory_order_relaxed);
    pthread_mutex_unlock(&pool.mutex);
    call->function(call->context);
    pthread_mutex_lock(&pool.mutex);
    close(*call);  // no work is left
    // The caller cannot leave before this thread unlocks the mutex.
    if (call->working.fetch_sub(1, std::memory_order_relaxed) == 1)
      pthread_cond_signal(&call->left);
  }
  pthread_mutex_unlock(&pool.mutex);
  return nullptr;
}

void before_fork() { pthread_mutex_lock(&pool.mutex); }
void after_fork_in_parent() { pthread_mutex_unlock(&pool.mutex); }

// The child has only the thread that called fork(); calls of other threads do not go on in it.
void after_fork_in_child() {
  const std::uint32_t posted = pool.posted.load(std::memory_order_relaxed);
  pool.mutex = PTHREAD_MUTEX_INITIALIZER;
  pool.wake = PTHREAD_COND_INITIALIZER;
  pool.posted.store(posted, std::memory_order_relaxed);
  pool.calls = nullptr;
  pool.threads = 0;
  pool.sleeping = 0;
  pool.calls_until_retry = 0;
}

// Creates threads until there are `wanted`, as far as that is possible.
void start_threads(int wanted) {
  constexpr int kCallsBetweenRetries = 1000;  // a failure takes as long as a small call
  if (pool.threads >= wanted || pool.stopping) return;
  if (pool.calls_until_retry > 0) {
    --pool.calls_until_retry;
    return;
  }
  if (!pool.handles_fork) {
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) return;
    pool.handles_fork = true;
  }
  // New threads inherit the mask: signals are delivered to threads of the application only.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.threads < wanted) {
    if (pthread_create(&pool.handles[pool.threads], nullptr, work, nullptr) != 0) {
      pool.calls_until_retry = kCallsBetweenRetries;
      break;
    }
    ++pool.threads;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// At exit and before the library is unloaded. Later calls run on the calling thread alone.
struct Shutdown {
  ~Shutdown() {
    pthread_mutex_lock(&pool.mutex);
    pool.stopping = true;
    const int threads = pool.threads;
    pool.threads = 0;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    for (int i = 0; i < threads; ++i) pthread_join(pool.handles[i], nullptr);
  }
} shutdown;

}  // namespace

void run_on_threads(int threads, void (*function)(void*), void* context) noexcept {
  Call call{.function = function, .context = context, .open_threads = threads - 1};
  {
    const Lock lock;
    start_threads(call.open_threads);
    if (pool.threads > 0) post(call);
  }
  function(context);
  {
    const Lock lock;
    close(call);
    if (call.working.load(std::memory_order_relaxed) == 0) return;
  }
  spin(kEndSpin, [&] { return call.working.load(std::memory_order_relaxed) == 0; });
  const Lock lock;   // also if none works any more: the last one may still hold it
  int cancellation;  // pthread_cond_wait would end a cancelled thread with its call half done
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancellation);
  while (call.working.load(std::memory_order_relaxed) > 0) {
    pthread_cond_wait(&call.left, &pool.mutex);
  }
  pthread_setcancelstate(cancellation, nullptr);
}

}  // namespace shortconv
