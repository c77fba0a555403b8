// Before src/cuda/tuning.hpp on the emulated device. The sizes at which another kernel or another
// way through one is faster are variables here: a small problem is to go all ways.
#pragma once

#define kGeneralBlocks kMeasuredGeneralBlocks
#define kHeadsBeginUpTo kMeasuredHeadsBeginUpTo
#define kSmallDecode kMeasuredSmallDecode
#define kSmallTilesUpTo kMeasuredSmallTilesUpTo
#include_next "cuda/tuning.hpp"
#undef kGeneralBlocks
#undef kHeadsBeginUpTo
#undef kSmallDecode
#undef kSmallTilesUpTo

namespace shortconv::cuda {

inline std::int64_t kGeneralBlocks = kMeasuredGeneralBlocks;
inline std::int64_t kHeadsBeginUpTo = kMeasuredHeadsBeginUpTo;
inline std::int64_t kSmallDecode = kMeasuredSmallDecode;
inline std::int64_t kSmallTilesUpTo = kMeasuredSmallTilesUpTo;

}  // namespace shortconv::cuda
