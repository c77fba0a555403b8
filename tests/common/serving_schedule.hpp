// A serving run in small: requests that arrive and end, in chunks, decodes and drafts with random
// acceptance, over slots that are permuted and used again. Whatever way a request went, its outputs
// are those of one pass over the whole of it, bit for bit, and so is its state.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "core/element.hpp"
#include "shortconv/commit.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

struct ServingMemory {
  std::function<void*(std::size_t)> allocate;  // freed by whoever made this
  std::function<Status(const ForwardArgs&)> forward_and_wait;
  std::function<Status(const CommitArgs&)> commit_and_wait;
  Device device;
};

class ServingSchedule {
 public:
  ServingSchedule(const ServingMemory& memory, std::uint32_t seed)
      : memory_(memory), random_(seed) {
    constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
    constexpr int kWidths[] = {2, 3, 4, 4, 5, 6, 7, 8, 9};
    constexpr int kChannels[] = {1, 4, 12, 64, 132};
    dtype_ = kTypes[between(0, 2)];
    bytes_ = element_bytes(dtype_);
    width_ = kWidths[between(0, 8)];
    channels_ = kChannels[between(0, 4)];
    slots_ = between(2, 6);
    columns_ = width_ - 1 + between(0, 2);
    base_ = between(0, static_cast<int>(columns_ - (width_ - 1)));
    window_innermost_ = between(0, 1) == 1;
    activation_ = between(0, 1) == 1 ? Activation::kSilu : Activation::kNone;
    weight_ = random_rows(width_);  // [channels, width] as well as anything of that size
    pool_ = make(slots_ * columns_ * row_bytes());
    slot_owner_.assign(static_cast<std::size_t>(slots_), -1);
  }

  /// All requests from arrival to end.
  void run() {
    const int requests = between(3, 7);
    for (int i = 0; i < requests; ++i) waiting_.push_back(new_request());
    while (!waiting_.empty() || !running_.empty()) {
      admit();
      step();
      if (testing::Test::HasFatalFailure()) return;
    }
  }

 private:
  struct Request {
    std::int64_t length = 0;
    char* rows = nullptr;      // [length, channels]
    char* expected = nullptr;  // outputs of one pass
    std::int64_t done = 0;
    std::int64_t slot = -1;
  };
  struct Part {
    int request = -1;                    // -1: padding
    std::int64_t tokens = 0, right = 0;  // of a draft, so many are what the request goes on with
  };

  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(int percent) { return between(1, 100) <= percent; }
  [[nodiscard]] std::int64_t row_bytes() const { return channels_ * bytes_; }
  char* make(std::int64_t bytes) {
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 8));
    auto* data = static_cast<char*>(memory_.allocate(size));
    std::memset(data, 0xff, size);
    return data;
  }
  char* random_rows(std::int64_t rows) {
    std::normal_distribution<float> values(0.0f, 2.0f);
    char* data = make(rows * row_bytes());
    for (std::int64_t i = 0; i < rows * channels_; ++i) {
      store_element(dtype_, data + i * bytes_, values(random_));
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
    args.activation = activation_;
    return args;
  }
  TensorRef pool() {
    TensorRef view = tensor(pool_, {slots_, columns_, channels_});
    if (window_innermost_) {
      view.strides[1] = 1;
      view.strides[2] = columns_;
    }
    return view;
  }

  Request new_request() {
    Request request;
    request.length = between(1, 40);
    request.rows = random_rows(request.length);
    request.expected = make(request.length * row_bytes());
    const ForwardArgs args = call(Op::kForward, request.rows, request.expected, request.length);
    const Status status = memory_.forward_and_wait(args);
    EXPECT_TRUE(status.ok()) << status.message();
    return request;
  }

  void admit() {
    for (std::int64_t slot = 0; slot < slots_ && !waiting_.empty(); ++slot) {
      if (slot_owner_[slot] >= 0 || chance(40)) continue;
      waiting_.back().slot = slot;
      slot_owner_[slot] = 1;
      running_.push_back(waiting_.back());
      waiting_.pop_back();
    }
  }

  // One call for some of the requests, in any order, with padding and empty sequences among them.
  void step() {
    const int kind = between(0, 2);  // chunks, decodes, drafts
    std::vector<int> order(running_.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    std::vector<Part> parts;
    for (const int i : order) {
      if (kind != 1 && chance(15)) parts.push_back({.request = -1, .tokens = between(0, 3)});
      if (chance(25)) continue;
      const Request& request = running_[i];
      const std::int64_t left = request.length - request.done;
      const bool fresh = request.done == 0;
      Part part{.request = i, .tokens = 1};
      if (kind == 0) part.tokens = std::min<std::int64_t>(left, between(0, 14));
      if (kind == 1 && fresh) continue;  // decode resumes
      if (kind == 2) part.tokens = between(0, 6);
      part.right =
          kind == 2 ? between(0, static_cast<int>(std::min(left, part.tokens))) : part.tokens;
      parts.push_back(part);
    }
    if (parts.empty()) return;
    run_parts(kind, parts);
  }

  void run_parts(int kind, const std::vector<Part>& parts) {
    std::vector<std::int64_t> bounds{0}, slots, accepted;
    std::vector<std::uint8_t> flags;
    for (const Part& part : parts) {
      bounds.push_back(bounds.back() + part.tokens);
      const bool padding = part.request < 0;
      slots.push_back(padding ? (chance(50) ? -1 : slots_ + 1) : running_[part.request].slot);
      flags.push_back(!padding && running_[part.request].done > 0 ? 1 : 0);
      accepted.push_back(part.right - 1);
    }
    const std::int64_t rows = bounds.back();
    char* x = random_rows(rows);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].request < 0) continue;
      const Request& request = running_[parts[i].request];
      std::memcpy(x + bounds[i] * row_bytes(), request.rows + request.done * row_bytes(),
                  static_cast<std::size_t>(parts[i].right * row_bytes()));
    }
    char* out = make(rows * row_bytes());
    const std::vector<char> before(pool_, pool_ + slots_ * columns_ * row_bytes());
    constexpr Op kOps[] = {Op::kForward, Op::kDecode, Op::kVerify};
    ForwardArgs args = call(kOps[kind], x, out, rows);
    args.state = pool();
    args.state_base = base_;
    args.read_slots = indices(slots);
    if (kind != 1) {
      args.query_start_loc = indices(bounds);
      args.has_initial_state = values(flags, DType::kBool);
    }
    char* windows = make(rows * (width_ - 1) * row_bytes());
    if (kind == 2) args.windows = tensor(windows, {rows, width_ - 1, channels_});
    const Status status = memory_.forward_and_wait(args);
    ASSERT_TRUE(status.ok()) << status.message();
    if (kind == 2) {
      ASSERT_EQ(0, std::memcmp(pool_, before.data(), before.size())) << "drafts wrote states";
      CommitArgs commit;
      commit.windows = tensor(windows, {1, rows, width_ - 1, channels_});
      commit.state = pool();
      commit.state.ndim = 4;
      std::copy_backward(commit.state.shape, commit.state.shape + 3, commit.state.shape + 4);
      std::copy_backward(commit.state.strides, commit.state.strides + 3, commit.state.strides + 4);
      commit.state.shape[0] = 1;
      commit.accepted = indices(accepted);
      commit.slots = args.read_slots;
      commit.query_start_loc = args.query_start_loc;
      commit.width = static_cast<std::int32_t>(width_);
      commit.token_rows = commit.width - 1;
      commit.state_base = base_;
      const Status committed = memory_.commit_and_wait(commit);
      ASSERT_TRUE(committed.ok()) << committed.message();
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].request < 0) continue;
      Request& request = running_[parts[i].request];
      ASSERT_EQ(0, std::memcmp(out + bounds[i] * row_bytes(),
                               request.expected + request.done * row_bytes(),
                               static_cast<std::size_t>(parts[i].right * row_bytes())))
          << "op " << kind << ", from token " << request.done << " of " << request.length;
      request.done += parts[i].right;
    }
    expect_states(before);
    end_requests();
  }

  // The last inputs of each request, and elsewhere what was there before.
  void expect_states(std::vector<char> expected) {
    const TensorRef view = pool();
    const std::int64_t history = width_ - 1;
    for (const Request& request : running_) {
      if (request.done == 0) continue;
      for (std::int64_t column = 0; column < history; ++column) {
        const std::int64_t token = request.done - history + column;
        for (std::int64_t c = 0; c < channels_; ++c) {
          char* at = expected.data() + (request.slot * view.strides[0] +
                                        (base_ + column) * view.strides[1] + c * view.strides[2]) *
                                           bytes_;
          if (token < 0) {
            std::memset(at, 0, static_cast<std::size_t>(bytes_));
          } else {
            std::memcpy(at, request.rows + token * row_bytes() + c * bytes_,
                        static_cast<std::size_t>(bytes_));
          }
        }
      }
    }
    ASSERT_EQ(0, std::memcmp(pool_, expected.data(), expected.size())) << "states";
  }

  void end_requests() {
    std::erase_if(running_, [&](const Request& request) {
      if (request.done < request.length) return false;
      slot_owner_[request.slot] = -1;
      return true;
    });
  }

  const ServingMemory& memory_;
  std::mt19937 random_;
  DType dtype_{};
  Activation activation_{};
  std::int64_t bytes_ = 0, width_ = 0, channels_ = 0, slots_ = 0, columns_ = 0, base_ = 0;
  bool window_innermost_ = false;
  char *weight_ = nullptr, *pool_ = nullptr;
  std::vector<int> slot_owner_;
  std::vector<Request> waiting_, running_;
};

}  // namespace shortconv::test
