// The emulated device, for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shortconv/plan.hpp"

namespace shortconv::emulated {

inline constexpr Device kDevice{DeviceType::kCuda, 0};

/// Launches of a kernel, over all of its instances.
struct KernelUse {
  std::string name;       // "tiles, base": kernel and variant
  std::string instances;  // "bf16": the dtype of x
  std::int64_t launches = 0;
};

/// All kernels of the backend for each dtype, with the number of launches.
[[nodiscard]] std::vector<KernelUse> kernel_uses();

/// Draws the order of blocks and threads, and the tuning policy: small calls may take the kernels
/// of large ones. Until the next call; the same seed draws the same.
void begin(std::uint64_t seed);

/// The call with its tensors, unmoved, on the emulated device.
[[nodiscard]] ForwardArgs on_device(ForwardArgs args);
[[nodiscard]] CommitArgs on_device(CommitArgs args);
[[nodiscard]] BackwardArgs on_device(BackwardArgs args);
[[nodiscard]] GateArgs on_device(GateArgs args);
[[nodiscard]] GateGradientArgs on_device(GateGradientArgs args);

}  // namespace shortconv::emulated
