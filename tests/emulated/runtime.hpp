// What tests ask of the emulated device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shortconv/commit.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::emulated {

inline constexpr Device kDevice{DeviceType::kCuda, 0};

/// A kernel, which may have many instances.
struct KernelUse {
  std::string name;       // "full_tiles", as in Kernels of cuda/kernels.hpp
  std::string instances;  // "bf16", the type of x for which they are
  std::int64_t launches = 0;
};

/// All kernels of the backend for each element type, and how often they were launched.
[[nodiscard]] std::vector<KernelUse> kernel_uses();

/// For the launches that follow: the order of blocks and threads, and whether select.cpp takes the
/// ways of large calls at any size. From a number, so that a repetition does the same.
void begin(std::uint64_t number);

/// The same call with its tensors, as they are, on the emulated device.
[[nodiscard]] ForwardArgs on_device(ForwardArgs args);
[[nodiscard]] CommitArgs on_device(CommitArgs args);

}  // namespace shortconv::emulated
