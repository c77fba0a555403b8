// SIMD kernels for fp16, compiled once per instruction set: see kernels-inl.hpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels_f16.cpp"
#include <hwy/foreach_target.h>  // first: it includes this file once per target

#include "cpu/kernels-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu::HWY_NAMESPACE {
const Kernels* choose_f16(int width, Activation activation) {
  return select<ElementF16>(width, activation);
}
}  // namespace shortconv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shortconv::cpu {
HWY_EXPORT(choose_f16);

const Kernels* select_f16(int width, Activation activation) {
  return HWY_DYNAMIC_DISPATCH(choose_f16)(width, activation);
}
}  // namespace shortconv::cpu
#endif
