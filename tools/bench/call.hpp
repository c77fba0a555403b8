// Memory and arguments of one measured call.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "bench/shapes.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::tools::bench {

/// Memory that is first touched, page by page, by the threads that will work on it, which decides
/// where it lies on machines with several memory nodes. Holds about normal random numbers: zeros
/// would be compressed or predicted somewhere.
class RandomBuffer {
 public:
  RandomBuffer() = default;
  RandomBuffer(DType dtype, std::int64_t elements, int threads);

  [[nodiscard]] void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

struct CallOptions {
  DType dtype = DType::kBF16;
  int width = 4;
  Activation activation = Activation::kSilu;
  Schedule schedule = Schedule::kFlat;
  BackendId backend = BackendId::kCpu;
  int threads = 1;
};

class Call {
 public:
  Call(const Shape& shape, const CallOptions& options);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// What a caller does for each batch before it can launch: the lists of the schedule, checks,
  /// plan.
  void prepare();
  void run() const;

  /// Inputs, outputs and states, each counted once per direction. Weights stay in cache.
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

 private:
  ForwardArgs args_;
  Plan plan_;
  std::int64_t bytes_ = 0;
  std::vector<std::int64_t> lengths_;
  std::vector<std::int32_t> query_start_loc_;
  std::vector<std::uint8_t> has_initial_state_;
  std::vector<std::int32_t> block_sequence_, block_offset_;
  RandomBuffer x_, out_, weight_, bias_, state_;
};

}  // namespace shortconv::tools::bench
