// The table of kernels: what each instance supports and for which widths and types it is compiled.
// Selection walks it (host/select.cpp) and instantiation enumerates it (kernels/instances.cuh), so
// a selected instance exists.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

#include "core/capability.hpp"
#include "cuda/launch_params.hpp"

namespace shortconv::cuda {

enum class Kernel : std::uint8_t {
  kTiles,           // kernels/tile.cuh
  kShortSequences,  // kernels/tile.cuh: few tokens a sequence on average
  kSmallTiles,      // kernels/tile.cuh: small calls, and short sequences of few channels
  kSeqIdxTiles,     // kernels/seq_idx_tile.cuh
  kDecode,          // kernels/decode.cuh: 16 bytes of channels a thread
  kSmallDecode,     // kernels/decode.cuh: 4 channels a thread
  kDrafts,          // kernels/drafts.cuh
  kTrees,           // kernels/trees.cuh
  kChannelsFirst,   // kernels/channels_first.cuh
  kBlockList,       // kernels/block_list.cuh
  kGeneral,         // kernels/general.cuh
  kGeneralDecode,   // kernels/general_decode.cuh
  kGeneralVerify,   // kernels/general_verify.cuh
  kWholeSequences,  // kernels/general.cuh: prefill with x == out, wide windows of long sequences
};

constexpr std::string_view name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kTiles:
      return "tiles";
    case Kernel::kShortSequences:
      return "short sequences";
    case Kernel::kSmallTiles:
      return "small tiles";
    case Kernel::kSeqIdxTiles:
      return "seq_idx tiles";
    case Kernel::kDecode:
      return "decode";
    case Kernel::kSmallDecode:
      return "small decode";
    case Kernel::kDrafts:
      return "drafts";
    case Kernel::kTrees:
      return "trees";
    case Kernel::kChannelsFirst:
      return "channels first";
    case Kernel::kBlockList:
      return "block list";
    case Kernel::kGeneral:
      return "general";
    case Kernel::kGeneralDecode:
      return "general decode";
    case Kernel::kGeneralVerify:
      return "general verify";
    case Kernel::kWholeSequences:
      return "whole sequences";
  }
  return {};
}

constexpr std::string_view name_of(Variant variant) {
  switch (variant) {
    case Variant::kBase:
      return "base";
    case Variant::kCircular:
      return "circular";
    case Variant::kShiftFullState:
      return "shift full state";
    case Variant::kGated:
      return "gated";
    case Variant::kExtended:
      return "extended";
    case Variant::kGroups:
      return "groups";
  }
  return {};
}

/// Features of a call that an instance may lack.
enum class Feature : std::uint8_t {
  kCircularBuffers,
  kShiftFullState,
  kGates,
  kF32State,  // fp32 states beside 16-bit rows
  kSnapshots,
  kIntermediateSlots,
  kResidual,
  kLongChains,  // drafts with prompts among them
};

class FeatureSet {
 public:
  constexpr FeatureSet() = default;
  constexpr FeatureSet(std::initializer_list<Feature> features) {
    for (const Feature feature : features) add(feature);
  }
  constexpr void add(Feature feature) { bits_ |= 1u << static_cast<unsigned>(feature); }
  [[nodiscard]] constexpr bool includes(FeatureSet other) const {
    return (other.bits_ & ~bits_) == 0;
  }
  friend constexpr bool operator==(FeatureSet, FeatureSet) = default;

 private:
  unsigned bits_ = 0;
};

struct KernelRow {
  Kernel kernel;
  Variant variant;
  FeatureSet features;
  std::span<const int> widths;                  // with weights of x's type
  std::span<const int> f32_weight_widths = {};  // with fp32 weights beside 16-bit rows
  bool runtime_activation = false;              // else one instance for each activation
  bool runtime_weights = false;                 // weights of any type at `widths`
  bool only_16_bit = false;                     // not for fp32 rows

  [[nodiscard]] constexpr bool has_f32_state() const {
    return features.includes({Feature::kF32State});
  }
  /// Only extended instances compute calls that lack some of their features: the others read and
  /// write what their features say without asking. The type of the states is always compiled.
  [[nodiscard]] constexpr bool supports(FeatureSet call) const {
    if (variant != Variant::kExtended) return features == call;
    return features.includes(call) && call.includes({Feature::kF32State}) == has_f32_state();
  }
};

inline std::string name_of(const KernelRow& row) {
  std::string name(name_of(row.kernel));
  if (row.variant != Variant::kBase) name.append(", ").append(name_of(row.variant));
  return row.has_f32_state() ? name + ", f32 states" : name;
}

/// In the order of preference. Each instance costs code: scripts/kernel_report.py prints how much.
inline constexpr auto kKernelTable = [] {
  constexpr std::span<const int> kAll = kWidths.all, kModels = kModelWidths.all;
  constexpr std::span<const int> kF32States = kF32StateWidths.all;
  constexpr std::span<const int> kGatedModels = kGatedWidths.all;
  using enum Feature;
  constexpr FeatureSet kNone{}, kCircular{kCircularBuffers}, kShift{kShiftFullState};
  constexpr FeatureSet kGated{kGates}, kF32{Feature::kF32State};
  constexpr FeatureSet kDecodeExtended{kCircularBuffers, kShiftFullState, kSnapshots, kResidual};
  constexpr FeatureSet kTilesExtended{kCircularBuffers, kSnapshots, kResidual};
  constexpr FeatureSet kTreesExtended{kCircularBuffers, kIntermediateSlots, kResidual};
  constexpr FeatureSet kDraftsExtended{kCircularBuffers, kIntermediateSlots, kResidual,
                                       kLongChains};
  constexpr FeatureSet kDecodeExtendedF32{kCircularBuffers, kShiftFullState, kSnapshots, kResidual,
                                          Feature::kF32State};
  constexpr FeatureSet kTilesExtendedF32{kCircularBuffers, kSnapshots, kResidual,
                                         Feature::kF32State};
  constexpr FeatureSet kDraftsExtendedF32{kCircularBuffers, kIntermediateSlots, kResidual,
                                          kLongChains, Feature::kF32State};
  constexpr FeatureSet kTreesExtendedF32{kCircularBuffers, kIntermediateSlots, kResidual,
                                         Feature::kF32State};
  // A runtime activation costs small calls 0.2 to 0.5 us (H200), calls with snapshots 0.5 to 1.2%,
  // so only rare variants have it. A runtime weight type would cost full tiles 30%.
  return std::to_array<KernelRow>({
      {Kernel::kSmallDecode, Variant::kBase, kNone, kAll, kModels},
      {Kernel::kDecode, Variant::kBase, kNone, kAll},
      {Kernel::kDecode, Variant::kCircular, kCircular, kModels, kModels},
      {Kernel::kSmallDecode, Variant::kShiftFullState, kShift, kModels, kModels},
      {Kernel::kSmallDecode, Variant::kGated, kGated, kGatedModels, {}, true},
      {Kernel::kSmallDecode, Variant::kBase, kF32, kF32States, kF32States, true, false, true},
      {Kernel::kSmallDecode, Variant::kExtended, kDecodeExtendedF32, kF32States, kF32States, true,
       false, true},
      {Kernel::kDecode, Variant::kExtended, kDecodeExtended, kModels, kModels, true},
      {Kernel::kShortSequences, Variant::kBase, kNone, kModels, kModels},
      {Kernel::kSmallTiles, Variant::kBase, kNone, kModels, kModels},
      {Kernel::kTiles, Variant::kBase, kNone, kAll, kModels},
      {Kernel::kTiles, Variant::kGated, kGated, kGatedModels, {}, true},
      {Kernel::kTiles, Variant::kBase, kF32, kF32States, kF32States, true, false, true},
      {Kernel::kTiles, Variant::kExtended, kTilesExtendedF32, kF32States, kF32States, true, false,
       true},
      {Kernel::kTiles, Variant::kExtended, kTilesExtended, kModels, kModels, true},
      {Kernel::kSeqIdxTiles, Variant::kBase, kNone, kModels, kModels},
      {Kernel::kDrafts, Variant::kBase, kNone, kAll, kModels},
      {Kernel::kDrafts, Variant::kGated, kGated, kGatedModels, {}, true},
      {Kernel::kDrafts, Variant::kExtended, kDraftsExtended, kModels, kModels, true},
      {Kernel::kDrafts, Variant::kExtended, kDraftsExtendedF32, kF32States, kF32States, true, false,
       true},
      {Kernel::kTrees, Variant::kBase, kNone, kModels, kModels},
      {Kernel::kTrees, Variant::kGated, kGated, kGatedModels, {}, true},
      {Kernel::kTrees, Variant::kExtended, kTreesExtended, kModels, kModels, true},
      {Kernel::kTrees, Variant::kExtended, kTreesExtendedF32, kF32States, kF32States, true, false,
       true},
      {Kernel::kBlockList, Variant::kBase, kNone, kModels, {}, true},
      {Kernel::kChannelsFirst, Variant::kBase, kNone, kModels, {}, false, true},
  });
}();
inline constexpr std::size_t kKernelRows = kKernelTable.size();

/// Numbers behind those of the table, for the kernels that take calls of any types and widths.
inline constexpr std::size_t kGeneralRow = kKernelRows, kGeneralDecodeRow = kKernelRows + 1,
                             kGeneralVerifyRow = kKernelRows + 2,
                             kWholeSequencesRow = kKernelRows + 3;
constexpr Kernel kernel_of(std::size_t row) {
  switch (row) {
    case kGeneralRow:
      return Kernel::kGeneral;
    case kGeneralDecodeRow:
      return Kernel::kGeneralDecode;
    case kGeneralVerifyRow:
      return Kernel::kGeneralVerify;
    case kWholeSequencesRow:
      return Kernel::kWholeSequences;
    default:
      return kKernelTable[row].kernel;
  }
}

/// Whether the instance exists.
constexpr bool is_compiled(const KernelRow& row, DType x, DType weight, int width) {
  if (row.only_16_bit && element_bytes(x) != 2) return false;
  const auto has = [width](std::span<const int> widths) {
    return std::find(widths.begin(), widths.end(), width) != widths.end();
  };
  if (weight == x || row.runtime_weights) return has(row.widths);
  return weight == DType::kF32 && has(row.f32_weight_widths);
}

/// Whether the kernel takes calls of any types, widths and strides.
constexpr bool is_general(Kernel kernel) {
  return kernel == Kernel::kGeneral || kernel == Kernel::kGeneralDecode ||
         kernel == Kernel::kGeneralVerify || kernel == Kernel::kWholeSequences;
}

/// Whether the kernel takes GeneralParams; the others take KernelParams.
constexpr bool takes_general_params(Kernel kernel) {
  return kernel == Kernel::kChannelsFirst || kernel == Kernel::kBlockList || is_general(kernel);
}

}  // namespace shortconv::cuda
