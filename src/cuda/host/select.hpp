// Problem -> KernelConfig: which kernel runs and how its grid is divided. Pure functions of the
// problem, the device and the tuning policy, tested without a GPU.
#pragma once

#include <string>

#include "cuda/host/kernels.hpp"
#include "cuda/host/memory_layout.hpp"
#include "cuda/host/policy.hpp"
#include "cuda/kernel_table.hpp"
#include "cuda/launch_params.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Of a grid's first axis, and of FastDivisor.
inline constexpr std::int64_t kMaxBlocks = 0x7fffffff;
/// The kernels for trees number the inputs of a sequence in 32 bits.
inline constexpr std::int64_t kMaxTreeTokens = 0x7fffffff;

/// Features of a call that not every instance has.
[[nodiscard]] FeatureSet features_of(const Problem& problem);

struct LaunchConfig {
  std::size_t row = kGeneralRow;  // of kKernelTable, or one of those behind it
  std::int64_t blocks = 0;
  std::int32_t threads = 0;
  LaunchParams params;
  std::int64_t replacing_blocks = 0;  // of replace_histories, which is launched after; 0: it is not

  [[nodiscard]] Kernel kernel() const { return kernel_of(row); }
};

/// What a plan keeps. The addresses of a call decide between the two launches: `aligned` needs
/// aligned rows. States that are not aligned are accessed element by element.
struct KernelConfig {
  LaunchConfig aligned;
  LaunchConfig fallback;  // a general kernel, or as `aligned` if that needs no alignment
  Alignment alignment;
  KernelFunction aligned_function = nullptr;
  KernelFunction fallback_function = nullptr;
};

/// Everything but the functions. Fails for grids that a GPU cannot have.
[[nodiscard]] Status select(const Problem& problem, const DeviceProperties& device,
                            const TuningPolicy& policy, KernelConfig& config);

/// Whether the tiles with groups support the call `problem`, apart from its groups.
[[nodiscard]] bool supports_group_tiles(const Problem& problem);

/// The launch of convolve_tiles for a call with groups, as if the channels were `slots` and there
/// were one group.
[[nodiscard]] LaunchConfig select_tiles(const Problem& problem, std::int64_t slots,
                                        const DeviceProperties& device, const TuningPolicy& policy,
                                        Alignment& alignment);

/// The launch for these addresses, without what their alignment does not allow, and its kernel.
[[nodiscard]] KernelFunction launch_for(const KernelConfig& config, const TensorPointers& pointers,
                                        LaunchConfig& launch);

/// Kernel and variant.
[[nodiscard]] std::string name_of(const LaunchConfig& launch);
/// With the grid.
[[nodiscard]] std::string to_string(const LaunchConfig& launch);

}  // namespace shortconv::cuda
