// SIMD kernels for bf16, compiled once per instruction set: see kernels-inl.hpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels_bf16.cpp"
#include <hwy/foreach_target.h>  // first: it includes this file once per target

#include "cpu/kernels-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shortconv::cpu::HWY_NAMESPACE {
const Kernels* choose_bf16(int width, Activation activation) {
  return select<ElementBF16>(width, activation);
}
}  // namespace shortconv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shortconv::cpu {
HWY_EXPORT(choose_bf16);

const Kernels* select_bf16(int width, Activation activation) {
  return HWY_DYNAMIC_DISPATCH(choose_bf16)(width, activation);
}
}  // namespace shortconv::cpu
#endif
