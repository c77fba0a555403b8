// Sizes and arguments of a measured call, wherever its memory is.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bench/shapes.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::tools::bench {

struct CallOptions {
  DType dtype = DType::kBF16;
  std::optional<DType> state_dtype = {};   // of states and windows; as dtype if not given
  std::optional<DType> weight_dtype = {};  // of weights and bias; as dtype if not given
  int width = 4;
  int dilation = 1;
  Activation activation = Activation::kSilu;
  Schedule schedule = Schedule::kFlat;
  BackendId backend = BackendId::kCpu;
  int threads = 1;              // CPU
  double pitch = 1;             // of the rows of x and out, as a multiple of their length
  std::int64_t row_offset = 0;  // elements of x and of out before their first row
  bool has_bias = false;
  bool slots_in_order = false;
  bool programmatic_launch = false;  // GPU

  [[nodiscard]] DType dtype_of_states() const { return state_dtype.value_or(dtype); }
  [[nodiscard]] DType dtype_of_weights() const { return weight_dtype.value_or(dtype); }
};

struct CallMemory {
  void* x = nullptr;
  void* out = nullptr;  // of a backward call: grad_out
  void* weight = nullptr;
  void* bias = nullptr;
  void* state = nullptr;
  void* read_slots = nullptr;
  void* query_start_loc = nullptr;
  void* has_initial_state = nullptr;
  void* parents = nullptr;
  void* windows = nullptr;
  void* cache_seqlens = nullptr;
  void* snapshots = nullptr;
  void* violations = nullptr;
  void* accepted = nullptr;
  void* seq_idx = nullptr;
  void* grad_x = nullptr;
  void* grad_weight = nullptr;
  void* grad_bias = nullptr;
  void* grad_final_state = nullptr;
  void* grad_initial_state = nullptr;
  void* gate_rows = nullptr;  // of a call with groups: rows [b | a]
  void* gates = nullptr;      // g, then beta
  void* a_log = nullptr;
  void* dt_bias = nullptr;
  void* grad_gate_rows = nullptr;  // of a backward call with groups: of a, then of b
  void* grad_heads = nullptr;      // of a_log, then of dt_bias
};

class CallLayout {
 public:
  CallLayout(const Shape& shape, const CallOptions& options);

  /// Gaps between rows included.
  [[nodiscard]] std::int64_t out_elements() const;
  /// With the gates, which lie between its rows.
  [[nodiscard]] std::int64_t x_elements() const {
    return is_grouped() ? rows_ * row_pitch_ : parts_of_x() * out_elements();
  }
  [[nodiscard]] std::int64_t gate_heads() const {
    return is_grouped() ? shape_.front->gate_heads : 0;
  }
  /// Of a call with groups: of the rows from which gates are computed, and of the gates.
  [[nodiscard]] std::int64_t gate_elements() const { return 2 * shape_.tokens() * gate_heads(); }
  [[nodiscard]] std::int64_t weight_elements() const { return shape_.channels * options_.width; }
  [[nodiscard]] std::int64_t bias_elements() const { return shape_.channels; }
  /// With the gradients of the gates, which lie behind it.
  [[nodiscard]] std::int64_t grad_x_elements() const { return is_backward() ? x_elements() : 0; }
  /// Of the gradient of the final states, and as many of that of the initial ones.
  [[nodiscard]] std::int64_t state_gradient_elements() const {
    return is_backward() ? state_elements() : 0;
  }
  [[nodiscard]] std::int64_t state_elements() const {
    if (is_backward() ? !shape_.states : shape_.seq_idx) return 0;
    return layers() * (shape_.sequences() + shape_.snapshots()) * slot_elements();
  }
  [[nodiscard]] std::int64_t window_elements() const {
    return shape_.op == Op::kVerify ? layers() * shape_.tokens() * slot_elements() : 0;
  }
  [[nodiscard]] bool is_commit() const { return shape_.commit_layers > 0; }
  [[nodiscard]] bool is_backward() const { return shape_.gradients; }
  [[nodiscard]] bool is_grouped() const { return shape_.front.has_value(); }
  /// The number of each row's sequence; empty for calls that have bounds.
  [[nodiscard]] const std::vector<std::int32_t>& seq_idx() const { return seq_idx_; }
  /// Of each sequence of a commit; empty for calls.
  [[nodiscard]] const std::vector<std::int32_t>& accepted() const { return accepted_; }
  /// Of all draft tokens; empty for chains.
  [[nodiscard]] const std::vector<std::int32_t>& parents() const { return parents_; }
  /// Of all sequences; empty for ordered states.
  [[nodiscard]] const std::vector<std::int32_t>& cache_seqlens() const { return ring_positions_; }
  /// Rows (sequence, token, slot), with slots behind those of the sequences.
  [[nodiscard]] const std::vector<std::int32_t>& snapshots() const { return snapshots_; }
  [[nodiscard]] const std::vector<std::int32_t>& query_start_loc() const {
    return query_start_loc_;
  }
  /// Of all sequences, in no order, as slots are that are used again and again; empty where slot =
  /// sequence number is asked for.
  [[nodiscard]] const std::vector<std::int32_t>& read_slots() const { return read_slots_; }
  [[nodiscard]] const std::vector<std::uint8_t>& has_initial_state() const {
    return has_initial_state_;
  }

  /// What a call moves: inputs, outputs, states and windows, each counted once per direction;
  /// snapshots twice, for their inputs are read again; of rings the tokens alone are written, of
  /// states with an older column the history alone is read. A commit reads and writes one window a
  /// sequence and layer. A backward call reads x, gates, grad_out and states, and writes the
  /// gradients of the first two and of the initial states. A call with groups reads their columns
  /// only; the gradients of copied columns are read and written once.
  /// Weights, their gradients and partial sums of them stay in cache.
  [[nodiscard]] std::int64_t moved_bytes() const;

  /// What a call leaves in a cache: x, out and states, each counted once, without gaps.
  [[nodiscard]] std::int64_t touched_bytes() const;

  /// Without the lists or the length that its schedule asks for.
  [[nodiscard]] ForwardArgs arguments(const CallMemory& memory, Device device) const;
  [[nodiscard]] CommitArgs commit_arguments(const CallMemory& memory, Device device) const;
  /// `groups` must outlive the arguments.
  [[nodiscard]] GroupedArgs grouped_arguments(const CallMemory& memory, Device device,
                                              std::vector<ChannelGroup>& groups) const;
  /// Without a workspace.
  [[nodiscard]] BackwardArgs backward_arguments(const CallMemory& memory, Device device) const;
  /// The same with groups, which must outlive the arguments.
  [[nodiscard]] GroupedBackwardArgs grouped_backward_arguments(
      const CallMemory& memory, Device device, std::vector<ChannelGroup>& groups) const;

 private:
  [[nodiscard]] std::int64_t layers() const { return is_commit() ? shape_.commit_layers : 1; }
  [[nodiscard]] std::int64_t history() const {
    return std::int64_t{options_.width - 1} * options_.dilation;
  }
  [[nodiscard]] std::int64_t columns() const { return history() + (shape_.older ? 1 : 0); }
  [[nodiscard]] std::int64_t slot_elements() const { return columns() * shape_.channels; }
  void add_drafts(const CallMemory& memory, Device device, ForwardArgs& args) const;
  void add_groups(void* out, Device device, std::vector<ChannelGroup>& groups) const;
  [[nodiscard]] GateArgs gate_arguments(const CallMemory& memory, Device device) const;
  [[nodiscard]] GateGradientArgs gate_gradient_arguments(const CallMemory& memory,
                                                         Device device) const;
  /// Rows of gates and the gates, which are fp32.
  [[nodiscard]] std::int64_t gate_bytes() const {
    return gate_elements() * (element_bytes(options_.dtype) + element_bytes(DType::kF32));
  }
  [[nodiscard]] std::int64_t backward_bytes() const;
  /// Inputs and results of all rows.
  [[nodiscard]] std::int64_t row_elements() const;
  [[nodiscard]] std::int64_t parts_of_x() const { return shape_.gated ? 3 : 1; }
  /// Of a tensor with rows of so many parts.
  [[nodiscard]] TensorRef rows(void* data, Device device, std::int64_t part,
                               std::int64_t parts) const;

  Shape shape_;
  CallOptions options_;
  std::int64_t rows_ = 0;  // as they lie in memory: of tokens or of channels
  std::int64_t row_pitch_ = 0;
  std::vector<std::int32_t> query_start_loc_;
  std::vector<std::int32_t> read_slots_;
  std::vector<std::uint8_t> has_initial_state_;
  std::vector<std::int32_t> parents_;
  std::vector<std::int32_t> ring_positions_;
  std::vector<std::int32_t> snapshots_;
  std::vector<std::int32_t> accepted_;
  std::vector<std::int32_t> seq_idx_;
};

}  // namespace shortconv::tools::bench
