// Parameters of the kernels for groups, norms and gates. Each kernel takes one, by value.
#pragma once

#include <cstdint>

#include "core/groups.hpp"
#include "cuda/host/kernels.hpp"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

/// One group of a call: the problem and the pointers are those of its channels alone.
struct GroupKernelParams {
  GeneralParams general;
  GroupLayout group;
};

/// The gates of a call. The problem says which rows are padding.
struct GateKernelParams {
  GeneralParams general;
  GateProblem gates;
  GatePointers at;
};

inline constexpr int kGroupThreads = 128;  // not tuned, as the next
inline constexpr int kGroupTokens = 16;    // packed rows of a thread

KernelFunction convolve_group_kernel();  // takes GroupKernelParams, as the next two
KernelFunction copy_group_kernel();
KernelFunction normalize_group_kernel();
KernelFunction store_gates_kernel();  // takes GateKernelParams
KernelFunction l2_norm_kernel();      // takes L2NormCall
KernelFunction delta_gates_kernel();  // takes GatesCall

}  // namespace shortconv::cuda
