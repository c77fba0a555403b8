// Plans: a problem, a backend and its choice of a kernel, run as often as wanted on new addresses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "shortconv/export.h"
#include "shortconv/groups.hpp"
#include "shortconv/problem.hpp"
#include "shortconv/status.hpp"

namespace shortconv {

struct Backend;

/// Addresses of one call, in the memory of the plan's device. Absent arguments are null.
using TensorPointers = ForwardTensors<TensorPointer>;
using CommitPointers = CommitTensors<TensorPointer>;
struct BackwardPointers : BackwardTensors<TensorPointer> {
  void* workspace = nullptr;  ///< workspace_bytes of the plan
};

using GatePointers = GateTensors<TensorPointer>;
struct GroupedPointers {
  TensorPointers forward;
  std::array<void*, kMaxGroups> groups{};  ///< their outputs
  GatePointers gates;
};

using GateGradientPointers = GateGradientTensors<TensorPointer>;
struct GroupedBackwardPointers {
  BackwardPointers backward;
  std::array<void*, kMaxGroups> groups{};  ///< the gradients of their outputs
  GateGradientPointers gates;
};

[[nodiscard]] SHORTCONV_API TensorPointers pointers(const ForwardArgs& args);
[[nodiscard]] SHORTCONV_API CommitPointers pointers(const CommitArgs& args);
[[nodiscard]] SHORTCONV_API BackwardPointers pointers(const BackwardArgs& args);
[[nodiscard]] SHORTCONV_API GroupedPointers pointers(const GroupedArgs& args);
[[nodiscard]] SHORTCONV_API GroupedBackwardPointers pointers(const GroupedBackwardArgs& args);

/// The operations: their arguments, their problem, their addresses.
struct ForwardOperation {
  using Args = ForwardArgs;
  using Problem = shortconv::Problem;
  using Pointers = TensorPointers;
};
struct CommitOperation {
  using Args = CommitArgs;
  using Problem = CommitProblem;
  using Pointers = CommitPointers;
};

struct BackwardOperation {
  using Args = BackwardArgs;
  using Problem = BackwardProblem;
  using Pointers = BackwardPointers;
};

struct GroupedOperation {
  using Args = GroupedArgs;
  using Problem = GroupedProblem;
  using Pointers = GroupedPointers;
};

struct GroupedBackwardOperation {
  using Args = GroupedBackwardArgs;
  using Problem = GroupedBackwardProblem;
  using Pointers = GroupedBackwardPointers;
};

/// What to launch for a problem. Fixed size, owns nothing, may be copied and kept; valid in this
/// process only.
template <typename Operation>
class OperationPlan {
 public:
  static constexpr std::size_t kStorageBytes = 256;
  using Storage = std::array<std::byte, kStorageBytes>;

  [[nodiscard]] const typename Operation::Problem& problem() const { return problem_; }

 private:
  friend struct PlanAccess;

  typename Operation::Problem problem_;
  const Backend* backend_ = nullptr;
  alignas(std::max_align_t) Storage storage_{};  // the backend's choice
};
using Plan = OperationPlan<ForwardOperation>;
using CommitPlan = OperationPlan<CommitOperation>;
using BackwardPlan = OperationPlan<BackwardOperation>;
using GroupedPlan = OperationPlan<GroupedOperation>;
using GroupedBackwardPlan = OperationPlan<GroupedBackwardOperation>;
static_assert(std::is_trivially_copyable_v<Plan> && std::is_trivially_copyable_v<CommitPlan> &&
              std::is_trivially_copyable_v<BackwardPlan> &&
              std::is_trivially_copyable_v<GroupedPlan> &&
              std::is_trivially_copyable_v<GroupedBackwardPlan>);

/// Chooses backend and kernel. A pure function of the problem and of the device's properties.
[[nodiscard]] SHORTCONV_API Status make_plan(const Problem& problem, Plan& plan);
[[nodiscard]] SHORTCONV_API Status make_plan(const CommitProblem& problem, CommitPlan& plan);
[[nodiscard]] SHORTCONV_API Status make_plan(const BackwardProblem& problem, BackwardPlan& plan);
[[nodiscard]] SHORTCONV_API Status make_plan(const GroupedProblem& problem, GroupedPlan& plan);
[[nodiscard]] SHORTCONV_API Status make_plan(const GroupedBackwardProblem& problem,
                                             GroupedBackwardPlan& plan);

/// Bytes of memory on the plan's device that a run needs besides the tensors, aligned to 16 bytes.
/// Their content means nothing before and after a run; runs that may overlap need one each.
[[nodiscard]] SHORTCONV_API std::int64_t workspace_bytes(const Plan& plan);
[[nodiscard]] SHORTCONV_API std::int64_t workspace_bytes(const CommitPlan& plan);
[[nodiscard]] SHORTCONV_API std::int64_t workspace_bytes(const BackwardPlan& plan);
[[nodiscard]] SHORTCONV_API std::int64_t workspace_bytes(const GroupedPlan& plan);
[[nodiscard]] SHORTCONV_API std::int64_t workspace_bytes(const GroupedBackwardPlan& plan);

/// Runs a plan: no allocation, no synchronization, no output but the tensors. `stream` is a
/// cudaStream_t on CUDA and ignored on the CPU. Null pointers of present arguments are refused
/// before anything is written.
[[nodiscard]] SHORTCONV_API Status run(const Plan& plan, const TensorPointers& pointers,
                                       void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status run(const CommitPlan& plan, const CommitPointers& pointers,
                                       void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status run(const BackwardPlan& plan, const BackwardPointers& pointers,
                                       void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status run(const GroupedPlan& plan, const GroupedPointers& pointers,
                                       void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status run(const GroupedBackwardPlan& plan,
                                       const GroupedBackwardPointers& pointers,
                                       void* stream = nullptr);

/// Validates, plans and runs in one call.
[[nodiscard]] SHORTCONV_API Status forward(const ForwardArgs& args, void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status commit(const CommitArgs& args, void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status backward(const BackwardArgs& args, void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status forward_groups(const GroupedArgs& args, void* stream = nullptr);
[[nodiscard]] SHORTCONV_API Status backward_groups(const GroupedBackwardArgs& args,
                                                   void* stream = nullptr);

/// Backend, kernel and partition in one line.
[[nodiscard]] SHORTCONV_API std::string to_string(const Plan& plan);
[[nodiscard]] SHORTCONV_API std::string to_string(const GroupedPlan& plan);
[[nodiscard]] SHORTCONV_API std::string to_string(const GroupedBackwardPlan& plan);

}  // namespace shortconv
