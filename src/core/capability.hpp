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
inline constexpr int kMinWidth = 2;
inline constexpr int kMaxWidth = 64;  // by the general path

inline constexpr std::array kDTypes{
    Named{DType::kF32, std::string_view("f32")},
    Named{DType::kF16, std::string_view("f16")},
    Named{DType::kBF16, std::string_view("bf16")},
};
inline constexpr std::array kActivations{
    Named{Activation::kNone, std::string_view("none")},
    Named{Activation::kSilu, std::string_view("silu")},
};
inline constexpr std::array kSchedules{
    Named{Schedule::kFlat, std::string_view("flat")},
    Named{Schedule::kBlockList, std::string_view("block-list")},
    Named{Schedule::kSequenceGrid, std::string_view("sequence-grid")},
};
inline constexpr std::array kPaddedRows{
    Named{PaddedRows::kZero, std::string_view("zero")},
    Named{PaddedRows::kUntouched, std::string_view("untouched")},
    Named{PaddedRows::kCopy, std::string_view("copy")},
};
inline constexpr std::array kBackends{
    Named{BackendId::kAuto, std::string_view("auto")},
    Named{BackendId::kReference, std::string_view("reference")},
    Named{BackendId::kCpu, std::string_view("cpu")},
    Named{BackendId::kCuda, std::string_view("cuda")},
};

}  // namespace shortconv
