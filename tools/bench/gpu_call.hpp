// Memory and arguments of one measured call on the GPU, several times over.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "bench/call_layout.hpp"
#include "bench/planned_call.hpp"
#include "common/gpu.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::tools::bench {

/// How many sets of x, out and states a series of calls takes in turns, so that a set has left the
/// cache before its turn comes again: more than three times the cache together, within limits of
/// number and memory.
[[nodiscard]] int number_of_sets(std::int64_t touched_bytes, std::int64_t allocated_bytes,
                                 std::int64_t cache_bytes);

/// Where the tensors of one set lie in its allocation, in bytes. A copy that moves as much as the
/// call runs inside the same allocation, from its start to `copy_target`.
struct SetPlaces {
  std::int64_t out = 0;
  std::int64_t state = 0;
  std::int64_t windows = 0;
  std::int64_t grad_x = 0;
  std::int64_t grad_final_state = 0;
  std::int64_t grad_initial_state = 0;
  std::int64_t gate_rows = 0;
  std::int64_t gates = 0;
  std::int64_t grad_gate_rows = 0;
  std::int64_t copy_target = 0;
  std::int64_t copied = 0;
  std::int64_t second_read = 0;  // of a pass that reads two arrays, this one and that at 0,
  std::int64_t combined = 0;     // and writes one, of `third` bytes each, as many as the call moves
  std::int64_t third = 0;
  std::int64_t bytes = 0;
};
[[nodiscard]] SetPlaces place_set(const CallLayout& layout, const CallOptions& options);

class GpuCall {
 public:
  GpuCall(const Shape& shape, const CallOptions& options, std::int64_t cache_bytes);
  GpuCall(const GpuCall&) = delete;
  GpuCall& operator=(const GpuCall&) = delete;

  [[nodiscard]] int sets() const { return static_cast<int>(sets_.size()); }
  [[nodiscard]] const CallLayout& layout() const { return layout_; }

  /// What a caller does on the host for each batch before it can launch. A schedule that needs
  /// lengths gets them where they are, on the GPU, and so waits for the stream.
  void prepare(const GpuStream& stream);
  [[nodiscard]] bool prepare_waits() const {
    return forward_.args.options.schedule != Schedule::kFlat;
  }

  /// The call, or a yardstick, on one of the sets.
  void run(int set, void* stream) const;
  void copy(int set, void* stream) const;
  void overlapped_copy(int set, void* stream) const;
  void combine(int set, void* stream) const;

 private:
  [[nodiscard]] CallMemory memory_of(const GpuBuffer& set) const;
  [[nodiscard]] ForwardArgs arguments_of(const GpuBuffer& set);
  void add_set(const GpuBuffer& set);
  void add_workspaces();
  void fetch_lengths(const GpuStream& stream);
  void send_block_list(void* stream);

  CallLayout layout_;
  SetPlaces places_;
  GpuBuffer weight_, bias_, query_start_loc_, read_slots_, has_initial_state_, parents_,
      ring_positions_, snapshots_, violations_, accepted_, seq_idx_, grad_weight_, grad_bias_,
      a_log_, dt_bias_, grad_heads_, block_list_;
  PinnedBuffer fetched_, sent_;
  std::vector<GpuBuffer> sets_;
  std::vector<GpuBuffer> workspaces_;  // of each set
  std::vector<std::int64_t> lengths_;
  // One of them is used.
  PlannedCall<ForwardOperation> forward_;
  PlannedCall<CommitOperation> commit_;
  PlannedCall<BackwardOperation> backward_;
  std::deque<std::vector<ChannelGroup>> groups_;  // of each set
  PlannedCall<GroupedOperation> grouped_;
  PlannedCall<GroupedBackwardOperation> grouped_backward_;
};

}  // namespace shortconv::tools::bench
