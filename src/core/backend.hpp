// What a backend fills in. A new one is a folder, a line in registry.cpp and an enumerator of
// BackendId.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/prepare.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/commit.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

using PlanStorage = std::array<std::byte, Plan::kStorageBytes>;

struct Backend {
  BackendId id;
  DeviceType device;
  BackendInfo (*info)();
  /// Chooses a kernel: pure, given the properties of the device. Refuses what it has no kernel for.
  Status (*plan)(const Problem& problem, PlanStorage& choice);
  /// Launches. Addresses have passed check_addresses.
  Status (*run)(const Problem& problem, const PlanStorage& choice, const Addresses& addresses,
                void* stream);
  std::string (*describe)(const Problem& problem, const PlanStorage& choice);

  /// The same two steps for a commit. Nothing is launched for an empty one.
  Status (*plan_commit)(const CommitProblem& problem, PlanStorage& choice);
  Status (*run_commit)(const CommitProblem& problem, const PlanStorage& choice,
                       const CommitAddresses& addresses, void* stream);

  /// Index preparation: checked calls, with nothing to choose. An empty one is handed over as well.
  Status (*block_snapshots)(const BlockSnapshots& call, void* stream);
  Status (*tree_parents)(const TreeParents& call, void* stream);
};

/// Null if the backend is not built in. kAuto must be resolved first.
const Backend* find_backend(BackendId id);

/// The backend that was asked for, or the one that serves the device by default. Refuses one that
/// is not built in or works elsewhere; `argument` is the tensor whose device it is.
Status choose_backend(BackendId wanted, DeviceType device, std::string_view argument,
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
