#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "shortconv/export.h"
#include "shortconv/plan.hpp"
#include "shortconv/problem.hpp"
#include "shortconv/status.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

/// Commits accepted drafts: of each sequence, the window after its last accepted token goes to the
/// sequence's slot, in all layers at once. Bits are moved, nothing is computed.
struct CommitArgs {
  /// What verify captured, in the dtype of state: [layers, sequences, rows, channels]. With
  /// query_start_loc [layers, rows, channels], or [layers, tokens, width - 1, channels], whose
  /// windows may lie with the channels or the window innermost.
  TensorRef windows;
  TensorRef state;     ///< [layers, slots, columns >= width - 1, channels]
  TensorRef accepted;  ///< [sequences] i32 or i64: number of the last accepted token in its
                       ///< sequence, from 0; negative: nothing to commit
  std::optional<TensorRef> slots;  ///< [sequences] i32 or i64; absent: slot = sequence number
  std::optional<TensorRef> second_slots;     ///< [sequences]; where the window goes as well
  std::optional<TensorRef> query_start_loc;  ///< [sequences + 1] i32 or i64: packed windows of
                                             ///< ragged drafts; the bounds are those of the tokens
  std::int32_t width = 0;                    ///< of the convolution: a window has width - 1 rows
  std::int32_t token_rows = 0;  ///< rows from one token's window to the next one's: width - 1 where
                                ///< windows lie one after the other, 1 where they overlap
  std::int64_t state_base = 0;  ///< first column that belongs to the history
  std::optional<std::int64_t> null_slot;  ///< a slot that means padding, as every negative one does

  BackendId backend = BackendId::kAuto;
  std::int32_t threads = 0;  ///< CPU: how many to use; 0 = as many as OpenMP offers
};

/// Everything that decides a kernel and nothing that changes from call to call: no addresses. Made
/// by make_commit_problem.
struct CommitProblem {
  BackendId backend = BackendId::kAuto;
  Device device;

  DType dtype = DType::kF32;  ///< of windows and state
  DType accepted_dtype = DType::kI32;
  DType slots_dtype = DType::kI32;
  DType second_slots_dtype = DType::kI32;
  DType query_start_loc_dtype = DType::kI32;

  bool has_slots = false;
  bool has_second_slots = false;
  bool has_query_start_loc = false;
  bool has_null_slot = false;

  std::int32_t width = 0;
  std::int32_t threads = 0;

  std::int64_t layers = 0;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;  ///< that have a window: of each sequence, in all with query_start_loc
  std::int64_t channels = 0;
  std::int64_t slots = 0;
  std::int64_t state_columns = 0;
  std::int64_t state_base = 0;
  std::int64_t null_slot = 0;

  // Strides in elements. windows_sequence is 0 with query_start_loc.
  std::int64_t windows_layer = 0, windows_sequence = 0, windows_token = 0;
  std::int64_t windows_row = 0, windows_channel = 0;
  std::int64_t state_layer = 0, state_slot = 0, state_column = 0, state_channel = 0;
  std::int64_t accepted_stride = 1, slots_stride = 1, second_slots_stride = 1;
  std::int64_t query_start_loc_stride = 1;

  friend bool operator==(const CommitProblem&, const CommitProblem&) = default;
};

/// The addresses of one call, in the memory of the plan's device. Absent arguments are null.
struct CommitAddresses {
  const void* windows = nullptr;
  void* state = nullptr;
  const void* accepted = nullptr;
  const void* slots = nullptr;
  const void* second_slots = nullptr;
  const void* query_start_loc = nullptr;
};

[[nodiscard]] SHORTCONV_API CommitAddresses addresses(const CommitArgs& args);

/// What to launch for a CommitProblem. Fixed size, owns nothing, may be copied and kept; valid in
/// this process only.
class CommitPlan {
 public:
  [[nodiscard]] const CommitProblem& problem() const { return problem_; }

 private:
  friend SHORTCONV_API Status make_commit_plan(const CommitProblem& problem, CommitPlan& plan);
  friend SHORTCONV_API Status run(const CommitPlan& plan, const CommitAddresses& addresses,
                                  void* stream);

  CommitProblem problem_;
  const Backend* backend_ = nullptr;
  alignas(std::max_align_t)
      std::array<std::byte, Plan::kStorageBytes> storage_{};  // the backend's choice
};
static_assert(std::is_trivially_copyable_v<CommitPlan>);

/// Checks the arguments against the specification and against each other. All refusals that need no
/// device happen here; on failure `problem` is left as it was.
[[nodiscard]] SHORTCONV_API Status make_commit_problem(const CommitArgs& args,
                                                       CommitProblem& problem);

/// Chooses backend and kernel. A pure function of the problem and of the device's properties.
[[nodiscard]] SHORTCONV_API Status make_commit_plan(const CommitProblem& problem, CommitPlan& plan);

/// Does the work: no allocation, no waiting for a device. `stream` is a cudaStream_t on CUDA and
/// ignored on the CPU. Refuses, before anything is written, addresses that do not fit the plan.
[[nodiscard]] SHORTCONV_API Status run(const CommitPlan& plan, const CommitAddresses& addresses,
                                       void* stream = nullptr);

/// Validates, plans and runs in one call.
[[nodiscard]] SHORTCONV_API Status commit(const CommitArgs& args, void* stream = nullptr);

}  // namespace shortconv
