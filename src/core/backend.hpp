// What a backend provides. A new one is a folder, an enumerator of BackendId and a case in
// registry.cpp.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/groups.hpp"
#include "core/prepare.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

using PlanStorage = Plan::Storage;
static_assert(std::is_same_v<PlanStorage, CommitPlan::Storage>);

/// One operation of one backend.
template <typename Operation>
struct OperationKernels {
  using Problem = typename Operation::Problem;
  using Pointers = typename Operation::Pointers;

  /// Chooses a kernel: pure, given the properties of the device. kUnsupported without one.
  Status (*plan)(const Problem& problem, PlanStorage& choice);
  /// Launches. Pointers have passed check_pointers.
  Status (*run)(const Problem& problem, const PlanStorage& choice, const Pointers& pointers,
                void* stream);
  std::string (*describe)(const Problem& problem, const PlanStorage& choice);
  /// Null: none is needed.
  std::int64_t (*workspace_bytes)(const Problem& problem, const PlanStorage& choice) = nullptr;
};

struct Backend {
  BackendId id;
  DeviceType device;
  BackendInfo (*info)();

  OperationKernels<ForwardOperation> forward;
  OperationKernels<CommitOperation> commit;
  OperationKernels<BackwardOperation> backward;
  OperationKernels<GroupedOperation> grouped;
  OperationKernels<GroupedBackwardOperation> grouped_backward;

  /// Checked calls without a plan.
  Status (*l2_norm)(const L2NormCall& call, void* stream);
  Status (*delta_gates)(const GatesCall& call, void* stream);
  /// Index preparation.
  Status (*block_snapshots)(const BlockSnapshots& call, void* stream);
  Status (*tree_parents)(const TreeParents& call, void* stream);

  template <typename Operation>
  [[nodiscard]] const OperationKernels<Operation>& kernels() const {
    if constexpr (std::is_same_v<Operation, ForwardOperation>)
      return forward;
    else if constexpr (std::is_same_v<Operation, CommitOperation>)
      return commit;
    else if constexpr (std::is_same_v<Operation, BackwardOperation>)
      return backward;
    else if constexpr (std::is_same_v<Operation, GroupedOperation>)
      return grouped;
    else
      return grouped_backward;
  }
};

/// Null if the backend is not built in. kAuto must be resolved first.
const Backend* find_backend(BackendId id);

/// The requested backend, or the default one of the device. `argument` is the tensor whose device
/// it is.
Status choose_backend(BackendId requested, DeviceType device, std::string_view argument,
                      const Backend*& backend);

/// Keeps a backend's choice in the plan. Types that do not fit or own something do not compile.
template <typename Choice>
void store_choice(PlanStorage& storage, const Choice& choice) {
  static_assert(sizeof(Choice) <= sizeof(PlanStorage) && std::is_trivially_copyable_v<Choice>);
  std::memcpy(storage.data(), &choice, sizeof choice);
}

template <typename Choice>
Choice load_choice(const PlanStorage& storage) {
  Choice choice;
  std::memcpy(&choice, storage.data(), sizeof choice);
  return choice;
}

}  // namespace shortconv
