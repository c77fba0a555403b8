// What the CUDA files offer to the plain C++ ones: the entry points of their kernels. All take
// a Call by value or (Problem, Addresses, Grid), select.hpp knows which, replace_histories the
// latter, those of the checked mode (Problem, Addresses).
#pragma once

#include "shortconv/problem.hpp"

namespace shortconv::cuda {

/// A kernel for cudaLaunchKernelExC.
using Entry = const void*;

struct Kernels {
  // Those named full know all Features.
  Entry tiles, full_tiles;             // tile.cuh
  Entry short_sequences, small_tiles;  // tile.cuh
  Entry numbered_tiles;                // numbered.cuh
  // decode.cuh, 16 bytes a thread, and 4 channels a thread
  Entry decode, full_decode, ring_decode;
  Entry small_decode, older_decode;
  Entry drafts, full_drafts;  // drafts.cuh
  Entry trees, full_trees;    // trees.cuh
  Entry gated_tiles, gated_decode, gated_drafts;
  Entry f32_state_tiles, f32_state_decode;  // of 16-bit types
  Entry columns;                            // columns.cuh
  Entry chunks;                             // chunk.cuh
};

/// Of each type of x. `width` is one of kWidths; weights are fp32 or of x's type. Entries that a
/// width does not have are null.
const Kernels& kernels_f32(int width, Activation activation, bool f32_weights);
const Kernels& kernels_f16(int width, Activation activation, bool f32_weights);
const Kernels& kernels_bf16(int width, Activation activation, bool f32_weights);

Entry general_kernel();            // general.cuh
Entry replace_histories_kernel();  // general.cuh

// violation.cuh: one block, then blocks for sequences + 1 numbers.
Entry clear_report_kernel();
Entry count_violations_kernel();

}  // namespace shortconv::cuda
