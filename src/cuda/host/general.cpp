#include "cuda/host/general.hpp"

#include <algorithm>
#include <limits>

#include "core/capability.hpp"
#include "core/dispatch.hpp"
#include "core/history.hpp"
#include "cuda/host/memory_layout.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {
namespace {

/// On average, rounded up.
std::int64_t tokens_per_sequence(const Problem& p) {
  return divide_up(p.tokens, std::max<std::int64_t>(p.sequences, 1));
}

/// The taps.
std::int32_t decode_shared_bytes(int width) {
  return width * shared_tap_stride(kGeneralThreads * general_decode_channels(0)) * 4;
}

/// Inputs, output gates, taps of a width without an instance, windows of a tree.
std::int32_t verify_shared_bytes(int width, int staged, bool has_gates, bool has_taps,
                                 bool has_windows) {
  const int words = (width - 1 + staged + (has_gates ? staged : 0)) * kGeneralThreads +
                    (has_taps ? width * shared_tap_stride(kGeneralThreads) : 0) +
                    (has_windows ? kTreeWindowTokens * width : 0);
  return words * 4;
}

}  // namespace

int general_width(const Problem& p) {
  return p.dilation == 1 && is_listed(kWidths, p.width) ? p.width : 0;
}

int sized_width(const Problem& p) { return has_sized_types(p) ? general_width(p) : 0; }

std::uint32_t general_rows(const Problem& p, const DeviceProperties& device,
                           const TuningPolicy& policy) {
  std::int64_t rows = policy.general_rows;
  const std::int64_t blocks = divide_up(p.channels, kGeneralThreads);
  const std::int64_t wanted = policy.general_blocks * device.multiprocessors;
  while (rows > 1 && divide_up(p.tokens, rows) * blocks < wanted) rows /= 2;
  return static_cast<std::uint32_t>(rows);
}

std::int64_t general_decode_block_channels(const Problem& p) {
  return std::int64_t{kGeneralThreads} * general_decode_channels(sized_width(p));
}

std::uint32_t general_decode_sequences(const Problem& p, const DeviceProperties& device) {
  const std::int64_t blocks = divide_up(p.channels, general_decode_block_channels(p));
  const std::int64_t wave =
      std::int64_t{general_decode_blocks(sized_width(p))} * device.multiprocessors;
  const std::int64_t each = divide_up(p.sequences * blocks, wave);
  return static_cast<std::uint32_t>(
      std::min<std::int64_t>(each, std::numeric_limits<std::int32_t>::max()));
}

bool fits_whole_sequences(const Problem& p, const DeviceProperties& device) {
  // A block writes all snapshots of its sequence, one after the other.
  if (general_width(p) != 0 || p.schedule != Schedule::kFlat) return false;
  if (p.seq_idx.present || p.snapshot_count > 0) return false;
  // Of one sequence, which may have nearly all tokens.
  const std::int64_t blocks = divide_up(p.channels, kWholeChannels);
  return tokens_per_sequence(p) >= kMinWideTokens && 4 * blocks >= 3 * device.multiprocessors;
}

int whole_sequences_channels(const Problem& p) {
  const bool few = general_width(p) != 0 && tokens_per_sequence(p) <= kMaxShortWholeTokens;
  return few ? kShortWholeChannels : kWholeChannels;
}

std::int32_t whole_sequences_threads(const Problem& p) {
  const int channels = whole_sequences_channels(p);
  const int most = max_whole_threads(general_width(p), channels);
  const std::int64_t strips =
      std::max<std::int64_t>(divide_up(tokens_per_sequence(p), kGeneralStripTokens), 1);
  const std::int64_t steps = divide_up(strips, most / channels);
  return static_cast<std::int32_t>(channels * divide_up(strips, steps));
}

int staged_tokens(const Problem& p) {
  const std::int64_t strips = divide_up(tokens_per_sequence(p), kGeneralStripTokens);
  return static_cast<int>(std::clamp<std::int64_t>(strips * kGeneralStripTokens,
                                                   kGeneralStripTokens, kMaxStagedTokens));
}

std::int32_t general_shared_bytes(const Problem& p, Kernel kernel, std::int32_t threads) {
  const bool is_sized = kernel == Kernel::kGeneralDecode || kernel == Kernel::kGeneralVerify;
  const bool wide = (is_sized ? sized_width(p) : general_width(p)) == 0;
  const auto history = static_cast<std::int32_t>(history_of(p));
  constexpr auto kBytes = static_cast<std::int32_t>(sizeof(float));
  if (kernel == Kernel::kWholeSequences) {
    const std::int32_t channels = whole_sequences_channels(p);
    const std::int32_t rows = history + threads / channels * kGeneralStripTokens;
    return (2 * rows + (wide ? p.width : 0)) * channels * kBytes;
  }
  if (kernel == Kernel::kGeneralVerify) {
    return verify_shared_bytes(p.width, staged_tokens(p), p.output_gate.present, wide,
                               p.parents.present);
  }
  if (kernel == Kernel::kGeneralDecode) return wide ? decode_shared_bytes(p.width) : 0;
  const bool windows = kernel == Kernel::kGeneral && wide;
  return windows ? general_window_bytes(history, p.width) * threads : 0;
}

std::int32_t max_general_shared_bytes(std::int32_t threads) {
  return general_window_bytes(kMaxWidth - 1, kMaxWidth) * threads;
}

std::int32_t max_general_decode_shared_bytes() { return decode_shared_bytes(kMaxWidth); }

std::int32_t max_general_verify_shared_bytes() {
  return verify_shared_bytes(kMaxWidth, kMaxStagedTokens, true, true, true);
}

}  // namespace shortconv::cuda
