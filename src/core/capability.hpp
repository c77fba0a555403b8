// What the library supports. Dispatch, validation, messages, tests and the support table enumerate
// these lists: a width is added here, and the other lists follow from their enumerations.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include "shortconv/capability.hpp"
#include "shortconv/groups.hpp"

namespace shortconv {

template <auto... kList>
struct Values {
  static constexpr std::array all{kList...};
};

inline constexpr Values<2, 3, 4, 5, 6, 7, 8> kWidths;  // with specialised kernels
/// Widths of released models, for which the CUDA backend has a kernel for every feature.
inline constexpr Values<2, 3, 4> kModelWidths;
/// Widths with CUDA kernels for gates. LFM3 has 7.
inline constexpr Values<2, 3, 4, 7> kGatedWidths;
/// Widths with CUDA kernels for fp32 states beside 16-bit rows.
inline constexpr Values<3, 4> kF32StateWidths;
inline constexpr int kMinWidth = 2;
inline constexpr int kMaxWidth = 64;  // of the general path

// Each switch has a case for every enumerator and no default: -Werror=switch finds a missing one.
// Other numbers have no name.

constexpr std::string_view name_of(Op value) {
  switch (value) {
    case Op::kForward:
      return "forward";
    case Op::kDecode:
      return "decode";
    case Op::kVerify:
      return "verify";
  }
  return {};
}
constexpr std::string_view name_of(Activation value) {
  switch (value) {
    case Activation::kNone:
      return "none";
    case Activation::kSilu:
      return "silu";
  }
  return {};
}
constexpr std::string_view name_of(Epilogue value) {
  switch (value) {
    case Epilogue::kNone:
      return "none";
    case Epilogue::kResidual:
      return "residual";
    case Epilogue::kOutputGate:
      return "output-gate";
  }
  return {};
}
constexpr std::string_view name_of(Schedule value) {
  switch (value) {
    case Schedule::kFlat:
      return "flat";
    case Schedule::kBlockList:
      return "block-list";
    case Schedule::kSequenceGrid:
      return "sequence-grid";
  }
  return {};
}
constexpr std::string_view name_of(PaddedRows value) {
  switch (value) {
    case PaddedRows::kZero:
      return "zero";
    case PaddedRows::kUntouched:
      return "untouched";
    case PaddedRows::kCopy:
      return "copy";
  }
  return {};
}
constexpr std::string_view name_of(InitialState value) {
  switch (value) {
    case InitialState::kNone:
      return "none";
    case InitialState::kAll:
      return "all";
    case InitialState::kByFlag:
      return "by-flag";
  }
  return {};
}
constexpr std::string_view name_of(BackendId value) {
  switch (value) {
    case BackendId::kAuto:
      return "auto";
    case BackendId::kReference:
      return "reference";
    case BackendId::kCpu:
      return "cpu";
    case BackendId::kCuda:
      return "cuda";
  }
  return {};
}

constexpr std::string_view name_of(DecayForm value) {
  switch (value) {
    case DecayForm::kLog:
      return "log";
    case DecayForm::kExp:
      return "exp";
  }
  return {};
}

/// The enumerators of T, which are numbered from 0 without gaps, with their names.
template <typename T>
constexpr auto enumerators() {
  constexpr std::size_t kCount = [] {
    std::size_t count = 0;
    while (!name_of(static_cast<T>(count)).empty()) ++count;
    return count;
  }();
  std::array<Named<T>, kCount> rows{};
  for (std::size_t i = 0; i < kCount; ++i) {
    rows[i] = {static_cast<T>(i), name_of(static_cast<T>(i))};
  }
  return rows;
}

inline constexpr auto kOps = enumerators<Op>();
inline constexpr auto kActivations = enumerators<Activation>();
inline constexpr auto kEpilogues = enumerators<Epilogue>();
inline constexpr auto kSchedules = enumerators<Schedule>();
inline constexpr auto kPaddedRows = enumerators<PaddedRows>();
inline constexpr auto kInitialStates = enumerators<InitialState>();
inline constexpr auto kBackends = enumerators<BackendId>();
inline constexpr auto kDecayForms = enumerators<DecayForm>();

/// Element types of x, out, weights and states on every backend.
inline constexpr auto kDTypes = std::to_array<Named<DType>>({
    {DType::kF32, "f32"},
    {DType::kF16, "f16"},
    {DType::kBF16, "bf16"},
});

}  // namespace shortconv
