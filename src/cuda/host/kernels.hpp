// Kernel functions that the .cu files provide to the host code.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/kernel_table.hpp"
#include "shortconv/arguments.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::cuda {

/// A kernel for cudaLaunchKernelExC.
using KernelFunction = const void*;

/// The instances of each row of kKernelTable for one width, activation and type of weights; null
/// where none is compiled.
using KernelFunctions = std::array<KernelFunction, kKernelRows>;

/// By the type of x. Weights are fp32 or of x's type.
const KernelFunctions& kernels_f32(int width, Activation activation, bool f32_weights);
const KernelFunctions& kernels_f16(int width, Activation activation, bool f32_weights);
const KernelFunctions& kernels_bf16(int width, Activation activation, bool f32_weights);

// All take GeneralParams.
KernelFunction general_kernel(const Problem& problem);
KernelFunction general_decode_kernel(const Problem& problem);
KernelFunction general_verify_kernel(const Problem& problem);
KernelFunction whole_sequences_kernel(const Problem& problem);
KernelFunction replace_histories_kernel();

// The checked mode.
KernelFunction clear_report_kernel();
KernelFunction count_violations_kernel();

}  // namespace shortconv::cuda
