// The memory of a case: every tensor in an allocation of its own, between guard bands, with
// whatever is not an element poisoned.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "common/buffer.hpp"
#include "shortconv/plan.hpp"
#include "verify/case.hpp"

namespace shortconv::tools::verify {

/// Host memory of one tensor. For a backend with memory of its own, run_case takes copies of all of
/// it there and back.
class TensorBuffer {
 public:
  explicit TensorBuffer(TensorSpec spec);
  TensorBuffer(const TensorBuffer& other);
  TensorBuffer& operator=(const TensorBuffer& other);
  TensorBuffer(TensorBuffer&&) = default;
  TensorBuffer& operator=(TensorBuffer&&) = default;

  [[nodiscard]] const TensorSpec& spec() const { return spec_; }

  /// Everything, guard bands included.
  [[nodiscard]] std::span<std::byte> bytes() const;

  /// The element `offset` elements from the start of the allocation (TensorSpec::offset).
  [[nodiscard]] std::byte* element(std::int64_t offset) const;
  [[nodiscard]] double load(std::int64_t offset) const;
  void store(std::int64_t offset, double value) const;
  [[nodiscard]] bool same_element(std::int64_t offset, const TensorBuffer& other,
                                  std::int64_t other_offset) const;

  [[nodiscard]] TensorRef view() const { return view(spec_); }
  /// The same memory as another tensor.
  [[nodiscard]] TensorRef view(const TensorSpec& spec) const;

 private:
  TensorSpec spec_;
  Buffer memory_;
};

/// Memory with the values of an index tensor.
[[nodiscard]] TensorBuffer index_buffer(const IndexTensor& index);
[[nodiscard]] std::optional<TensorBuffer> index_buffer(const std::optional<IndexTensor>& index);

struct CaseBuffers {
  TensorBuffer x, out, weight;  // in place: `out` is not used
  std::optional<TensorBuffer> bias = {}, state = {}, input_gate = {}, output_gate = {};
  std::optional<TensorBuffer> query_start_loc = {}, has_initial_state = {};
  std::optional<TensorBuffer> read_slots = {}, write_slots = {}, read_offsets = {};
  std::optional<TensorBuffer> block_sequence = {}, block_offset = {};
  std::optional<TensorBuffer> cache_seqlens = {}, snapshots = {}, parents = {}, seq_idx = {};
  std::optional<TensorBuffer> windows = {}, intermediate_slots = {}, violations = {};

  [[nodiscard]] const TensorBuffer& result(const Case& problem) const {
    return problem.in_place ? x : out;
  }

  /// All that there are.
  [[nodiscard]] std::vector<const TensorBuffer*> tensors() const;
};

/// Memory with the values of the case. A value depends on the seed and on the indices of its
/// element alone, so that a case with other layouts has the same ones.
[[nodiscard]] CaseBuffers make_buffers(const Case& problem);

[[nodiscard]] ForwardArgs make_arguments(const Case& problem, const CaseBuffers& buffers,
                                         BackendId backend);
/// Runs the case where the backend works; afterwards the buffers hold what it made of them.
[[nodiscard]] Status run_case(const Case& problem, const CaseBuffers& buffers, BackendId backend);

}  // namespace shortconv::tools::verify
