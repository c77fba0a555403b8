#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <type_traits>

#include "shortconv/export.h"
#include "shortconv/problem.hpp"
#include "shortconv/status.hpp"

namespace shortconv {

struct Backend;

/// The addresses of one call, in the memory of the plan's device. Absent arguments are null.
struct Addresses {
  const void* x = nullptr;
  void* out = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* state = nullptr;
  const void* read_slots = nullptr;
  const void* write_slots = nullptr;
  const void* read_offsets = nullptr;
  const void* query_start_loc = nullptr;
  const void* has_initial_state = nullptr;
  const void* block_sequence = nullptr;
  const void* block_offset = nullptr;
  const void* parents = nullptr;
  void* windows = nullptr;
  void* violations = nullptr;
  const void* ring_positions = nullptr;
  const void* snapshots = nullptr;
  const void* window_slots = nullptr;
  const void* input_gate = nullptr;
  const void* output_gate = nullptr;
  const void* seq_idx = nullptr;
};

[[nodiscard]] SHORTCONV_API Addresses addresses(const ForwardArgs& args);

/// What to launch for a Problem. Fixed size, owns nothing, may be copied and kept; valid in this
/// process only.
class Plan {
 public:
  static constexpr std::size_t kStorageBytes = 256;

  [[nodiscard]] const Problem& problem() const { return problem_; }

 private:
  friend SHORTCONV_API Status make_plan(const Problem& problem, Plan& plan);
  friend SHORTCONV_API Status run(const Plan& plan, const Addresses& addresses, void* stream);
  friend SHORTCONV_API std::string to_string(const Plan& plan);

  Problem problem_;
  const Backend* backend_ = nullptr;
  alignas(
      std::max_align_t) std::array<std::byte, kStorageBytes> storage_{};  // the backend's choice
};
static_assert(std::is_trivially_copyable_v<Plan>);

/// Chooses backend and kernel. A pure function of the problem and of the device's properties.
SHORTCONV_API Status make_plan(const Problem& problem, Plan& plan);

/// Does the work: no allocation, no waiting for a device, no output but the tensors. `stream` is a
/// cudaStream_t on CUDA and ignored on the CPU. Refuses, before anything is written, addresses that
/// do not fit the plan.
SHORTCONV_API Status run(const Plan& plan, const Addresses& addresses, void* stream = nullptr);

/// Validates, plans and runs in one call.
SHORTCONV_API Status forward(const ForwardArgs& args, void* stream = nullptr);

/// Backend, kernel and partition in one line.
SHORTCONV_API std::string to_string(const Plan& plan);

}  // namespace shortconv
