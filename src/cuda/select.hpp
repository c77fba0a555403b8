// Which kernel a problem gets and how its grid is cut: pure functions of the problem and of what
// tuning.hpp says, tested without a GPU.
#pragma once

#include <string_view>

#include "cuda/grid.hpp"
#include "cuda/kernels.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// Of a grid's first axis, and of FastDivisor.
inline constexpr std::int64_t kMostBlocks = 0x7fffffff;

enum class Kernel : std::uint8_t {
  kTiles,
  kShortSequences,
  kSmallTiles,
  kNumberedTiles,
  kDecode,
  kSmallDecode,
  kDrafts,
  kTrees,
  kColumns,
  kChunks,
  kGeneral
};

[[nodiscard]] std::string_view name(Kernel kernel);

/// Whether the kernel's one parameter is a Call, call.hpp; the others take (Problem, Addresses,
/// Grid).
[[nodiscard]] constexpr bool takes_call(Kernel kernel) {
  return kernel != Kernel::kColumns && kernel != Kernel::kChunks && kernel != Kernel::kGeneral;
}

/// What the instance for a problem has to know.
[[nodiscard]] Features features_of(const Problem& problem);

struct Launch {
  Kernel kernel = Kernel::kGeneral;
  std::int64_t blocks = 0;
  std::int32_t threads = 0;
  Grid grid;
  std::int64_t replacing_blocks = 0;  // of replace_histories, which follows unless there are none
};

/// Bytes that addresses are to be multiples of.
struct Alignment {
  std::uint32_t rows = 1;  // of x and out
  std::uint32_t state = 1, windows = 1;
};

/// What make_plan keeps. Addresses decide between the two at the call: `aligned` needs the rows so.
/// A state or windows that are not are taken element by element.
struct Choice {
  Launch aligned;
  Launch otherwise;  // the general kernel; the same as `aligned` where that needs no alignment
  Alignment alignment;
  Entry aligned_entry = nullptr;
  Entry otherwise_entry = nullptr;
};

/// Everything but the entry points. Fails for grids that a GPU cannot have.
[[nodiscard]] Status select(const Problem& problem, Choice& choice);

/// The kernel for these addresses, and its launch: without what their alignment does not allow.
[[nodiscard]] Entry launch_for(const Choice& choice, const Addresses& addresses, Launch& launch);

}  // namespace shortconv::cuda
