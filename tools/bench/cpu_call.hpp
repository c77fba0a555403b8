// Memory and arguments of one measured call on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/call_layout.hpp"
#include "bench/planned_call.hpp"
#include "bench/random_buffer.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::tools::bench {

class CpuCall {
 public:
  CpuCall(const Shape& shape, const CallOptions& options);
  CpuCall(const CpuCall&) = delete;
  CpuCall& operator=(const CpuCall&) = delete;

  /// What a caller does for each batch before it can launch: the lists of the schedule, checks,
  /// plan.
  void prepare();
  void run() const;

  [[nodiscard]] std::int64_t bytes() const { return layout_.moved_bytes(); }

 private:
  CallLayout layout_;
  // One of them is used.
  PlannedCall<ForwardOperation> forward_;
  PlannedCall<CommitOperation> commit_;
  PlannedCall<BackwardOperation> backward_;
  std::vector<ChannelGroup> groups_;
  PlannedCall<GroupedOperation> grouped_;
  PlannedCall<GroupedBackwardOperation> grouped_backward_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::int32_t> query_start_loc_;
  std::vector<std::int32_t> read_slots_;
  std::vector<std::uint8_t> has_initial_state_;
  std::vector<std::int32_t> block_sequence_, block_offset_;
  RandomBuffer x_, out_, weight_, bias_, state_, windows_;
  RandomBuffer grad_x_, grad_weight_, grad_bias_, grad_final_state_, grad_initial_state_;
  RandomBuffer gate_rows_, gates_, a_log_, dt_bias_, grad_gate_rows_, grad_heads_;
  std::vector<std::int32_t> parents_, ring_positions_, snapshots_, accepted_, seq_idx_;
  std::vector<std::int64_t> violations_;
};

}  // namespace shortconv::tools::bench
