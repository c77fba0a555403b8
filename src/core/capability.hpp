// The lists of what the library supports. Dispatch, validation, error texts, tests and the support
// table enumerate these and nothing else: a width is added here.
#pragma once

#include <array>

#include "shortconv/capability.hpp"

namespace shortconv {

template <auto... kList>
struct Values {
  static constexpr std::array all{kList...};
};

inline constexpr Values<2, 3, 4, 5, 6, 7, 8> kWidths;  // specialised kernels
/// Those of them that models have; for what the CUDA backend has no kernels at the others is in
/// has_kernels of cuda/select.cpp.
inline constexpr Values<2, 3, 4> kModelWidths;
/// Those at which the CUDA backend has kernels for states of fp32 beside rows of 16 bits.
inline constexpr Values<3, 4> kF32StateWidths;
inline constexpr int kMinWidth = 2;
inline constexpr int kMaxWidth = 64;  // by the general path

inline constexpr auto kDTypes = std::to_array<Named<DType>>({
    {DType::kF32, "f32"},
    {DType::kF16, "f16"},
    {DType::kBF16, "bf16"},
});
inline constexpr auto kActivations = std::to_array<Named<Activation>>({
    {Activation::kNone, "none"},
    {Activation::kSilu, "silu"},
});
inline constexpr auto kEpilogues = std::to_array<Named<Epilogue>>({
    {Epilogue::kNone, "none"},
    {Epilogue::kResidual, "residual"},
    {Epilogue::kOutputGate, "output-gate"},
});
inline constexpr auto kSchedules = std::to_array<Named<Schedule>>({
    {Schedule::kFlat, "flat"},
    {Schedule::kBlockList, "block-list"},
    {Schedule::kSequenceGrid, "sequence-grid"},
});
inline constexpr auto kPaddedRows = std::to_array<Named<PaddedRows>>({
    {PaddedRows::kZero, "zero"},
    {PaddedRows::kUntouched, "untouched"},
    {PaddedRows::kCopy, "copy"},
});
inline constexpr auto kBackends = std::to_array<Named<BackendId>>({
    {BackendId::kAuto, "auto"},
    {BackendId::kReference, "reference"},
    {BackendId::kCpu, "cpu"},
    {BackendId::kCuda, "cuda"},
});

}  // namespace shortconv
