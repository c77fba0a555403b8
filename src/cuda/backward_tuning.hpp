// Compile-time constants of the backward kernels that were measured rather than derived, each with
// its measurement: H200, 8192 x 8192 bf16, width 4, SiLU, gradients of x and weight, cold, unless
// stated otherwise, before all rows were in batches (device/backward_strip.cuh). The copy of the
// same bytes takes 97 us.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shortconv::cuda {

/// Strips of a unit, which are the warps of a block. With 4 a skewed batch takes 131 us instead of
/// 128, and one sequence 109.3 instead of 108.7.
inline constexpr int kUnitStrips = 8;
inline constexpr int kBackwardThreads = 32 * kUnitStrips;

/// Widths up to these have kernels of their own: for adjacent channels, and for other strides.
inline constexpr int kMaxBackwardWidth = 8;
inline constexpr int kMaxChannelStripWidth = 4;

/// Adjacent channels of a thread. A thread with 2 executes more instructions for each element than
/// one with 4: 133 us instead of 114; at width 5 145 instead of 131, at width 8 170 and 172.
constexpr int backward_group(std::size_t element_bytes, bool has_epilogue) {
  return element_bytes == 2 && !has_epilogue ? 4 : 2;
}

/// Maximum registers of a thread: enough to hold windows, sums and weights without spills. Width 4
/// spills with 102 and takes 150 us instead of 113. With more than 128 a
/// multiprocessor has one block, so a lower limit gains nothing: widths 5 and 6 take 1.276 and
/// 1.377 times the copy with 240, and 1.299 and 1.398 with 168.
constexpr int backward_registers(int width, int group) {
  return group == 2 || width <= 4 ? 128 : 240;
}

/// Batches of rows in the ring of a warp. With 4 strips in a unit 113.4 us with 3, 114.7 with 2, as
/// many with 4. The rings of 8 warps must fit into 227 KB.
constexpr int backward_stages(std::size_t element_bytes, bool has_epilogue) {
  return has_epilogue && element_bytes == 2 ? 4 : 3;
}

// The general kernel: a thread has one channel of a strip.

/// Rows that a thread processes together. Other numbers were not tried.
inline constexpr int kGeneralBackwardRows = 8;
/// Rows between a batch of 8 rows and the batch whose gradients of x are complete with it.
constexpr int general_backward_waiting(int history) {
  return (history + kGeneralBackwardRows - 1) / kGeneralBackwardRows * kGeneralBackwardRows;
}
/// Quads of the taps of a channel: device/tap_windows.cuh.
constexpr int general_backward_tap_quads(int width) { return (width - 1) / 4 + 2; }
/// Quads of a thread in shared memory: sums, inputs and gradients.
constexpr int general_backward_quads(int width, int history) {
  return general_backward_tap_quads(width) +
         (general_backward_waiting(history) + kGeneralBackwardRows) / 2;
}
/// Shared memory of a block: that of its threads, and the taps.
constexpr std::int32_t general_backward_bytes(int width, int history, int channels) {
  constexpr int kQuadBytes = 16;
  const int of_strips = general_backward_quads(width, history) * kUnitStrips;
  return (of_strips + general_backward_tap_quads(width)) * channels * kQuadBytes;
}
/// Channels of a block: 32, as a warp has, or fewer if shared memory has no room for them. Those of
/// width 64 need 221 KB.
constexpr int general_backward_channels(int width, int history, std::int32_t shared_bytes) {
  int channels = 32;
  while (channels > 8 && general_backward_bytes(width, history, channels) > shared_bytes) {
    channels /= 2;
  }
  return channels;
}

}  // namespace shortconv::cuda
