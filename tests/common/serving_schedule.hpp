// A small serving run. Requests arrive and end. They are processed in chunks, decodes and drafts
// with random acceptance. Slots are permuted and reused, and later requests begin from snapshots.
// Pools are ordered, rolling or circular. The outputs of a request must equal those of one call
// over all of its tokens bit for bit, and every byte of the pool must be what the specification
// says.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

struct ServingMemory {
  std::function<void*(std::size_t)> allocate;  // the maker of this object frees the memory
  std::function<Status(const ForwardArgs&)> forward_and_wait;
  std::function<Status(const CommitArgs&)> commit_and_wait;
  Device device;
};

/// How often a schedule did each step that has to be tested.
struct ServingCounts {
  int snapshots = 0;
  int begun_from_snapshots = 0;
  int commits = 0;    // of intermediate states
  int rolled_on = 0;  // intermediate states in the pool, committed by the next read offset
  int positions = 0;  // drafts in a circular buffer, committed by the next cache_seqlens
  int runs_again = 0;

  ServingCounts& operator+=(const ServingCounts& other) {
    snapshots += other.snapshots;
    begun_from_snapshots += other.begun_from_snapshots;
    commits += other.commits;
    rolled_on += other.rolled_on;
    positions += other.positions;
    runs_again += other.runs_again;
    return *this;
  }
  void expect_enough(int schedules) const {
    for (const int count :
         {snapshots, begun_from_snapshots, commits, rolled_on, positions, runs_again}) {
      EXPECT_GT(count, schedules / 4);
    }
  }
};

class ServingSchedule {
 public:
  ServingSchedule(const ServingMemory& memory, std::uint32_t seed)
      : memory_(memory), random_(seed) {
    constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
    constexpr int kWidths[] = {2, 3, 4, 4, 5, 6, 7, 8, 9};
    constexpr int kChannels[] = {1, 4, 12, 64, 132};
    constexpr Pool kPools[] = {Pool::kOrdered, Pool::kRolling, Pool::kCircular};
    dtype_ = random_.pick(kTypes);
    bytes_ = element_bytes(dtype_);
    width_ = random_.pick(kWidths);
    history_ = width_ - 1;
    channels_ = random_.pick(kChannels);
    slots_ = random_.between(2, 6);
    pool_kind_ = random_.pick(kPools);
    if (pool_kind_ == Pool::kCircular) {
      columns_ = history_ + (random_.chance(0.6) ? random_.between(kMostDrafts, kMostDrafts + 3)
                                                 : random_.between(0, kMostDrafts - 1));
    } else {
      const std::int64_t used = history_ + (pool_kind_ == Pool::kRolling ? kMostDrafts - 1 : 0);
      columns_ = used + random_.between(0, 2);
      base_ = random_.between(0, columns_ - used);
    }
    columns_innermost_ = random_.chance(0.5);
    activation_ = random_.chance(0.5) ? Activation::kSilu : Activation::kNone;
    weight_ = random_rows(width_);  // has as many elements as [channels, width]
    const std::int64_t bytes = pool_slots() * columns_ * row_bytes();
    pool_ = make(bytes);
    expected_pool_.assign(pool_, pool_ + bytes);
    slot_used_.assign(static_cast<std::size_t>(slots_), false);
    cache_.resize(kCached);
  }

  /// Processes all requests from their arrival to their end.
  void run() {
    arriving_ = random_.between(3, 7);
    while (arriving_ > 0 || !running_.empty()) {
      admit();
      step();
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  [[nodiscard]] const ServingCounts& counts() const { return counts_; }

 private:
  enum class Pool { kOrdered, kRolling, kCircular };
  enum Kind { kChunks, kDecodes, kDrafts };
  // How the state advances after drafts. kCommit: a commit copies an intermediate state. kRoll: the
  // intermediate states are columns of the pool and the next call reads at another offset.
  // kPosition: a circular buffer holds all drafts and the next call has other cache_seqlens.
  // kRunAgain: the accepted tokens are processed again.
  enum class Keep { kCommit, kRoll, kPosition, kRunAgain };
  static constexpr int kMostDrafts = 6;
  static constexpr int kCached = 3;  // slots of snapshots, after those of requests

  struct Request {
    std::int64_t length = 0;
    char* rows = nullptr;      // [length, channels]
    char* expected = nullptr;  // outputs of one call over all tokens
    std::int64_t done = 0;     // tokens
    std::int64_t slot = -1;
    std::int64_t offset = 0;  // of a rolling state
    int begins_from = -1;     // snapshot that its first call reads
  };
  struct Snapshotted {
    const char* rows = nullptr;  // of the request; null before the first snapshot
    std::int64_t length = 0;
    int readers = 0;  // requests that have not read it yet
  };
  struct Part {
    int request = -1;  // -1: padding
    std::int64_t tokens = 0;
    std::int64_t accepted = 0;  // the first ones, equal to tokens except for drafts
  };

  [[nodiscard]] std::int64_t row_bytes() const { return channels_ * bytes_; }
  [[nodiscard]] std::int64_t pool_slots() const { return slots_ + kCached; }
  char* make(std::int64_t bytes) {
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 8));
    auto* data = static_cast<char*>(memory_.allocate(size));
    std::memset(data, 0xff, size);
    return data;
  }
  char* random_rows(std::int64_t rows) {
    char* data = make(rows * row_bytes());
    for (std::int64_t i = 0; i < rows * channels_; ++i) {
      store_element(dtype_, data + i * bytes_, 2.0 * random_.normal());
    }
    return data;
  }
  [[nodiscard]] TensorRef tensor(void* data, std::initializer_list<std::int64_t> shape) const {
    return TensorRef::contiguous(data, dtype_, shape, memory_.device);
  }
  template <typename T>
  TensorRef values(const std::vector<T>& from, DType dtype) {
    const auto count = static_cast<std::int64_t>(from.size());
    char* data = make(count * static_cast<std::int64_t>(sizeof(T)));
    std::copy(from.begin(), from.end(), reinterpret_cast<T*>(data));
    return TensorRef::contiguous(data, dtype, {count}, memory_.device);
  }
  TensorRef indices(const std::vector<std::int64_t>& from) { return values(from, DType::kI64); }

  ForwardArgs call(Op op, char* x, char* out, std::int64_t rows) {
    ForwardArgs args;
    args.op = op;
    args.x = tensor(x, {rows, channels_});
    args.out = tensor(out, {rows, channels_});
    args.weight = tensor(weight_, {channels_, width_});
    args.epilogue.activation = activation_;
    return args;
  }
  TensorRef pool() {
    TensorRef view = tensor(pool_, {pool_slots(), columns_, channels_});
    if (columns_innermost_) {
      view.strides[1] = 1;
      view.strides[2] = columns_;
    }
    return view;
  }

  // Some requests begin with the tokens of a snapshot.
  Request new_request(std::int64_t slot) {
    Request request;
    request.slot = slot;
    const auto cached = static_cast<int>(random_.between(0, kCached - 1));
    Snapshotted& snapshot = cache_[cached];
    const bool hit = snapshot.rows != nullptr && random_.chance(0.7);
    const std::int64_t known = hit ? snapshot.length : 0;
    request.length = known + random_.between(1, 40);
    request.rows = random_rows(request.length);
    request.expected = make(request.length * row_bytes());
    if (hit) {
      std::memcpy(request.rows, snapshot.rows, static_cast<std::size_t>(known * row_bytes()));
      request.done = known;
      request.begins_from = cached;
      ++snapshot.readers;
      ++counts_.begun_from_snapshots;
    }
    const ForwardArgs args = call(Op::kForward, request.rows, request.expected, request.length);
    const Status status = memory_.forward_and_wait(args);
    EXPECT_TRUE(status.ok()) << status.message();
    return request;
  }

  void admit() {
    for (std::int64_t slot = 0; slot < slots_ && arriving_ > 0; ++slot) {
      if (slot_used_[slot] || random_.chance(0.4)) continue;
      slot_used_[slot] = true;
      running_.push_back(new_request(slot));
      --arriving_;
    }
  }

  // One call for some of the requests in any order, with padding and empty sequences among them.
  void step() {
    const Kind kind = static_cast<Kind>(random_.between(0, 2));
    Keep keep = Keep::kCommit;
    if (pool_kind_ == Pool::kRolling && random_.chance(0.7)) keep = Keep::kRoll;
    if (pool_kind_ == Pool::kCircular) {
      keep = columns_ >= history_ + kMostDrafts ? Keep::kPosition : Keep::kRunAgain;
    }
    std::vector<int> order(running_.size());
    std::iota(order.begin(), order.end(), 0);
    random_.shuffle(order);
    std::vector<Part> parts;
    for (const int i : order) {
      if (kind != kDecodes && random_.chance(0.15))
        parts.push_back({.request = -1, .tokens = random_.between(0, 3)});
      if (random_.chance(0.25)) continue;
      const Request& request = running_[i];
      const std::int64_t left = request.length - request.done;
      Part part{.request = i, .tokens = 1};
      if (kind == kChunks) part.tokens = std::min<std::int64_t>(left, random_.between(0, 14));
      if (kind == kDecodes && !resumed(request)) continue;
      if (kind == kDrafts) part.tokens = random_.between(0, kMostDrafts);
      part.accepted = part.tokens;
      if (kind == kDrafts) {  // a rolling state cannot return to the state before the drafts
        const std::int64_t least = keep == Keep::kRoll ? std::min<std::int64_t>(part.tokens, 1) : 0;
        part.accepted = random_.between(least, std::min(left, part.tokens));
      }
      parts.push_back(part);
    }
    if (parts.empty()) return;
    run_parts(kind, keep, parts);
    if (testing::Test::HasFatalFailure()) return;
    if (kind == kDrafts && keep == Keep::kRunAgain) {
      for (Part& part : parts) part.tokens = part.accepted;
      run_parts(kChunks, keep, parts);
    }
    end_requests();
  }

  static std::string describe(const ForwardArgs& args) {
    Problem problem;
    (void)make_problem(args, problem);
    return to_string(problem);
  }
  static bool resumed(const Request& request) {
    return request.done > 0 || request.begins_from >= 0;
  }

  void run_parts(Kind kind, Keep keep, const std::vector<Part>& parts) {
    std::vector<std::int64_t> bounds{0}, read, write, offsets, positions;
    std::vector<std::uint8_t> flags;
    for (const Part& part : parts) {
      bounds.push_back(bounds.back() + part.tokens);
      if (part.request < 0) {
        read.push_back(random_.chance(0.5) ? -1 : pool_slots() + 1);
        write.push_back(read.back());
        flags.push_back(0);
        offsets.push_back(0);
        positions.push_back(random_.between(-5, 5));
        continue;
      }
      const Request& request = running_[part.request];
      const bool begins = request.begins_from >= 0;
      read.push_back(begins ? slots_ + request.begins_from : request.slot);
      write.push_back(request.slot);
      flags.push_back(resumed(request) ? 1 : 0);
      offsets.push_back(begins ? 0 : request.offset);
      positions.push_back(request.done);
    }
    const std::int64_t rows = bounds.back();
    char* x = random_rows(rows);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].request < 0) continue;
      const Request& request = running_[parts[i].request];
      std::memcpy(x + bounds[i] * row_bytes(), request.rows + request.done * row_bytes(),
                  static_cast<std::size_t>(parts[i].accepted * row_bytes()));
    }
    const std::vector<char> given(x, x + rows * row_bytes());
    const bool in_place = kind != kDrafts && random_.chance(0.2);
    char* out = in_place ? x : make(rows * row_bytes());
    constexpr Op kOps[] = {Op::kForward, Op::kDecode, Op::kVerify};
    ForwardArgs args = call(kOps[kind], x, out, rows);
    args.pool.state = pool();
    args.pool.base_column = base_;
    args.pool.read_slots = indices(read);
    if (kind != kDecodes) {
      args.sequences.query_start_loc = indices(bounds);
      args.sequences.has_initial_state = values(flags, DType::kBool);
    }
    if (pool_kind_ == Pool::kCircular) args.pool.cache_seqlens = indices(positions);
    if (pool_kind_ == Pool::kRolling) args.pool.read_offsets = indices(offsets);
    const bool writes = kind != kDrafts || keep == Keep::kPosition;
    if (kind == kDrafts && keep == Keep::kPosition && read == write) {
      args.drafts.update_state = true;
    } else if (writes && (read != write || random_.chance(0.2))) {
      args.pool.write_slots = indices(write);
    }
    std::vector<std::int64_t> snapshots;
    if (kind != kDrafts) {
      snapshots = take_snapshots(parts);
      const auto count = static_cast<std::int64_t>(snapshots.size()) / 3;
      args.pool.snapshots = indices(snapshots);
      args.pool.snapshots->ndim = 2;
      args.pool.snapshots->shape[0] = count;
      args.pool.snapshots->shape[1] = args.pool.snapshots->strides[0] = 3;
      args.pool.snapshots->strides[1] = 1;
    }
    CommitArgs commit;
    if (kind == kDrafts) set_intermediate_states(keep, parts, write, args, commit);
    const Status status = memory_.forward_and_wait(args);
    ASSERT_TRUE(status.ok()) << status.message();

    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].request < 0) continue;
      const Request& request = running_[parts[i].request];
      ASSERT_EQ(0, std::memcmp(out + bounds[i] * row_bytes(),
                               request.expected + request.done * row_bytes(),
                               static_cast<std::size_t>(parts[i].accepted * row_bytes())))
          << "op " << kind << ", from token " << request.done << " of " << request.length << "\n"
          << describe(args);
      if (writes && parts[i].tokens > 0) {
        keep_final(kind, request, parts[i].tokens, given.data() + bounds[i] * row_bytes());
      }
      if (kind == kDrafts && keep == Keep::kRoll) {
        for (std::int64_t j = 0; j < parts[i].tokens + history_ - 1 && parts[i].tokens > 0; ++j) {
          put(request.slot, base_ + j, request, request.done + j - (history_ - 1),
              given.data() + bounds[i] * row_bytes());
        }
      }
    }
    ASSERT_TRUE(is_as_expected()) << "states after op " << kind;
    if (kind == kDrafts && keep == Keep::kCommit) {
      commit.query_start_loc =
          args.drafts.intermediate_slots ? std::nullopt : args.sequences.query_start_loc;
      const Status committed = memory_.commit_and_wait(commit);
      ASSERT_TRUE(committed.ok()) << committed.message();
    }
    for (const Part& part : parts) advance(kind, keep, part);
    ASSERT_TRUE(is_as_expected()) << "states after the commit";
  }

  // The tensors that receive the intermediate states, and the arguments that commit them.
  void set_intermediate_states(Keep keep, const std::vector<Part>& parts,
                               const std::vector<std::int64_t>& slots, ForwardArgs& args,
                               CommitArgs& commit) {
    if (keep == Keep::kRoll) {
      TensorRef states = pool();
      states.data = static_cast<char*>(states.data) + base_ * states.strides[1] * bytes_;
      states.ndim = 4;
      states.shape[3] = channels_;
      states.strides[3] = states.strides[2];
      states.shape[1] = columns_ - base_ - (history_ - 1);
      states.shape[2] = history_;
      states.strides[2] = states.strides[1];
      args.drafts.intermediate_states = states;
      args.drafts.intermediate_slots = indices(slots);
      return;
    }
    if (keep != Keep::kCommit) return;
    const auto sequences = static_cast<std::int64_t>(parts.size());
    const std::int64_t rows = args.x.shape[0];
    commit.width = static_cast<std::int32_t>(width_);
    commit.rows_per_token = commit.width - 1;
    if (random_.chance(0.4)) {  // one slot per sequence, with or without overlap
      const bool overlap = random_.chance(0.5);
      const std::int64_t columns = overlap ? kMostDrafts + history_ - 1 : kMostDrafts * history_;
      char* states = make(sequences * columns * row_bytes());
      commit.intermediate_states = tensor(states, {1, sequences, columns, channels_});
      args.drafts.intermediate_states =
          tensor(states, {sequences, kMostDrafts, history_, channels_});
      args.drafts.intermediate_states->strides[0] = columns * channels_;
      if (overlap) {
        commit.rows_per_token = 1;
        args.drafts.intermediate_states->strides[1] = args.drafts.intermediate_states->strides[2];
      }
      std::vector<std::int64_t> intermediate_slots(static_cast<std::size_t>(sequences));
      std::iota(intermediate_slots.begin(), intermediate_slots.end(), 0);
      args.drafts.intermediate_slots = indices(intermediate_slots);
    } else {
      char* states = make(rows * history_ * row_bytes());
      commit.intermediate_states = tensor(states, {1, rows, history_, channels_});
      args.drafts.intermediate_states = tensor(states, {rows, history_, channels_});
    }
    commit.state = pool();
    commit.state.ndim = 4;
    std::copy_backward(commit.state.shape, commit.state.shape + 3, commit.state.shape + 4);
    std::copy_backward(commit.state.strides, commit.state.strides + 3, commit.state.strides + 4);
    commit.state.shape[0] = 1;
    std::vector<std::int64_t> accepted;
    for (const Part& part : parts) accepted.push_back(part.accepted - 1);
    commit.accepted = indices(accepted);
    commit.slots = indices(slots);
    commit.base_column = base_;
  }

  // Rows of snapshots anywhere in the call. The library must ignore some of them.
  std::vector<std::int64_t> take_snapshots(const std::vector<Part>& parts) {
    std::vector<std::int64_t> rows;
    const auto add = [&](std::int64_t sequence, std::int64_t token, std::int64_t slot) {
      rows.insert(rows.end(), {sequence, token, slot});
    };
    for (int cached = 0; cached < kCached; ++cached) {
      if (cache_[cached].readers > 0 || random_.chance(0.5)) continue;
      const std::int64_t i = random_.between(0, std::ssize(parts) - 1);
      const std::int64_t tokens = parts[i].tokens;
      const std::int64_t token = random_.chance(0.4)
                                     ? random_.between(0, std::min(tokens, history_))
                                 : random_.chance(0.2) ? tokens
                                                       : random_.between(0, tokens);
      if (random_.chance(0.1)) add(i, random_.chance(0.5) ? -1 : tokens + 1, slots_ + cached);
      if (random_.chance(0.1))
        add(random_.chance(0.5) ? -1 : static_cast<std::int64_t>(parts.size()), 0, slots_);
      if (random_.chance(0.1)) add(i, token, random_.chance(0.5) ? -1 : pool_slots());
      add(i, token, slots_ + cached);
      if (parts[i].request < 0 || tokens == 0) continue;
      const Request& request = running_[parts[i].request];
      if (random_.chance(0.1)) add(i, tokens, request.slot);  // the final state writes it too
      cache_[cached] = {.rows = request.rows, .length = request.done + token};
      for (std::int64_t n = request.done + token - history_; n < request.done + token; ++n) {
        put(slots_ + cached, column_of(n, request.done + token), request, n, nullptr);
      }
      ++counts_.snapshots;
    }
    return rows;
  }

  // The column of input `number` in a state that ends before input `end`.
  [[nodiscard]] std::int64_t column_of(std::int64_t number, std::int64_t end) const {
    if (pool_kind_ == Pool::kCircular) return (number + columns_) % columns_;
    return base_ + history_ - (end - number);
  }

  // Copies input `number` of a request to the expected pool. Inputs from `done` on are read from
  // `drafts` unless it is null.
  void put(std::int64_t slot, std::int64_t column, const Request& request, std::int64_t number,
           const char* drafts) {
    const char* row = drafts != nullptr && number >= request.done
                          ? drafts + (number - request.done) * row_bytes()
                          : request.rows + number * row_bytes();
    const TensorRef view = pool();
    for (std::int64_t c = 0; c < channels_; ++c) {
      char* at = expected_pool_.data() +
                 (slot * view.strides[0] + column * view.strides[1] + c * view.strides[2]) * bytes_;
      if (number < 0) {
        std::memset(at, 0, static_cast<std::size_t>(bytes_));
      } else {
        std::memcpy(at, row + c * bytes_, static_cast<std::size_t>(bytes_));
      }
    }
  }

  void keep_final(Kind kind, const Request& request, std::int64_t tokens, const char* rows) {
    const std::int64_t end = request.done + tokens;
    std::int64_t first = end - history_;
    if (pool_kind_ == Pool::kCircular) {
      const bool has_history = request.done > 0 && request.begins_from < 0;
      const std::int64_t needed = kind == kDrafts ? request.done - history_ : first;
      first = std::max(has_history ? request.done : std::min(needed, request.done), end - columns_);
    }
    for (std::int64_t n = first; n < end; ++n) {
      put(request.slot, column_of(n, end), request, n, rows);
    }
  }

  void advance(Kind kind, Keep keep, const Part& part) {
    if (part.request < 0 || part.tokens == 0) return;
    Request& request = running_[part.request];
    if (kind == kDrafts) {
      switch (keep) {
        case Keep::kRunAgain:
          ++counts_.runs_again;
          return;
        case Keep::kCommit:
          if (part.accepted == 0) return;
          keep_final(kind, request, part.accepted, nullptr);
          ++counts_.commits;
          break;
        case Keep::kRoll:
          ++counts_.rolled_on;
          break;
        case Keep::kPosition:
          ++counts_.positions;
          break;
      }
    }
    request.done += part.accepted;
    request.offset = kind == kDrafts && keep == Keep::kRoll ? part.accepted - 1 : 0;
    if (request.begins_from >= 0) --cache_[request.begins_from].readers;
    request.begins_from = -1;
  }

  [[nodiscard]] bool is_as_expected() const {
    return std::memcmp(pool_, expected_pool_.data(), expected_pool_.size()) == 0;
  }

  void end_requests() {
    std::erase_if(running_, [&](const Request& request) {
      if (request.done < request.length) return false;
      slot_used_[request.slot] = false;
      return true;
    });
  }

  const ServingMemory& memory_;
  tools::Random random_;
  DType dtype_{};
  Activation activation_{};
  Pool pool_kind_{};
  std::int64_t bytes_ = 0, width_ = 0, history_ = 0, channels_ = 0, slots_ = 0, columns_ = 0,
               base_ = 0;
  bool columns_innermost_ = false;
  char *weight_ = nullptr, *pool_ = nullptr;
  std::vector<char> expected_pool_;
  std::vector<bool> slot_used_;
  std::vector<Snapshotted> cache_;
  int arriving_ = 0;
  std::vector<Request> running_;
  ServingCounts counts_;
};

}  // namespace shortconv::test
