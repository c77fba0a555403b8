// SIMD kernels for fp32, compiled once per instruction set: see kernels-inl.hpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels_f32.cpp"
#include <hwy/foreach_target.h>  // first: it includes this file once per target

#include "cpu/kernels-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu::HWY_NAMESPACE {
const Kernels* choose_f32(int width, Activation activation) {
  return select<ElementF32>(width, activation);
}
}  // namespace shortconv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shortconv::cpu {
HWY_EXPORT(choose_f32);

const Kernels* select_f32(int width, Activation activation) {
  return HWY_DYNAMIC_DISPATCH(choose_f32)(width, activation);
}
}  // namespace shortconv::cpu
#endif
